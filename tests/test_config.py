"""Configuration: inheritance, origins, and errors that say what, where and what to do."""

from typing import Literal

import pytest
from pydantic import Field

from flowgrain.config import Config, describe_origins, load_config
from flowgrain.errors import ConfigError


class Inner(Config):
    rate: float = Field(default=1e-4, gt=0)
    kind: Literal["a", "b"] = "a"


class Outer(Config):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    sizes: tuple[int, ...] = (1, 2)


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_layers_merge_maps_and_replace_lists(tmp_path):
    write(tmp_path, "base.yaml", "name: base\ninner: {rate: 1.0, kind: b}\nsizes: [1, 2, 3]\n")
    path = write(tmp_path, "run.yaml", "extends: base.yaml\ninner:\n  rate: 2.0\nsizes: [9]\n")
    config, layered = load_config(Outer, path, ["inner.kind=a"])
    assert (config.name, config.inner.rate, config.inner.kind, config.sizes) == ("base", 2.0, "a", (9,))
    origins = {key: origin for key, _, origin in describe_origins(config, layered)}
    assert origins["inner.rate"].endswith("run.yaml:3")
    assert origins["name"].endswith("base.yaml:1")
    assert origins["inner.kind"] == "command line"
    assert origins["maybe"] == "default"


def test_several_parents_later_ones_win(tmp_path):
    write(tmp_path, "a.yaml", "name: a\ninner: {rate: 1.0}\n")
    write(tmp_path, "b.yaml", "name: b\n")
    config, _ = load_config(Outer, write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]\n"), [])
    assert (config.name, config.inner.rate) == ("b", 1.0)


def test_scientific_notation_without_a_dot_is_a_number():
    config, _ = load_config(Outer, None, ["name=x", "inner.rate=1e-5"])
    assert config.inner.rate == 1e-5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\ninner:\n  rat: 1\n", ["run.yaml:3", "unknown key 'inner.rat'", "did you mean 'rate'"]),
        ("name: x\nzzz: 1\n", ["run.yaml:2", "unknown key 'zzz'", "valid keys here: inner, maybe, name, sizes"]),
        ("name: x\ninner: {rate: -1}\n", ["run.yaml:2", "inner.rate", "greater than 0", "-1"]),
        ("name: x\ninner: {kind: c}\n", ["run.yaml:2", "inner.kind", "'a' or 'b'", "'c'"]),
        ("name: x\nmaybe: {rte: 1}\n", ["run.yaml:2", "unknown key 'maybe.rte'", "did you mean 'rate'"]),
        ("inner: {}\n", ["name", "required"]),
        ("name: x\nname: y\n", ["run.yaml:2", "already set at line 1"]),
        ("- 1\n", ["expected a map"]),
        ("name: [\n", ["not valid YAML"]),
        ("extends: missing.yaml\n", ["missing.yaml", "no such file"]),
        ("extends: run.yaml\n", ["round in a circle"]),
        ("extends: 5\n", ["run.yaml:1", "'extends' must be a path"]),
        ("name: x\ninner: {rate: .nan}\n", ["inner.rate", "finite"]),
        ("name: x\n1: 2\n", ["run.yaml:2", "key 1 is read as int", "quotes"]),
        ("name: x\non: 2\n", ["run.yaml:2", "key on is read as bool", "quotes"]),
        ("a: &a {b: *a}\n", ["run.yaml:1", "holds itself"]),
        ("name: x\nsizes: " + "[" * 600 + "\n", ["run.yaml", "not valid YAML"]),
        ('name: "a\\0b"\n', ["run.yaml:1", "name", "no file can hold"]),
        ('name: "\\ud800"\n', ["run.yaml:1", "name", "no file can hold"]),
        ("name: !!timestamp nonsense\n", ["run.yaml", "not valid YAML"]),
        ("name: !!python/object/apply:os.system [ls]\n", ["run.yaml", "not valid YAML"]),
        ("name: x\nsizes: [0x" + "f" * 5000 + ", a]\n", ["sizes.1", "integer"]),
        ("extends: 'a\x7fb.yaml'\n", ["run.yaml", "not valid YAML"]),
    ],
)
def test_errors_say_what_where_and_what_to_do(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, write(tmp_path, "run.yaml", text), [])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_settings_that_a_merge_brings_are_located_at_their_anchor(tmp_path):
    path = write(tmp_path, "run.yaml", "name: x\ninner: &shared\n  rate: 2.0\nmaybe:\n  <<: *shared\n  kind: b\n")
    config, layered = load_config(Outer, path, [])
    assert config.maybe == Inner(rate=2.0, kind="b")
    assert layered.origins["maybe.rate"].endswith("run.yaml:3") and layered.origins["maybe.kind"].endswith("run.yaml:6")


def test_aliases_that_multiply_are_refused_before_they_are_built(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="aliases multiply"):
        load_config(Outer, write(tmp_path, "run.yaml", "\n".join(lines)), [])


def test_one_line_a_problem_although_a_union_has_several_branches(tmp_path):
    class Choice(Config):
        cache: bool | int = True
        other: Literal["none"] | Inner = "none"

    with pytest.raises(ConfigError) as caught:
        load_config(Choice, write(tmp_path, "run.yaml", "cache: maybe\nother: {rate: -1}\n"), [])
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and "cache" in lines[0] and ", or " in lines[0] and "other.rate" in lines[1]


def test_a_long_list_of_problems_is_cut(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, write(tmp_path, "run.yaml", "name: x\nsizes: [" + "a, " * 100 + "b]\n"), [])
    assert len(str(caught.value).split("\n")) == 21 and str(caught.value).endswith("and 81 more problems")


@pytest.mark.parametrize("override", ["name", "=1", "a..b=1", "name=["])
def test_malformed_overrides(override):
    with pytest.raises(ConfigError, match="override"):
        load_config(Outer, None, [override])


def test_not_utf8(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load_config(Outer, tmp_path / "run.yaml", [])
