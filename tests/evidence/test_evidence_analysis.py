"""Intervals of paired differences: closed forms, coverage, and what they must refuse."""

import numpy as np
import pytest
from experiment.analysis import crossed, differences, pooled
from scipy import stats


def test_seeds_alone_give_students_interval():
    values = np.array([[0.3], [0.1], [0.5], [0.2]])
    found = crossed(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values[:, 0]))
    assert (found.value, found.low, found.high) == pytest.approx((0.275, low, high))
    assert found.freedom == pytest.approx(3)


def test_variance_of_crossed_effects_is_unbiased():
    """s^2 / seeds + u^2 / units + e^2 / cells, mean over 4,000 draws."""
    rng = np.random.default_rng(1)
    tables = rng.normal(size=(4000, 5, 1)) * 0.5 + rng.normal(size=(4000, 1, 12)) * 2 + rng.normal(size=(4000, 5, 12))
    found = np.mean([crossed(table).error ** 2 for table in tables])
    assert found == pytest.approx(0.25 / 5 + 4 / 12 + 1 / 60, rel=0.03)


@pytest.mark.parametrize(("by_seed", "by_unit"), [(1.0, 1.0), (0.2, 1.5), (0.0, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(by_seed, by_unit):
    """Crossed random effects, 4 seeds x 38 pictures, three domains pooled: at least 93 % of 1,000 draws."""
    rng = np.random.default_rng(3)

    def domain():
        table = by_seed * rng.normal(size=(4, 1)) + by_unit * rng.normal(size=(1, 38)) + rng.normal(size=(4, 38))
        return crossed(table + 0.7)

    found = [pooled([domain(), domain(), domain()]) for _ in range(1000)]
    assert np.mean([interval.low <= 0.7 <= interval.high for interval in found]) >= 0.93


def test_pooled_is_the_mean_of_independent_domains():
    parts = [crossed(np.array([[v], [v + 1], [v + 3]])) for v in (0.0, 2.0, 7.0)]
    whole = pooled(parts)
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))
    assert whole.error == pytest.approx(np.sqrt(sum(part.error**2 for part in parts)) / 3)
    assert whole.freedom == pytest.approx(6)


def test_differences_pair_by_seed():
    first, second = {0: [1.0, 2.0], 1: [1.0, 1.0]}, {1: [4.0, 5.0], 2: [9.0, 9.0]}
    assert differences(first, second).tolist() == [[3.0, 4.0]]
    with pytest.raises(ValueError, match="share no seed"):
        differences({0: [1.0]}, {1: [1.0]})


def test_one_replicate_claims_nothing():
    assert not crossed(np.array([[2.0]])).excludes_zero
