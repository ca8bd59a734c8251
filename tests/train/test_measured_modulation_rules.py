"""The rules of measured modulation on numbers whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.data.records import MicroBatch, Update
from flowgrain.data.weights import refactored
from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.time_laws import LogitNormal
from flowgrain.geometry.level_weights import balanced_weights
from flowgrain.train.modulation_rules import (
    ERRORS,
    Centres,
    HeldOut,
    centres,
    gammas_at,
    kept_part,
    level_factors,
    shifts_of,
    target_shift,
)
from flowgrain.train.validation import NOISE_LEVELS

TIMES = torch.tensor(NOISE_LEVELS, dtype=torch.float64)
NO_TABLE = np.zeros(3)


def held_out(roots=40, levels=3):
    """Every root has one slice of each level."""
    zeros = torch.zeros(len(TIMES), dtype=torch.long)
    return HeldOut(
        granularity=np.tile(np.arange(levels), roots),
        root=np.repeat(np.arange(roots), levels),
        position=torch.logit(TIMES).numpy(),
        density=LogitNormal().density(TIMES, zeros, zeros).numpy(),
    )


def bump(at, width=0.5):
    """A gain around the noise level of logit ``at``."""
    return np.exp(-0.5 * np.square((torch.logit(TIMES).numpy() - at) / width))


def gains(rows, roots=40, noise=0.0, seed=0):
    generator = np.random.default_rng(seed)
    return np.tile(np.stack(rows), (roots, 1)) + noise * generator.normal(size=(roots * len(rows), len(TIMES)))


def test_the_position_of_a_noise_level_is_logit_t_on_a_rectified_flow():
    assert np.allclose(-0.5 * RectifiedFlow().snr(TIMES).log().numpy(), torch.logit(TIMES).numpy(), rtol=1e-12)


def test_centres_are_weighted_means_and_what_differs_is_their_offset():
    data = held_out()
    rows = [bump(1.0), bump(0.0), bump(-1.0)]
    weights = [row * data.density for row in rows]
    expected = np.array([np.average(data.position, weights=w) for w in weights])
    found = centres(gains(rows), data)
    assert found.offset == pytest.approx(expected - expected.mean(), rel=1e-12)
    assert found.offset[0] > 0.3 and found.offset[1] == pytest.approx(0, abs=1e-12) and found.offset[2] < -0.3
    assert found.error == pytest.approx(np.zeros(3), abs=1e-9)  # all roots are alike


def test_levels_that_gain_alike_have_no_offset_whatever_they_gain():
    found = centres(gains([bump(0.7), 20 * bump(0.7), 0.01 * bump(0.7)]), held_out())
    assert found.offset == pytest.approx(np.zeros(3), abs=1e-12)


def test_a_loss_that_rose_counts_as_no_gain():
    rows = [bump(1.0), bump(0.0), bump(-1.0)]
    worse = [row - 0.2 * (row < 1e-3) for row in rows]
    clipped = [row * (row >= 1e-3) for row in rows]
    assert centres(gains(worse), held_out()).offset == pytest.approx(centres(gains(clipped), held_out()).offset)


def test_the_jackknife_error_is_the_spread_over_new_held_out_roots():
    rows = [1 + bump(0.5), 1 + bump(0.0), 1 + bump(-0.5)]
    found = [centres(gains(rows, noise=0.5, seed=seed), held_out()) for seed in range(200)]
    spread = np.std([one.offset for one in found], axis=0)
    assert np.mean([one.error for one in found], axis=0) == pytest.approx(spread, rel=0.15)


def test_a_granularity_that_has_not_clearly_learned_leaves_the_table():
    """Noise without a mean has a centre once negative gains count as none."""
    found = [centres(gains([1 + bump(1), 1 + bump(0), 0 * bump(0)], noise=1.0, seed=seed), held_out())
             for seed in range(100)]  # fmt: skip
    assert np.mean([np.isfinite(one.offset).any() for one in found]) < 0.08
    pure = [centres(gains([0 * bump(0)] * 3, noise=1.0, seed=seed), held_out()) for seed in range(100)]
    assert not any(np.isfinite(one.offset).any() for one in pure)


def test_granularities_with_few_roots_are_not_measured():
    data = held_out(roots=6)
    few = HeldOut(np.where(data.root < 3, data.granularity, 0), data.root, data.position, data.density)
    assert few.measurable == [0]
    assert np.isnan(centres(gains([bump(0)] * 3, roots=6), few).offset).all()
    some = HeldOut(np.where(data.granularity == 2, 1, data.granularity), data.root, data.position, data.density)
    found = centres(gains([bump(1), bump(-1), bump(-1)], roots=6), some)
    assert np.isnan(found.offset[2]) and found.offset[0] == pytest.approx(-found.offset[1], rel=1e-12)


def test_without_a_gain_the_table_holds():
    nowhere = centres(gains([-bump(0), bump(0), bump(0)]), held_out())
    assert np.isnan(nowhere.offset).all()
    table = np.array([0.5, 0.0, -0.5])
    target = target_shift(nowhere, table, 1.0)
    assert np.array_equal(target.shift, table) and target.kept == 0


def test_what_is_not_told_from_noise_is_the_table_and_what_is_clear_replaces_it():
    table, offset = np.array([0.5, 0.0, -0.5]), np.array([0.2, 0.0, -0.2])
    noisy = target_shift(Centres(offset, np.full(3, 0.2)), table, 1.0)
    assert np.array_equal(noisy.shift, table) and noisy.kept == 0
    assert target_shift(Centres(offset, np.full(3, 1e-6)), table, 1.0).shift == pytest.approx(offset, abs=1e-6)
    between = target_shift(Centres(offset, np.full(3, 0.05)), table, 1.0)
    assert between.kept == pytest.approx(1 - ERRORS**2 * 3 * 0.05**2 / (2 * 0.3**2))
    assert between.shift == pytest.approx(table + between.kept * (offset - table))


def test_noise_alone_rarely_moves_anything():
    """Gains without a difference between the levels: the table of zeros holds in nineteen of twenty runs or more."""
    found = [target_shift(centres(gains([1 + bump(0)] * 3, noise=1.0, seed=s), held_out()), NO_TABLE, 1.0)
             for s in range(200)]  # fmt: skip
    assert np.mean([target.kept > 0 for target in found]) < 0.05
    assert max(np.abs(target.shift).max() for target in found) < 0.5


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.floats(0.1, 2), st.floats(-1, 1))
def test_shifts_stay_in_bounds_and_keep_the_mean_of_the_table(values, bound, mean):
    offset = np.array(values) - np.mean(values)
    table = np.full(3, mean)
    target = target_shift(Centres(offset, np.full(3, 1e-3)), table, bound)
    assert target.shift.mean() == pytest.approx(mean, abs=1e-9)
    assert np.abs(target.shift - mean).max() <= bound * (1 + 1e-12)
    order = [2, 0, 1]
    turned = target_shift(Centres(offset[order], np.full(3, 1e-3)), table, bound)
    assert turned.shift == pytest.approx(target.shift[order], abs=1e-12)


def test_one_constant_reproduces_the_papers_gammas_as_nearly_as_one_can():
    shifts, table = np.array([0.5, 0.0, -0.5]), np.array([4.0, 5.0, 7.0])
    found = gammas_at(np.full(3, 5.0), shifts, (1.0, 20.0))
    assert found == pytest.approx([3.780, 5.0, 6.614], abs=1e-3)
    error = np.square(np.log(found / table)).sum()
    for c in np.linspace(0.3, 0.9, 61):
        assert np.square(np.log(5 * np.exp(-c * shifts) / table)).sum() >= error - 1e-12
    assert found[2] / found[0] == pytest.approx(7 / 4)


def test_gammas_of_the_table_are_the_table_and_bounds_hold():
    table = np.array([4.0, 5.0, 7.0])
    assert np.array_equal(gammas_at(table, np.zeros(3), (1.0, 20.0)), table)
    assert gammas_at(table, np.array([9.0, 0.0, -9.0]), (1.0, 20.0)).tolist() == [1.0, 5.0, 20.0]
    shifts = shifts_of(table)
    assert shifts.mean() == pytest.approx(0, abs=1e-12) and shifts[0] > shifts[1] > shifts[2]
    middle = np.full(3, math.prod(table.tolist()) ** (1 / 3))
    assert gammas_at(middle, shifts, (1.0, 20.0)) == pytest.approx(table)


def test_the_kept_part_is_0_within_two_errors_and_1_without_error():
    assert kept_part(4.0, 1.0) == 0 and kept_part(4.0, 1.01) == 0
    assert kept_part(8.0, 1.0) == 0.5 and kept_part(3.0, 0.0) == 1
    assert kept_part(0.0, 0.0) == 0 and kept_part(1.0, math.inf) == 0 and kept_part(1.0, math.nan) == 0


CONFLICT = np.array([[1.0, -1.2, 0.1], [-1.2, 9.0, 0.0], [0.1, 0.0, 4.0]])


def measured(gram, count, noise, seed=0):
    generator = np.random.default_rng(seed)
    drawn = noise * generator.normal(size=(count, 3, 3))
    return gram + (drawn + drawn.transpose(0, 2, 1)) / 2


def test_factors_of_a_clear_conflict_raise_the_loser():
    found = level_factors(measured(CONFLICT, 10, 1e-6), 8, (0.5, 2.0))
    assert found.weights == pytest.approx(balanced_weights(CONFLICT, 0.5, 2.0), abs=1e-4) and not found.reason
    assert found.weights[0] > 1.2 and found.progress[0] < 0


def test_factors_of_conflicts_within_noise_are_1():
    found = level_factors(measured(np.diag([1.0, 9.0, 4.0]), 10, 0.3), 8, (0.5, 2.0))
    assert found.weights == pytest.approx(np.ones(3), abs=0.05) and not found.reason


@pytest.mark.parametrize(
    ("grams", "reason"),
    [
        (measured(CONFLICT, 7, 1e-6), "7 of 8 measurements"),
        (measured(np.diag([0.01, 9.0, 4.0]), 10, 1.0), "the gradient of macro is not told from noise"),
        (measured(CONFLICT, 10, 1e-6) * np.where(np.eye(3) + np.eye(3)[0] > 1, 1, np.nan), "fewer than two"),
        (np.full((10, 3, 3), np.nan), "fewer than two"),
    ],
)
def test_factors_are_1_where_they_cannot_be_told(grams, reason):
    found = level_factors(grams, 8, (0.5, 2.0))
    assert np.array_equal(found.weights, np.ones(3)) and reason in found.reason


def test_a_level_that_is_never_there_keeps_1():
    grams = measured(CONFLICT, 10, 1e-6)
    grams[:, 2] = grams[:, :, 2] = np.nan
    found = level_factors(grams, 8, (0.5, 2.0))
    assert found.weights[2] == 1 and np.isnan(found.progress[2])
    assert found.weights[:2] == pytest.approx(balanced_weights(CONFLICT[:2, :2], 0.5, 2.0), abs=1e-4)


@settings(max_examples=30)
@given(st.lists(st.floats(0.5, 2), min_size=3, max_size=3), st.integers(1, 4))
def test_factored_weights_keep_their_sum_and_their_ratios(factors, size):
    weights = np.linspace(0.02, 0.2, 10)
    batches = [MicroBatch(np.arange(i, min(i + size, 10)), weights[i : i + size]) for i in range(0, 10, size)]
    update = Update(3, 1, 4, tuple(batches))
    each = np.array(factors)[np.arange(10) % 3]
    found = refactored(update, each)
    flat = np.concatenate([batch.weights for batch in found.micro_batches])
    assert flat.sum() == pytest.approx(weights.sum(), rel=1e-12)
    assert flat / weights == pytest.approx((flat[0] / weights[0]) * each / each[0], rel=1e-9)
    assert (found.epoch, found.index, found.roots) == (3, 1, 4)
    assert all(np.array_equal(a.slices, b.slices) for a, b in zip(found.micro_batches, batches, strict=True))
