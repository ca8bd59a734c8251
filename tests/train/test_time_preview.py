"""The preview of noise levels and loss weights: the numbers of spec e.1 to e.3, and what a run's plan makes of them."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowgrain.data.dataset import open_dataset
from flowgrain.data.tuples import plan_epoch
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.registry import resolve_model
from flowgrain.flow.time_laws import LinearShift, LogitNormal, UniformTime
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.flow.weightings import Debiased, MinSnr, Uniform
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.time_preview import preview_times, read_recipe
from flowgrain.train.weighted_laws import WeightedLaw, level_of_snr, summarize

FLUX_LINE = "time.resolution_shift={base_tokens: 256, max_tokens: 4096, base_shift: 0.5, max_shift: 1.15}"
SHARED = "time.granularity_shift={macro: 0.5, meso: 0.0, micro: -0.5}"


def preview(name, *overrides, size=None):
    return preview_times(read_recipe(find_recipe(name), list(overrides)), size)


def by_level(found):
    return {level.granularity: level for level in found.levels}


@pytest.mark.parametrize(
    ("side", "mu", "rows"),
    [
        (512, 0.63, [(0.755839, 0.719410, 0.12924, 0.14294), (0.652489, 0.627623, 0.26435, 0.05853),
                     (0.532454, 0.526838, 0.44828, 0.01936)]),
        (1024, 1.15, [(0.838891, 0.800041, 0.04947, 0.29211), (0.759511, 0.722816, 0.12507, 0.14750),
                      (0.657010, 0.631509, 0.25785, 0.06090)]),
        (1280, 1.54, [(0.884933, 0.849116, 0.02068, 0.43753), (0.823465, 0.784406, 0.06178, 0.25552),
                      (0.738850, 0.703810, 0.14917, 0.12359)]),
    ],
)  # fmt: skip
def test_laws_of_flux_are_those_of_the_spec(side, mu, rows):
    """Spec e.1 and e.2; tiny-flux counts tokens as FLUX does, (H / 16) (W / 16)."""
    found = preview("tiny-flux-granularity", FLUX_LINE, SHARED, size=(side, side))
    assert [level.granularity for level in found.levels] == ["macro", "meso", "micro"]
    for level, (median, mean, below, above) in zip(found.levels, rows, strict=True):
        law = level.commonest.modulated
        assert level.commonest.tokens == (side // 16) ** 2
        assert level.commonest.resolution_shift == pytest.approx(mu, abs=1e-12)
        assert law.median == pytest.approx(median, abs=6e-7)
        assert law.mean == pytest.approx(mean, abs=6e-7)
        assert law.below_half == pytest.approx(below, abs=6e-6)
        assert law.above_nine_tenths == pytest.approx(above, abs=6e-6)
        assert law.low < law.median < law.high
    plain = [level.commonest.unmodulated for level in found.levels]
    assert plain[0] == plain[1] == plain[2] == found.levels[1].commonest.modulated


def test_without_a_resolution_shift():
    found = preview("tiny-flux-granularity", SHARED, "time.resolution_shift=none")
    for level, median, mean in zip(found.levels, (0.622459, 0.5, 0.377541), (0.602027, 0.5, 0.397973), strict=True):
        assert level.commonest.resolution_shift is None
        assert level.commonest.modulated.median == pytest.approx(median, abs=6e-7)
        assert level.commonest.modulated.mean == pytest.approx(mean, abs=6e-7)
    assert found.modulates == ("time.granularity_shift",)
    assert [level.weight.loss_share for level in found.levels] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("overrides", "means", "falls"),
    [
        ([], (0.901567, 0.916571, 0.935823), (0.170, 0.147, 0.116)),
        (["path.prediction=v_prediction"], (0.281123, 0.294330, 0.311751), (0.170, 0.147, 0.116)),
        (["path.prediction=v_prediction", "path.zero_terminal_snr=true"], None, (0.161, 0.139, 0.109)),
    ],
)
def test_weights_of_sdxl_are_those_of_the_spec(overrides, means, falls):
    """Spec e.3: tiny-sdxl has SDXL's table."""
    found = preview("tiny-sdxl-granularity", *overrides)
    assert (found.law, found.weighting, found.modulates) == ("uniform", "min_snr", ("weighting.gamma",))
    for level, gamma, t in zip(found.levels, (4.0, 5.0, 7.0), falls, strict=True):
        assert (level.weight.falls_above_snr, level.weight.falls_below_t) == (gamma, t)
    if means:
        weights = [level.weight for level in found.levels]
        assert [weight.mean_weight for weight in weights] == pytest.approx(means, abs=6e-7)
        assert [weight.mean_weight_unmodulated for weight in weights] == pytest.approx([means[1]] * 3, abs=6e-7)
        assert [weight.loss_share for weight in weights] == pytest.approx([m / sum(means) for m in means], abs=1e-6)
        assert [weight.loss_share_unmodulated for weight in weights] == pytest.approx([1 / 3] * 3)


def test_weights_at_single_steps_are_those_of_the_spec():
    path = VariancePreserving(NoiseSchedule())
    side = WeightedLaw(UniformTime(), Debiased(path), {"macro": {1: 1.0}})
    t = (torch.tensor([0, 100, 500, 999], dtype=torch.float64) + 0.5) / 1000
    close = torch.tensor([0.031623, 0.343931, 1.618279, 14.614641], dtype=torch.float64)
    torch.testing.assert_close(side.weight(t, "macro"), close, atol=6e-7, rtol=1e-6)
    torch.testing.assert_close(side.multiplier(t, "macro"), side.weight(t, "macro"))
    assert level_of_snr(path, 1.0) == 0.354
    assert level_of_snr(path, 1e-9) == 1.0


@settings(max_examples=25)
@given(
    delta=st.tuples(*[st.floats(-2, 2)] * 3), std=st.floats(0.3, 1.5), tokens=st.integers(16, 9000),
    mean=st.floats(-1, 1), index=st.integers(0, 2),
)  # fmt: skip
def test_a_summary_is_the_closed_form(delta, std, tokens, mean, index):
    law = LogitNormal(mean, std, delta, LinearShift())
    location = mean + delta[index] + 0.5 + 0.65 / 3840 * (tokens - 256)
    found = summarize(law, ("macro", "meso", "micro")[index], tokens)

    def below(t):
        return 0.5 * math.erfc((location - math.log(t / (1 - t))) / (std * math.sqrt(2)))

    assert found.below_half == pytest.approx(below(0.5), abs=1e-12)
    assert found.above_nine_tenths == pytest.approx(1 - below(0.9), abs=1e-12)
    assert below(found.low) == pytest.approx(0.05, abs=1e-9)
    assert found.median == pytest.approx(1 / (1 + math.exp(-location)), abs=1e-12)


@settings(max_examples=25)
@given(
    delta=st.floats(-1, 1), std=st.floats(0.5, 1.2), shares=st.lists(st.floats(0.05, 1), min_size=2, max_size=4),
    weighting=st.sampled_from(["none", "epsilon", "v_prediction", "sample"]), uniform=st.booleans(),
)  # fmt: skip
def test_the_area_under_the_multiplier_is_share_times_mean_weight(delta, std, shares, weighting, uniform):
    path = VariancePreserving(NoiseSchedule(), "epsilon" if weighting == "none" else weighting)
    planned = {64 * 4**n: share / sum(shares) for n, share in enumerate(shares)}
    side = WeightedLaw(
        UniformTime() if uniform else LogitNormal(0.0, std, (delta, 0.0, -delta), LinearShift()),
        Uniform() if weighting == "none" else MinSnr(path),
        {"macro": planned},
    )
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    area = side.multiplier(t, "macro").mean().item()
    assert area == pytest.approx(side.mean_weight("macro"), rel=2e-4)
    assert side.loss_shares() == {"macro": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Plain folders of large, small and close-up pictures."""
    place = tmp_path_factory.mktemp("sizes")
    for name, size, count in (("large", (256, 256), 5), ("small", (64, 64), 3), ("close", (128, 128), 6)):
        (place / name).mkdir()
        for number in range(count):
            Image.new("RGB", size, (40 * number, size[0] % 251, 90)).save(place / name / f"{name}{number}.png")
    return place


def sources(folders):
    return [
        {"path": str(folders / "large"), "resolution": 256},
        {"path": str(folders / "small"), "resolution": 64},
        {"path": str(folders / "close"), "resolution": 128, "granularity": "micro", "weight": 3.0},
    ]


def of_sources(folders, **sections):
    values = {
        "name": "sizes", "model": "tiny-flux", "data": {"sources": sources(folders)},
        "time": {"granularity_shift": {"macro": 0.5, "micro": -0.5}}, "budget": {"amount": 6},
        "tuples": {"batch_size": 4, "lambdas": {"micro": 2.0}},
    }  # fmt: skip
    return Recipe.model_validate({**values, **sections})


def test_sizes_and_weights_are_those_of_the_plan(folders):
    recipe = of_sources(folders)
    found = preview_times(recipe)
    levels = by_level(found)
    assert not found.assumed and list(levels) == ["macro", "micro"]
    macro, micro = levels["macro"], levels["micro"]
    assert (macro.slices, macro.commonest.size, macro.commonest.slices) == (8, (256, 256), 5)
    assert [(size.size, size.slices) for size in macro.other_sizes] == [((64, 64), 3)]
    assert micro.other_sizes == () and (micro.commonest.tokens, micro.slices) == (64, 6)

    dataset = open_dataset(recipe.data, 16)
    plan = plan_epoch(dataset.table, recipe.tuples, recipe.seed, 0)
    sums = [0.0, 0.0, 0.0]
    for update in plan:
        for batch in update.micro_batches:
            for index, weight in zip(batch.slices, batch.weights, strict=True):
                sums[dataset.slices[index].granularity] += weight
    assert found.updates == len(plan)
    assert micro.weight.planned_share == pytest.approx(sums[2] / sum(sums))
    assert micro.weight.loss_share == pytest.approx(sums[2] / sum(sums))  # omega is 1
    plain = sums[2] / 2  # without lambda
    assert micro.weight.loss_share_unmodulated == pytest.approx(plain / (plain + sums[0]))
    shares = {n: share for level in found.modulated.planned.values() for n, share in level.items()}
    assert shares.keys() == {256, 16, 64} and sum(shares.values()) == pytest.approx(1)


def test_slices_that_the_plan_drops_are_not_counted(folders):
    recipe = of_sources(folders, tuples={"batch_size": 4, "grouping": "slice", "drop_last": True})
    assert sum(level.slices for level in preview_times(recipe).levels) == 12  # of 14


def test_equal_sizes_have_no_spread(folders):
    recipe = of_sources(folders, data={"path": str(folders / "large"), "resolution": 256, "holdout": 0.4})
    (level,) = preview_times(recipe).levels
    assert level.other_sizes == () and level.slices == 3  # two of five are held out


def test_configuration_files_are_enough(tmp_path):
    folder = tmp_path / "no-weights"
    shutil.copytree(resolve_model("tiny-sdxl"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found = preview("tiny-sdxl-granularity", f"model.path={folder}")
    assert by_level(found)["macro"].weight.mean_weight == pytest.approx(0.901567, abs=6e-7)


@pytest.mark.parametrize(
    ("overrides", "size", "words"),
    [
        ([], None, ("128x128 (the model's own size)", "the recipe names no data")),
        (["data.path=nowhere"], None, ("128x128", "nowhere is not there")),
        (["data.resolution=100"], None, ("96x96 (data.resolution)",)),
        (["data.buckets=[[64, 96], [96, 64]]"], None, ("64x96 (the first of data.buckets)",)),
        (["data.sources=[{path: nowhere, resolution: 64}]"], None, ("64x64 (data.resolution)", "nowhere is not")),
        ([], (160, 96), ("160x96 (--size)",)),
    ],
)
def test_assumed_sizes_are_named(overrides, size, words):
    found = preview("tiny-flux-granularity", *overrides, size=size)
    assert found.assumed and found.updates is None and all(level.slices is None for level in found.levels)
    assert all(word in found.sizes for word in ("assumed", "one slice of each granularity", *words)), found.sizes


def test_lambdas_share_an_assumed_plan():
    levels = by_level(preview("tiny-flux-baseline", "tuples.lambdas={macro: 1, meso: 2, micro: 5}"))
    assert [levels[name].weight.planned_share for name in ("macro", "meso", "micro")] == pytest.approx(
        [1 / 8, 2 / 8, 5 / 8]
    )
    assert levels["micro"].weight.loss_share_unmodulated == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("name", "overrides", "size", "error", "words"),
    [
        ("tiny-flux-granularity", [], (100, 128), ConfigError, "--size 100x128.*16 px"),
        ("tiny-flux-granularity", ["data.resolution=8"], None, ConfigError, "data.resolution: 8 is below the 16 px"),
        ("tiny-flux-granularity", ["weighting.kind=min_snr"], None, ConfigError, "flow-matching model"),
        ("tiny-sdxl-granularity", [SHARED], None, ConfigError, "granularity_shift is not read"),
        ("tiny-flux-granularity", ["model.path=no/such/model"], None, ModelError, "no/such/model"),
        ("tiny-flux-granularity", ["data=5"], None, ConfigError, "data"),
    ],
)
def test_what_cannot_be_previewed_is_refused(name, overrides, size, error, words):
    with pytest.raises(error, match=words):
        preview(name, *overrides, size=size)
