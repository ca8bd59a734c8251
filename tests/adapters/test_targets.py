import pytest
from torch import nn

from flowgrain.adapters.targets import also_matched, find_targets, values_by_layer
from flowgrain.errors import ConfigError


@pytest.fixture(scope="module")
def model():
    blocks = [
        nn.ModuleDict({"proj_out": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "net": nn.Sequential(nn.Linear(2, 2))})
        for _ in range(12)
    ]
    return nn.ModuleDict({"blocks": nn.ModuleList(blocks), "proj_out": nn.Linear(2, 2)})


def test_suffixes_full_names_and_patterns(model):
    assert len(find_targets(model, ["proj_out"])) == 13
    assert list(find_targets(model, ["blocks.1.proj_out"])) == ["blocks.1.proj_out"]
    assert len(find_targets(model, ["blocks.*.proj_out"])) == 12
    assert list(find_targets(model, ["blocks.1*.net.0"])) == ["blocks.1.net.0", "blocks.10.net.0", "blocks.11.net.0"]


def test_overlapping_targets_count_once_and_keep_module_order(model):
    both = find_targets(model, ["proj_out", "blocks.*.net.0", "blocks.3.proj_out"])
    assert list(both)[:2] == ["blocks.0.proj_out", "blocks.0.net.0"]
    assert len(both) == 25


@pytest.mark.parametrize(
    ("target", "hint"),
    [("proj_ou", "did you mean 'proj_out'"), ("zzz", r"there are: blocks\.\*\.net")],
)
def test_targets_that_name_nothing(model, target, hint):
    with pytest.raises(ConfigError, match=hint):
        find_targets(model, [target])


def test_exclusions_take_out_what_they_name(model):
    kept = find_targets(model, ["proj_out", "net.0"], ["blocks.1*.proj_out", "net.0"])
    assert "proj_out" in kept and "blocks.2.proj_out" in kept
    assert not {"blocks.1.proj_out", "blocks.10.proj_out", "blocks.11.proj_out", "blocks.0.net.0"} & kept.keys()
    assert len(kept) == 10


def test_exclusions_of_nothing_or_everything_are_refused(model):
    with pytest.raises(ConfigError, match=r"adapter\.exclude: 'net\.0' names none of the adapter's layers; there are"):
        find_targets(model, ["proj_out"], ["net.0"])
    with pytest.raises(ConfigError, match="takes out all 13 layers"):
        find_targets(model, ["proj_out"], ["proj_out"])


def test_values_by_layer_refuses_contradictions_and_patterns_of_nothing():
    layers = ["blocks.0.a", "blocks.0.b", "blocks.1.a"]
    assert values_by_layer("adapter.ranks", {"blocks.0.*": 2, "blocks.1.a": 3}, layers) == {
        "blocks.0.a": 2,
        "blocks.0.b": 2,
        "blocks.1.a": 3,
    }
    assert values_by_layer("adapter.ranks", {"a": 2, "blocks.1.a": 2}, layers) == {"blocks.0.a": 2, "blocks.1.a": 2}
    with pytest.raises(ConfigError, match=r"blocks\.1\.a gets 2 from 'a' and 3 from 'blocks\.1\.a'"):
        values_by_layer("adapter.ranks", {"a": 2, "blocks.1.a": 3}, layers)
    with pytest.raises(ConfigError, match=r"adapter\.alphas: 'c' names none"):
        values_by_layer("adapter.alphas", {"c": 2.0}, layers)


def test_layers_that_peft_would_add_are_found(model):
    assert also_matched(model, ["blocks.1.proj_out"]) == []
    assert len(also_matched(model, ["proj_out", "blocks.1.proj_out"])) == 11
