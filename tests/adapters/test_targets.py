import pytest
from torch import nn

from flowgrain.adapters.targets import find_targets
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
