import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.frechet import FrechetDistance, frechet_distance


def by_sqrtm(x, y):
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    shift = x.mean(0) - y.mean(0)
    return shift @ shift + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * np.trace(root)


def whitened(generator, n, d):
    """Rows with mean exactly 0 and covariance exactly the identity."""
    x = generator.normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_equals_matrix_square_root_for_full_rank(seed, d):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(6 * d, d)) @ generator.normal(size=(d, d)) + 1
    y = generator.normal(size=(5 * d, d)) @ generator.normal(size=(d, d))
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)


def test_closed_form_of_axis_aligned_gaussians():
    # commuting covariances: |mu|^2 + sum (s_x - s_y)^2
    generator = np.random.default_rng(0)
    x = whitened(generator, 40, 3) * np.array([1.0, 2.0, 3.0]) + np.array([1.0, 0.0, -2.0])
    y = whitened(generator, 55, 3) * np.array([2.0, 2.0, 0.5])
    assert frechet_distance(x, y) == pytest.approx(5.0 + 1.0 + 0.0 + 6.25, rel=1e-9)


def test_rank_deficient_sets_in_orthogonal_planes_have_no_overlap_term():
    # S_x S_y = 0, so the distance is |mu|^2 + tr S_x + tr S_y exactly; both sets have fewer rows than columns
    generator = np.random.default_rng(1)
    x, y = np.zeros((5, 20)), np.zeros((7, 20))
    x[:, :3], y[:, 10:14] = whitened(generator, 5, 3), 2 * whitened(generator, 7, 4)
    assert frechet_distance(x, y) == pytest.approx(3 + 16, rel=1e-9)


def test_rank_deficient_agrees_with_the_subspace_that_holds_the_data():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(12, 4)), 2 * generator.normal(size=(9, 4)) + 1
    embed = np.linalg.qr(generator.normal(size=(30, 4)))[0].T
    assert frechet_distance(x @ embed, y @ embed) == pytest.approx(frechet_distance(x, y), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 15), st.integers(3, 15), st.integers(1, 20))
def test_is_symmetric_non_negative_and_zero_to_itself(seed, n, m, d):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) + 0.5
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-8)
    assert frechet_distance(x, y) >= 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)


def test_statistic_of_repeated_rows_equals_the_distance_of_the_repeated_set():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(10, 6)), generator.normal(size=(8, 6)) + 1
    rows = generator.integers(0, 10, size=14)
    statistic = FrechetDistance().statistic(FeatureSet(x, None, y))
    assert statistic(rows) == pytest.approx(frechet_distance(x[rows], y), rel=1e-9)


def test_errors_name_the_fault():
    x = np.ones((4, 3))
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(x[:1], x)
    with pytest.raises(DataError, match="row 2 is not finite"):
        frechet_distance(np.where(np.arange(4)[:, None] == 2, np.nan, x), x)
