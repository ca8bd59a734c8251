import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.frechet import FrechetDistance, frechet_distance, frechet_distance_of_moments
from flowgrain.evaluate.gaussian import fit_gaussian, gaussian_of_moments, nuclear_norm
from flowgrain.evaluate.moments import Moments, moments_of

SEEDS = st.integers(0, 2**31)


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
@given(SEEDS, st.integers(2, 12))
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
@given(SEEDS, st.integers(3, 15), st.integers(3, 15), st.integers(1, 20))
def test_is_symmetric_non_negative_and_zero_to_itself(seed, n, m, d):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) + 0.5
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-8)
    assert frechet_distance(x, y) >= 0
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 12))
def test_moments_give_the_distance_of_the_features_and_of_torchmetrics(seed, d):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(4 * d, d)) @ generator.normal(size=(d, d)) + 1
    y = generator.normal(size=(5 * d, d)) @ generator.normal(size=(d, d))
    a, b = moments_of(x), moments_of(y)
    tensors = [torch.from_numpy(part) for part in (a.mean, a.covariance, b.mean, b.covariance)]
    assert frechet_distance_of_moments(a, b) == pytest.approx(float(_compute_fid(*tensors)), rel=1e-6)
    assert frechet_distance_of_moments(a, b) == pytest.approx(frechet_distance(x, y), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 10), st.integers(3, 25), st.integers(3, 25))
def test_a_shared_rotation_and_shift_change_nothing(seed, d, n, m):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), 2 * generator.normal(size=(m, d))
    rotation = np.linalg.qr(generator.normal(size=(d, d)))[0]
    moved = [rows @ rotation + 3 for rows in (x, y)]
    assert frechet_distance(*moved) == pytest.approx(frechet_distance(x, y), rel=1e-7)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 10), st.integers(2, 25))
def test_a_shifted_copy_lies_at_the_squared_shift(seed, d, n):
    generator = np.random.default_rng(seed)
    x, shift = generator.normal(size=(n, d)), generator.normal(size=d)
    assert frechet_distance(x + shift, x) == pytest.approx(shift @ shift, rel=1e-7)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 6))
def test_rank_deficient_covariances_have_the_closed_form_of_their_shared_axes(seed, shared, extra):
    # diagonal covariances: |mu|^2 + sum (s_x - s_y)^2, zero deviations included
    generator = np.random.default_rng(seed)
    s_x = np.concatenate([generator.uniform(0.5, 2, shared), np.zeros(extra)])
    s_y = np.concatenate([generator.uniform(0.5, 2, shared - 1), np.zeros(2), generator.uniform(0.5, 2, extra - 1)])
    mean = generator.normal(size=shared + extra)
    x, y = Moments(mean, np.diag(s_x**2)), Moments(np.zeros_like(mean), np.diag(s_y**2))
    assert frechet_distance_of_moments(x, y) == pytest.approx(mean @ mean + np.square(s_x - s_y).sum(), rel=1e-9)


def test_moments_of_few_rows_agree_with_the_rows_though_cholesky_fails():
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(7, 40)), generator.normal(size=(60, 40)) + 0.3
    for count in (7, None):
        a = Moments(x.mean(0), np.cov(x.T), count)
        assert frechet_distance_of_moments(a, moments_of(y)) == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert len(gaussian_of_moments(moments_of(x)).factor) == 6


def test_a_feature_that_never_moves_is_no_obstacle():
    # dead channels: more rows than columns, yet a singular covariance
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(50, 6)), generator.normal(size=(50, 6))
    x[:, 2] = y[:, 2] = y[:, 4] = 0.25
    live = [0, 1, 3, 4, 5]
    expected = frechet_distance(x[:, live], y[:, live])
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_moments(moments_of(x), moments_of(y)) == pytest.approx(expected, rel=1e-7)


def test_repeating_every_row_changes_the_normalisation_alone():
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(8, 12)), generator.normal(size=(9, 12))
    a, b = fit_gaussian(np.tile(x, (3, 1)), "x"), moments_of(y)
    scaled = Moments(x.mean(0), np.cov(x.T) * (3 * 7) / (3 * 8 - 1), None)
    np.testing.assert_allclose(a.factor.T @ a.factor, scaled.covariance, atol=1e-12)
    expected = frechet_distance_of_moments(scaled, b)
    assert frechet_distance(np.tile(x, (3, 1)), y) == pytest.approx(expected, rel=1e-7)


def test_many_rows_are_summed_in_blocks():
    generator = np.random.default_rng(8)
    x = (generator.normal(size=(9001, 5)) @ generator.normal(size=(5, 5)) + 100).astype(np.float32)
    fitted = fit_gaussian(x, "x")
    assert fitted.factor.shape == (5, 5)
    np.testing.assert_allclose(fitted.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(fitted.factor.T @ fitted.factor, np.cov(x.T.astype(np.float64)), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.floats(-9, 0))
def test_nuclear_norm_is_right_whatever_the_spectrum(seed, a, b, least):
    generator = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(generator.normal(size=(a, b)), full_matrices=False)
    singular = np.geomspace(1, 10**least, min(a, b))
    assert nuclear_norm((u * singular) @ v) == pytest.approx(singular.sum(), rel=1e-9)


def test_published_references_name_the_metric_and_take_the_place_of_the_pool():
    generator = np.random.default_rng(9)
    x, y = generator.normal(size=(30, 4)), generator.normal(size=(50, 4))
    metric = FrechetDistance(moments_of(y), "ImageNet 256")
    features = FeatureSet(x, None, np.empty((0, 4)))
    assert metric.title == "Frechet distance to ImageNet 256"
    assert metric.reference_count(features) == 50
    assert metric.statistic(features)(np.arange(30)) == pytest.approx(frechet_distance(x, y), rel=1e-9)


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
