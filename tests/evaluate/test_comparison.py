import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import item_key, read_comparison
from flowgrain.evaluate.protocol import PRESETS, ProtocolConfig, urae_prompts
from flowgrain.sample.prompts import read_prompts


def pictures(folder, prompts, seeds=(0,)):
    """A sample folder as any tool could write it."""
    folder.mkdir(parents=True)
    lines = []
    for number, prompt in enumerate(prompts):
        for seed in seeds:
            name = f"{number}-{seed}.png"
            Image.new("RGB", (8, 8), (number, seed, 0)).save(folder / name)
            lines.append(json.dumps({"file": name, "prompt": prompt, "seed": seed, "cfg": 7}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")


def write(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def dataset(name="fox", variants=("a", "b"), **more):
    return {"name": name, "variants": [{"name": v, "pictures": f"{name}/{v}"} for v in variants], **more}


def test_items_are_what_all_variants_drew(tmp_path):
    pictures(tmp_path / "fox/a", ["one", "two", "three"], seeds=(0, 1))
    pictures(tmp_path / "fox/b", ["three", "one"], seeds=(1, 2))
    comparison = read_comparison([write(tmp_path / "comparison.yaml", datasets=[dataset()])])
    items = comparison.items()
    assert [(item.prompt, item.seed) for item in items] == [("one", 1), ("three", 1)]
    assert items[0].pictures == {"a": tmp_path / "fox/a/0-1.png", "b": tmp_path / "fox/b/1-1.png"}
    assert comparison.pairs == (("a", "b"),) and comparison.folder == tmp_path


def test_several_files_are_one_comparison(tmp_path):
    for name in ("fox", "owl"):
        for variant in "ab":
            pictures(tmp_path / name / name / variant, ["one"])
        write(tmp_path / name / "comparison.yaml", datasets=[dataset(name)], protocol="granularity")
    comparison = read_comparison([tmp_path / "fox", tmp_path / "owl" / "comparison.yaml"])
    assert [item.dataset for item in comparison.items()] == ["fox", "owl"]
    assert comparison.protocol.seeds == 5
    with pytest.raises(ConfigError, match="'fox' is given twice"):
        read_comparison([tmp_path / "fox", tmp_path / "fox"])


def test_files_of_other_variants_or_protocols_do_not_mix(tmp_path):
    for name, variants in (("fox", "ab"), ("owl", "ba")):
        for variant in variants:
            pictures(tmp_path / name / name / variant, ["one"])
        write(tmp_path / name / "comparison.yaml", datasets=[dataset(name, variants)])
    with pytest.raises(ConfigError, match="'owl' has the variants b, a, 'fox' has a, b"):
        read_comparison([tmp_path / "fox", tmp_path / "owl"])
    write(tmp_path / "owl/comparison.yaml", datasets=[dataset("owl")], protocol="urae")
    with pytest.raises(ConfigError, match="its protocol differs"):
        read_comparison([tmp_path / "fox", tmp_path / "owl"])


def test_a_plain_folder_has_captions_or_names_as_prompts(tmp_path):
    for variant in "ab":
        folder = tmp_path / "fox" / variant
        folder.mkdir(parents=True)
        for name in ("x", "y"):
            Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        (folder / "x.txt").write_text("a fox")
    comparison = read_comparison([write(tmp_path / "c.yaml", datasets=[dataset(references="fox/a")])])
    assert [item.prompt for item in comparison.items()] == ["a fox", "y"]
    assert comparison.datasets[0].own_reference("a fox").path == tmp_path / "fox/a/x.png"
    assert comparison.datasets[0].own_reference("a wolf") is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", r"samples\.jsonl:1: not JSON"),
        ("[1]", r"samples\.jsonl:1: not a JSON object"),
        ('{"file": "0-0.png"}', r"samples\.jsonl:1: prompt: Field required"),
        ('{"file": "gone.png", "prompt": "p"}', r"samples\.jsonl:1: gone\.png is not there"),
        ('{"file": "0-0.png", "prompt": "p"}\n{"file": "0-0.png", "prompt": "p"}', "are there twice"),
        ("", "holds no picture"),
    ],
)
def test_a_bad_manifest_is_named_with_its_line(tmp_path, lines, message):
    for variant in "ab":
        pictures(tmp_path / "fox" / variant, ["one"])
    (tmp_path / "fox/b/samples.jsonl").write_text(lines)
    with pytest.raises(DataError, match=message):
        read_comparison([write(tmp_path / "c.yaml", datasets=[dataset()])])


def test_what_cannot_be_compared_is_refused(tmp_path):
    pictures(tmp_path / "fox/a", ["one"])
    pictures(tmp_path / "fox/b", ["two"])
    with pytest.raises(DataError, match="no prompt and seed that all of a, b drew"):
        read_comparison([write(tmp_path / "c.yaml", datasets=[dataset()])])
    with pytest.raises(ConfigError, match="no variant 'c'"):
        read_comparison([write(tmp_path / "c.yaml", datasets=[dataset(variants="a")], pairs=[["a", "c"]])])
    with pytest.raises(ConfigError, match="did you mean 'datasets'"):
        read_comparison([write(tmp_path / "c.yaml", dataset=[])])
    with pytest.raises(ConfigError, match="give at least one"):
        read_comparison([])


@given(st.lists(st.tuples(st.text(), st.text(), st.integers()), unique=True, max_size=20))
def test_items_differ_in_their_keys(identities):
    assert len({item_key(*identity) for identity in identities}) == len(identities)


def test_presets_are_filled_and_overridden():
    granularity = ProtocolConfig.model_validate("granularity")
    assert (granularity.prompts, granularity.seeds, granularity.budgets) == (8, 5, (1.0, 1.5))
    assert [dimension.name for dimension in granularity.judge_dimensions] == ["geometry", "rendering", "coherence"]
    assert ProtocolConfig.model_validate({"preset": "granularity", "seeds": 9}).seeds == 9
    assert ProtocolConfig.model_validate("checkpoints").budgets is None
    for name in PRESETS:
        again = ProtocolConfig.model_validate(ProtocolConfig.model_validate(name).model_dump(mode="json"))
        assert again == ProtocolConfig.model_validate(name)


def test_the_prompts_of_urae():
    text = urae_prompts().read_text(encoding="utf-8").splitlines()
    lines = [line for line in text if not line.startswith("#")]
    assert len(lines) == 20 and lines[4] == lines[5]
    assert len(read_prompts(urae_prompts())) == 19
    assert all(line.endswith(".") and "*" not in line for line in lines)
