"""The noise scale on Gaussian gradients of known covariance, and what tuples do to it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.geometry.noise_scale import (
    NoiseScaleLog,
    UpdateNorms,
    from_two_batch_sizes,
    jackknife_ratio,
    level_cooccurrence,
    relative_progress,
    root_correlation,
    update_norms,
)

MEAN = torch.tensor([2.0, -1.0, 0.5, 0.0]).double()
SCALE = torch.tensor([3.0, 1.0, 2.0, 4.0]).double()
SQUARE, TRACE = MEAN.square().sum().item(), SCALE.square().sum().item()


def test_two_batch_sizes_invert_the_expectation():
    def expected(batch):
        return SQUARE + TRACE / batch

    square, trace = from_two_batch_sizes(expected(2), expected(64), 2, 64)
    assert square == pytest.approx(SQUARE) and trace == pytest.approx(TRACE)
    with pytest.raises(ValueError, match="less than the second"):
        from_two_batch_sizes(1.0, 1.0, 8, 8)


@given(parts=st.integers(2, 6), size=st.integers(1, 5), seed=st.integers(0, 2**31 - 1))
def test_equal_parts_give_the_estimator_of_two_batch_sizes(parts, size, seed):
    gradients = torch.randn(parts, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norms = update_norms(iter(gradients), [size] * parts)
    small = gradients.square().sum(1).mean().item()
    big = gradients.mean(0).square().sum().item()
    expected = from_two_batch_sizes(small, big, size, size * parts)
    assert norms.moments() == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_moments_are_unbiased_for_parts_of_any_size():
    rng, log, sizes = torch.Generator().manual_seed(0), NoiseScaleLog(), [1, 4, 2, 9]
    moments = []
    for _ in range(4000):
        noise = torch.randn(4, 4, generator=rng, dtype=torch.float64) * SCALE
        parts = [MEAN + noise[i] / math.sqrt(size) for i, size in enumerate(sizes)]
        norms = update_norms(parts, sizes)
        log.add(norms)
        moments.append(norms.moments())
    mean, error = np.mean(moments, axis=0), np.std(moments, axis=0) / math.sqrt(4000)
    assert abs(mean[0] - SQUARE) < 4 * error[0] and abs(mean[1] - TRACE) < 4 * error[1]
    found = log.estimate()
    assert found.low < TRACE / SQUARE < found.high
    assert found.simple == pytest.approx(TRACE / SQUARE, rel=0.05)
    assert found.updates == 4000 and found.trace == pytest.approx(mean[1])


def test_intervals_cover_at_their_level():
    rng, held = np.random.default_rng(0), 0
    mean, scale = MEAN.numpy(), SCALE.numpy()
    for _ in range(200):
        log = NoiseScaleLog()
        parts = mean + scale * rng.normal(size=(30, 8, 4))
        for update in parts:
            square = np.square(update).sum()
            log.add(UpdateNorms(8, 8.0, float(square), float(np.square(update.mean(0)).sum())))
        found = log.estimate(confidence=0.9)
        held += found.low <= TRACE / SQUARE <= found.high
    assert 0.83 <= held / 200 <= 0.97


def test_noise_without_a_gradient_has_no_finite_scale():
    rng, log = torch.Generator().manual_seed(1), NoiseScaleLog()
    for _ in range(50):
        log.add(update_norms(torch.randn(4, 100, generator=rng, dtype=torch.float64), [1] * 4))
    found = log.estimate()
    assert found.high == math.inf and found.simple > 100 and found.low > 20


def test_one_update_gives_a_value_and_no_interval():
    log = NoiseScaleLog()
    with pytest.raises(DataError, match="no update"):
        log.estimate()
    log.add(UpdateNorms(parts=2, units=2, part_square=10.0, total_square=4.0))  # trace 2, square 3
    found = log.estimate()
    assert found.simple == pytest.approx(2 / 3) and math.isnan(found.low) and math.isnan(found.high)
    with pytest.raises(DataError, match="at least 2"):
        update_norms([torch.ones(2)], [1])


def test_the_jackknife_of_a_mean_is_the_mean_and_its_standard_error():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    ratio, error = jackknife_ratio(values, np.ones(4))
    assert ratio == pytest.approx(3.5) and error == pytest.approx(values.std(ddof=1) / 2)
    # of 4/3 with 3/2 and 1 left out: 2 (4/3) - (3/2 + 1) / 2
    assert jackknife_ratio(np.array([1.0, 3.0]), np.array([1.0, 2.0]))[0] == pytest.approx(17 / 12)


def test_half_the_progress_at_the_noise_scale():
    assert relative_progress(32, 32.0) == 0.5
    assert relative_progress(1e12, 32.0) == pytest.approx(1)


def roots_of(count, sizes, between, within, rng, shift=None):
    """Slices mean + A_root + E_slice (+ shift of the slice's place), traces 10 between^2 and 10 within^2."""
    roots = {}
    for index in range(count):
        shared = between * torch.randn(10, generator=rng, dtype=torch.float64)
        own = within * torch.randn(sizes[index % len(sizes)], 10, generator=rng, dtype=torch.float64)
        roots[f"root{index}"] = 1 + shared + own + (0 if shift is None else shift[: len(own)])
    return roots


def test_the_correlation_of_a_nested_law_is_recovered():
    found = root_correlation(roots_of(4000, [2, 3, 4], 1.0, 2.0, torch.Generator().manual_seed(0)))
    assert found.between == pytest.approx(10, rel=0.05) and found.within == pytest.approx(40, rel=0.05)
    assert found.rho == pytest.approx(0.2, abs=0.01) and found.slices_per_root == pytest.approx(3, abs=0.01)
    assert found.design_effect == pytest.approx(1.4, abs=0.02)
    assert found.effective_slices_per_root == pytest.approx(3 / 1.4, rel=0.02)


def test_components_are_unbiased_for_few_roots_of_unequal_sizes():
    rng = torch.Generator().manual_seed(2)
    found = [root_correlation(roots_of(3, [1, 2, 9], 1.0, 1.0, rng)) for _ in range(1500)]
    for values in ([one.between for one in found], [one.within for one in found]):
        assert abs(np.mean(values) - 10) < 4 * np.std(values) / math.sqrt(1500)


def test_the_design_effect_is_the_variance_ratio_of_the_mean():
    """Mean of 5 tuples of 3 against 15 slices drawn independently, by simulation."""
    rng = torch.Generator().manual_seed(1)
    found = root_correlation(roots_of(3000, [3], 1.5, 1.0, rng))
    tuples = torch.stack(list(roots_of(10000, [3], 1.5, 1.0, rng).values())).mean(1).view(2000, 5, 10).mean(1)
    single = torch.stack(list(roots_of(30000, [1], 1.5, 1.0, rng).values())).view(2000, 15, 10).mean(1)
    ratio = (tuples.var(0).sum() / single.var(0).sum()).item()
    assert ratio == pytest.approx(found.design_effect, rel=0.05)


def test_tuples_that_balance_levels_have_a_design_effect_below_one():
    shift = torch.zeros(3, 10).double()
    shift[0, 0], shift[1, 0] = 4.0, -4.0
    found = root_correlation(roots_of(2000, [3], 0.0, 0.5, torch.Generator().manual_seed(0), shift))
    # between slices of a root: trace 2.5 of noise and 16 of the levels' means; none of the latter between roots
    assert found.within == pytest.approx(2.5 + 16, rel=0.03)
    assert found.rho < 0 and found.design_effect == pytest.approx(2.5 / (2.5 + 32 / 3), rel=0.05)


def test_correlation_needs_roots_and_slices():
    ones = [torch.ones(2)]
    for slices in ({"a": ones * 3}, {"a": ones, "b": ones}, {}):
        with pytest.raises(DataError, match="at least 2 roots"):
            root_correlation(slices)


@given(shares=st.lists(st.floats(0.05, 1), min_size=2, max_size=4), batch=st.integers(0, 12))
def test_cooccurrence_is_that_of_the_multinomial(shares, batch):
    total = sum(shares)
    named = {f"level{i}": share / total for i, share in enumerate(shares)}
    # by dynamic programming over the set of levels seen so far
    seen = {frozenset(): 1.0}
    for _ in range(batch):
        following: dict[frozenset, float] = {}
        for levels, probability in seen.items():
            for name, share in named.items():
                key = levels | {name}
                following[key] = following.get(key, 0.0) + probability * share
        seen = following
    assert level_cooccurrence(named, batch) == pytest.approx(seen.get(frozenset(named), 0.0), abs=1e-9)


def test_cooccurrence_of_three_equal_levels():
    third = {"macro": 1 / 3, "meso": 1 / 3, "micro": 1 / 3}
    assert level_cooccurrence(third, 3) == pytest.approx(6 / 27)
    assert level_cooccurrence(third, 9) == pytest.approx(0.922, abs=1e-3)
    with pytest.raises(ConfigError, match="must be 1"):
        level_cooccurrence({"macro": 0.5}, 3)
