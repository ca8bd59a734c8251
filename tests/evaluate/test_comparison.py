import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.comparison import item_key, read_comparison
from flowgrain.evaluate.protocol import PRESETS, ProtocolConfig, urae_prompts
from flowgrain.evaluate.ranking.records import Ranking, read_rankings, write_rankings
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


def test_prompts_may_hold_any_line_break_but_a_newline(tmp_path):
    prompt = "a fox\u2028by a lake\x85at dusk"
    ranking = Ranking(item="i", dataset="d", prompt=prompt, seed=0, dimension="overall", rater="r",
                      tiers=(("a",), ("b",)), shown=("b", "a"))  # fmt: skip
    write_rankings(tmp_path / "rankings.jsonl", [ranking, ranking])
    assert read_rankings(tmp_path / "rankings.jsonl") == (ranking, ranking)
    for variant in "ab":
        pictures(tmp_path / "fox" / variant, ["x"])
        line = json.dumps({"file": "0-0.png", "prompt": prompt, "seed": 0}, ensure_ascii=False)
        (tmp_path / "fox" / variant / "samples.jsonl").write_text(line + "\n", encoding="utf-8")
    comparison = read_comparison([write(tmp_path / "c.yaml", datasets=[dataset()])])
    assert [item.prompt for item in comparison.items()] == [prompt]


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


def test_pairs_of_many_variants_are_those_that_a_reader_asks_about(tmp_path):
    names = ["base", "a 1x", "b 1x", "a 1.5x", "b 1.5x"]
    variants = [{"name": "base", "pictures": "p/0"}]
    variants += [
        {"name": name, "pictures": f"p/{number}", "run": name[0], "fraction": float(name.split()[1][:-1])}
        for number, name in enumerate(names[1:], start=1)
    ]
    for number in range(5):
        pictures(tmp_path / "p" / str(number), ["one"])
    values = [{"name": "fox", "variants": variants}]
    comparison = read_comparison([write(tmp_path / "c.yaml", datasets=values)])
    assert comparison.pairs == (
        ("base", "a 1.5x"), ("base", "b 1.5x"), ("a 1x", "b 1x"), ("a 1.5x", "b 1.5x"), ("a 1.5x", "b 1x"),
        ("a 1x", "a 1.5x"), ("b 1x", "b 1.5x"),
    )  # fmt: skip
    for variant in variants:
        variant.pop("run", None), variant.pop("fraction", None)
    comparison = read_comparison([write(tmp_path / "c.yaml", datasets=values)])
    assert comparison.pairs == tuple(("base", name) for name in names[1:])


def test_a_prompt_that_is_no_valid_text_still_has_a_key():
    assert len(item_key("d", "\ud800", 0)) == 12
