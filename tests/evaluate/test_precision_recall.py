import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.precision_recall import (
    ManifoldMetric,
    density_coverage,
    nearest_distances,
    overlap,
    precision_recall,
    squared_distances,
)

SEEDS = st.integers(0, 2**31)
KINDS = ("precision", "recall", "density", "coverage")


def brute_force(x, y, k):
    """The four numbers from their definitions, one pair at a time."""

    def reach(rows):
        return [sorted(np.sum((a - b) ** 2) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    reach_x, reach_y = reach(x), reach(y)
    near = [[np.sum((a - b) ** 2) for b in y] for a in x]
    in_reference = [[near[i][j] <= reach_y[j] for j in range(len(y))] for i in range(len(x))]
    in_generated = [[near[i][j] <= reach_x[i] for j in range(len(y))] for i in range(len(x))]
    return (
        np.mean([any(row) for row in in_reference]),
        np.mean([any(column) for column in zip(*in_generated, strict=True)]),
        np.mean([sum(row) for row in in_reference]) / k,
        np.mean([any(column) for column in zip(*in_reference, strict=True)]),
    )


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(6, 15), st.integers(6, 15), st.integers(1, 6), st.integers(1, 5), st.integers(2, 20))
def test_equals_the_definitions_in_any_blocks(seed, n, m, d, k, block):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) + 0.5
    found = overlap(x, y, k, block=block)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(brute_force(x, y, k))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(6, 30), st.integers(1, 6))
def test_equal_sets_have_precision_recall_and_coverage_one(seed, n, d):
    x = np.random.default_rng(seed).normal(size=(n, d)) + 100
    order = np.random.default_rng(seed + 1).permutation(n)
    assert precision_recall(x, x[order]) == (1, 1)
    density, coverage = density_coverage(x, x[order])
    assert coverage == 1
    # each reference's ball holds the k neighbours and the row itself
    assert density == pytest.approx((5 + 1) / 5)


def test_sets_far_apart_have_none():
    x = np.random.default_rng(0).normal(size=(20, 4))
    assert precision_recall(x, x + 1000) == (0, 0)
    assert density_coverage(x, x + 1000) == (0, 0)


def test_dropped_mode_costs_recall_and_not_precision():
    generator = np.random.default_rng(1)
    modes = np.array([[0.0, 0.0], [50.0, 0.0]])
    references = np.concatenate([generator.normal(size=(200, 2)) + mode for mode in modes])
    precision, recall = precision_recall(generator.normal(size=(300, 2)), references)
    assert precision > 0.95 and 0.4 < recall < 0.5
    precision, recall = precision_recall(references, references[:200])
    assert precision == 0.5 and recall == 1


def test_copies_have_empty_balls_that_still_hold_their_own_place():
    x = np.repeat(np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32) + 1000, 6, axis=0)
    np.testing.assert_array_equal(nearest_distances(x, 3), np.zeros(18))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x + 1e-2, x) == (0, 0)


def test_expected_values_of_two_samples_of_one_distribution():
    # Naeem et al. 2020, Eq. 5: E density = 1, E coverage = 1 - (m-1)...(m-k) / ((n+m-1)...(n+m-k)), m references
    generator = np.random.default_rng(3)
    found = [density_coverage(generator.normal(size=(60, 3)), generator.normal(size=(80, 3))) for _ in range(60)]
    densities, coverages = np.array(found).T
    missed = np.prod([(80 - 1 - i) / (60 + 80 - 1 - i) for i in range(5)])
    assert densities.mean() == pytest.approx(1, abs=4 * densities.std() / np.sqrt(60))
    assert coverages.mean() == pytest.approx(1 - missed, abs=4 * coverages.std() / np.sqrt(60))


def test_distances_do_not_cancel_far_from_the_origin():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(6, 3)) + 1e4, generator.normal(size=(5, 3)) + 1e4
    expected = np.square(x[:, None] - y).sum(axis=2)
    np.testing.assert_allclose(squared_distances(x, y), expected, rtol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from(KINDS), st.integers(1, 4))
def test_left_out_is_the_number_without_the_prompts_balls(seed, kind, k):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(18, 3)), generator.normal(size=(15, 3))
    clusters = np.split(generator.permutation(18), [3, 4, 9, 12, 15])
    metric = ManifoldMetric(kind, k)
    features = FeatureSet(x, None, y)
    value, left_out = metric.left_out(features, clusters)
    reach_x, reach_y = nearest_distances(x, k), nearest_distances(y, k)
    near = squared_distances(x, y)
    for rows, found in zip(clusters, left_out, strict=True):
        kept = np.delete(np.arange(18), rows)
        in_reference, in_generated = near[kept] <= reach_y, near[kept] <= reach_x[kept, None]
        expected = {
            "precision": in_reference.any(axis=1).mean(),
            "recall": in_generated.any(axis=0).mean(),
            "density": in_reference.sum(axis=1).mean() / k,
            "coverage": in_reference.any(axis=0).mean(),
        }[kind]
        assert found == pytest.approx(expected, abs=1e-12)
    assert value == pytest.approx(metric.statistic(features)(np.arange(18)))


def test_shared_overlap_follows_the_clusters():
    generator = np.random.default_rng(5)
    features = FeatureSet(generator.normal(size=(12, 2)), None, generator.normal(size=(12, 2)))
    metric = ManifoldMetric("recall")
    singles = [np.array([row]) for row in range(12)]
    pairs = list(np.arange(12).reshape(-1, 2))
    first = metric.left_out(features, singles)[1]
    assert len(metric.left_out(features, pairs)[1]) == 6
    np.testing.assert_array_equal(metric.left_out(features, singles)[1], first)


def test_errors():
    x = np.random.default_rng(6).normal(size=(10, 2))
    with pytest.raises(DataError, match="references: 3 feature rows, this metric needs at least 4"):
        precision_recall(x, x[:3])
    with pytest.raises(ConfigError, match="neighbour number 0"):
        overlap(x, x, 0)
