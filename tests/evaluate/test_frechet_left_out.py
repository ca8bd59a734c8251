import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.evaluate import frechet_left_out
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.bootstrap import Bootstrap, cluster_rows, influence_replicates
from flowgrain.evaluate.frechet import FrechetDistance, frechet_distance
from flowgrain.evaluate.moments import moments_of


def left_out(x, y, clusters):
    return FrechetDistance().left_out(FeatureSet(x, None, y), clusters)


def one_by_one(x, y, clusters):
    return np.array([frechet_distance(np.delete(x, rows, axis=0), y) for rows in clusters])


def check(x, y, clusters):
    estimate, values = left_out(x, y, clusters)
    expected = one_by_one(x, y, clusters)
    assert estimate == pytest.approx(frechet_distance(x, y), rel=1e-9)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    # what the interval is made of is their spread
    spread = np.abs(expected - expected.mean()).max()
    np.testing.assert_allclose(values - values.mean(), expected - expected.mean(), atol=1e-4 * spread)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(6, 30), st.integers(3, 30), st.integers(1, 25), st.integers(1, 4))
def test_equals_the_distance_of_the_rows_that_are_left(seed, n, m, d, k):
    generator = np.random.default_rng(seed)
    scales = np.geomspace(1, 0.1, d)
    x, y = generator.normal(size=(n, d)) * scales + 0.3, generator.normal(size=(m, d)) * scales
    sizes = np.split(generator.permutation(n), np.arange(k, n, k))
    check(x, y, sizes)


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 60), (40, 90, 20), (60, 15, 30)])
def test_copies_of_a_picture_in_one_prompt_and_in_several(n, m, d):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) + 0.2
    x[5], x[17] = x[4], x[4]
    check(x, y, list(np.arange(n).reshape(-1, 2)))


def test_a_prompt_with_most_of_the_pictures():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(50, 8)), generator.normal(size=(40, 8))
    check(x, y, [np.arange(0, 40), np.arange(40, 45), np.array([45]), np.arange(46, 50)])


def test_blocks_of_clusters_do_not_matter(monkeypatch):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(60, 10)), generator.normal(size=(40, 10))
    clusters = list(np.arange(60).reshape(-1, 2))
    whole = left_out(x, y, clusters)[1]
    monkeypatch.setattr(frechet_left_out, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(left_out(x, y, clusters)[1], whole, rtol=1e-12)


def test_too_few_rows_left_is_not_a_number():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(4, 3)), generator.normal(size=(9, 3))
    values = left_out(x, y, [np.arange(3), np.array([3])])[1]
    assert np.isnan(values[0]) and np.isfinite(values[1])


def test_published_moments_serve_as_well():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(30, 5)), generator.normal(size=(50, 5))
    clusters = [np.array([row]) for row in range(30)]
    features = FeatureSet(x, None, np.empty((0, 5)))
    estimate, values = FrechetDistance(moments_of(y), "y").left_out(features, clusters)
    expected, expected_values = left_out(x, y, clusters)
    assert estimate == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(values, expected_values, rtol=1e-7)


def test_spread_of_the_replicates_is_the_true_standard_error():
    # 60 dimensions, 100 pictures, fixed references; the simulation is the truth
    generator = np.random.default_rng(5)
    y = generator.normal(size=(150, 60))
    names = [f"{row:03d}" for row in range(100)]
    clusters = list(cluster_rows(names).values())
    bootstrap = Bootstrap(resamples=400)
    estimates, errors = [], []
    for _ in range(60):
        x = generator.normal(size=(100, 60)) + 0.2
        estimate, values = left_out(x, y, clusters)
        estimates.append(estimate)
        errors.append(influence_replicates(estimate, values, bootstrap).std())
    # 60 repetitions know a standard deviation to 9 %; the jackknife errs upwards if at all
    assert 0.8 < np.mean(errors) / np.std(estimates) < 1.4


def test_references_without_variance_leave_means_and_traces():
    x = np.random.default_rng(6).normal(size=(12, 3))
    check(x, np.full((5, 3), 0.5), [np.array([row]) for row in range(12)])
