import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.evaluate.moments import MomentAccumulator, Moments, moments_of, moments_of_chunks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(1, 8), st.lists(st.integers(0, 60), max_size=5))
def test_any_chunks_give_the_covariance_of_numpy(seed, n, d, cuts):
    x = np.random.default_rng(seed).normal(loc=10, size=(n, d))
    found = moments_of_chunks(np.split(x, sorted(min(cut, n) for cut in cuts)))
    assert found.count == n
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.T).reshape(d, d), rtol=1e-10, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(0, 30))
def test_merging_is_adding_the_rows_of_both(seed, n, m):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, 3)), generator.normal(loc=5, size=(m, 3))
    first, second, both = (MomentAccumulator(3) for _ in range(3))
    first.add(x)
    second.add(y)
    first.merge(second)
    both.add(np.concatenate([x, y]))
    assert first.count == both.count
    np.testing.assert_allclose(first.mean, both.mean, rtol=1e-10)
    np.testing.assert_allclose(first.scatter, both.scatter, rtol=1e-10, atol=1e-10)


def test_a_great_offset_does_not_cancel_and_float32_is_summed_in_float64():
    x = np.random.default_rng(0).normal(size=(50_000, 4)).astype(np.float32) + np.float32(1000)
    found = moments_of(x)
    np.testing.assert_allclose(found.covariance, np.cov(x.T.astype(np.float64)), rtol=1e-10)


def test_errors():
    with pytest.raises(DataError, match="at least 2 feature rows, got 1"):
        moments_of(np.ones((1, 3)))
    with pytest.raises(DataError, match="got none"):
        moments_of_chunks([])
    with pytest.raises(DataError, match=r"from row 2 on: feature row 1 is not finite"):
        moments_of_chunks([np.zeros((2, 2)), np.array([[0.0, 1.0], [np.inf, 0.0]])])
    with pytest.raises(DataError, match="not finite"):
        Moments(np.zeros(2), np.full((2, 2), np.nan))
