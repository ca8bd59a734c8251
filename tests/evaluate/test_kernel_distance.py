import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.kid import poly_mmd

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.kernel_distance import (
    KernelDistance,
    PolynomialKernel,
    block_kernel_distance,
    kernel_distance,
)


def brute_force(x, y, k):
    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [k(a, b) for a in x for b in y]
    return np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.integers(2, 8), st.integers(1, 5))
def test_equals_the_double_sum(seed, n, m, d):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(m, d)) + 1
    expected = brute_force(x, y, lambda a, b: (a @ b / d + 1) ** 3)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(1, 8))
def test_equals_torchmetrics_on_equal_numbers(seed, n, d):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, d)), generator.normal(size=(n, d)) + 1
    expected = float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x)))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 16), st.integers(1, 3))
def test_left_out_is_the_distance_of_the_rows_that_are_left(seed, n, k):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, 3)), generator.normal(size=(7, 3)) + 0.5
    clusters = np.split(generator.permutation(n), np.arange(k, n, k))
    value, left_out = KernelDistance().left_out(FeatureSet(x, None, y), clusters)
    assert value == pytest.approx(kernel_distance(x, y), rel=1e-9)
    for rows, found in zip(clusters, left_out, strict=True):
        assert found == pytest.approx(kernel_distance(np.delete(x, rows, axis=0), y), rel=1e-9, abs=1e-12)


def test_too_few_rows_left_is_not_a_number():
    x = np.random.default_rng(5).normal(size=(3, 2))
    left_out = KernelDistance().left_out(FeatureSet(x, None, x), [np.array([0, 1]), np.array([2])])[1]
    assert np.isnan(left_out[0]) and np.isfinite(left_out[1])


def test_memory_does_not_grow_with_the_number_of_pairs():
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(9000, 2)), generator.normal(size=(3000, 2))
    tracemalloc.start()
    value = kernel_distance(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 450e6  # the kernel matrix of x alone takes 648 MB, and its powers as much again
    assert value == pytest.approx(kernel_distance(x[:3000], y), abs=0.05)


def test_linear_kernel_is_the_squared_mean_gap_less_its_bias():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(30, 4)), generator.normal(size=(20, 4)) + 1
    gap = x.mean(0) - y.mean(0)
    bias = np.trace(np.cov(x.T)) / 30 + np.trace(np.cov(y.T)) / 20
    kernel = PolynomialKernel(degree=1, gamma=1.0, coefficient=0.0)
    assert kernel_distance(x, y, kernel) == pytest.approx(gap @ gap - bias, rel=1e-9)


def test_is_unbiased_for_equal_distributions_at_small_samples():
    generator = np.random.default_rng(1)
    values = [kernel_distance(generator.normal(size=(6, 3)), generator.normal(size=(5, 3))) for _ in range(500)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_resampling_adds_no_bias():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(12, 4)), generator.normal(size=(10, 4)) + 1
    statistic = KernelDistance().statistic(FeatureSet(x, None, y))
    assert statistic(np.arange(12)) == pytest.approx(kernel_distance(x, y), rel=1e-12)
    replicates = np.array([statistic(generator.integers(0, 12, size=12)) for _ in range(4000)])
    error = 4 * replicates.std() / np.sqrt(len(replicates))
    assert abs(replicates.mean() - kernel_distance(x, y)) < error + 0.01 * replicates.std()


def test_one_block_of_everything_is_the_full_distance():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(9, 4)), generator.normal(size=(9, 4)) + 1
    mean, spread = block_kernel_distance(x, y, subset_size=9, subsets=3)
    assert mean == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-9)


def test_blocks_are_seeded_and_centre_on_the_full_distance():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(40, 4)), generator.normal(size=(40, 4)) + 1
    first = block_kernel_distance(x, y, subset_size=10, subsets=200, seed=1)
    assert first == block_kernel_distance(x, y, subset_size=10, subsets=200, seed=1)
    assert first[0] == pytest.approx(kernel_distance(x, y), abs=4 * first[1] / np.sqrt(200))


@pytest.mark.parametrize("size", [1, 41])
def test_subset_size_must_fit(size):
    x = np.ones((40, 2))
    with pytest.raises(ConfigError, match="subset_size"):
        block_kernel_distance(x, x, subset_size=size)
