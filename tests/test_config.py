"""Configuration: inheritance, origins, and errors that say what, where and what to do."""

from typing import Literal

import pytest
from pydantic import Field

from flowgrain.config import Config, describe_origins, load_config
from flowgrain.errors import ConfigError


class Inner(Config):
    rate: float = Field(1e-4, gt=0)
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
    ],
)
def test_errors_say_what_where_and_what_to_do(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, write(tmp_path, "run.yaml", text), [])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("override", ["name", "=1", "a..b=1", "name=["])
def test_malformed_overrides(override):
    with pytest.raises(ConfigError, match="override"):
        load_config(Outer, None, [override])


def test_not_utf8(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load_config(Outer, tmp_path / "run.yaml", [])
