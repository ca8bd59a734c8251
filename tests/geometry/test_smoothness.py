"""The target field's exact Jacobian against autograd, its norm, and its course with the size of the data."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry import smoothness
from flowgrain.geometry.smoothness import (
    covariance_product,
    field_jacobian,
    jacobian_vector_product,
    local_law,
    operator_norm,
    smoothness_by_count,
)

FLOW = RectifiedFlow()
PATHS = pytest.mark.parametrize("path", [FLOW, VariancePreserving(NoiseSchedule())], ids=["flow", "vp"])
seeds = st.integers(0, 2**31 - 1)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def field(x, data, path, t):
    """Eq. 12 as it is written: conditional fields weighted by conditional densities."""
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    alpha, sigma, d_alpha, d_sigma = (v.double().view(()) for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
    conditional = d_alpha * data + d_sigma * (x - alpha * data) / sigma
    logits = -(x - alpha * data).square().sum(1) / (2 * sigma**2)
    return torch.softmax(logits, 0) @ conditional


@PATHS
@settings(max_examples=15)
@given(n=st.integers(1, 12), d=st.integers(1, 6), t=st.floats(0.15, 0.95), seed=seeds)
def test_field_and_jacobian_are_those_of_autograd(path, n, d, t, seed):
    data, points = draw(seed, n, d), draw(seed + 1, 3, d)
    law = local_law(data, points, path, t)
    expected = torch.stack([field(x, data, path, t) for x in points])
    torch.testing.assert_close(law.field(), expected, rtol=1e-9, atol=1e-9)
    jacobians = torch.stack([torch.func.jacrev(field)(x, data, path, t) for x in points])
    scale = jacobians.abs().amax()
    torch.testing.assert_close(field_jacobian(law), jacobians, rtol=1e-9, atol=1e-10 * scale.item())
    vectors = draw(seed + 2, 3, d)
    product = torch.einsum("bij,bj->bi", jacobians, vectors)
    torch.testing.assert_close(jacobian_vector_product(law, vectors), product, rtol=1e-9, atol=1e-9 * scale.item())
    norm = operator_norm(law, torch.Generator().manual_seed(0), iterations=3000, tolerance=1e-13).norm
    exact = torch.linalg.matrix_norm(jacobians, 2)
    torch.testing.assert_close(norm, exact, rtol=1e-4, atol=1e-8)
    assert (norm <= exact * (1 + 1e-9)).all()


def test_chunks_change_nothing(monkeypatch):
    data, points = draw(0, 37, 5), draw(1, 4, 5)
    whole = local_law(data, points, FLOW, 0.4)
    vectors = draw(2, 4, 5)
    one = covariance_product(whole, vectors)
    monkeypatch.setattr(smoothness, "_CHUNK", 8)
    parts = local_law(data, points, FLOW, 0.4)
    torch.testing.assert_close(parts.weights, whole.weights)
    torch.testing.assert_close(covariance_product(parts, vectors), one)


def test_points_without_weight_are_left_out_at_no_cost():
    """At low noise one neighbour decides: the norm is |sigma' / sigma| = 1 / t."""
    data = draw(0, 200, 6)
    law = local_law(data, data[:3], FLOW, 0.01)
    found = operator_norm(law, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.norm, torch.full((3,), 100.0).double())
    torch.testing.assert_close(law.neighbours, torch.ones(3).double())
    assert found.iterations <= 4


def test_two_points_make_a_switch_and_one_does_not():
    """N = 1 is the smoothest field of all, which E.6.3 leaves out. At the middle of two points Cov is their half
    distance squared, h^2, along their line: the norm is |1 / t - (1 - t) h^2 / t^3|."""
    t, h = 0.5, 3.0
    pair = torch.tensor([[h, 0.0], [-h, 0.0]]).double()
    middle = torch.zeros(1, 2).double()
    one = operator_norm(local_law(pair[:1], middle, FLOW, t), torch.Generator().manual_seed(0)).norm.item()
    two = operator_norm(local_law(pair, middle, FLOW, t), torch.Generator().manual_seed(0)).norm.item()
    assert one == pytest.approx(1 / t)
    assert two == pytest.approx((1 - t) * h * h / t**3 - 1 / t)
    assert two > 10 * one


def test_a_gaussian_population_is_reached_with_many_points():
    """For x0 ~ N(0, I) the field is affine with slope (t - (1 - t)) / ((1 - t)^2 + t^2) in every direction."""
    t, rng = 0.7, torch.Generator().manual_seed(0)
    data, held_out = torch.randn(4000, 2, generator=rng), torch.randn(20, 2, generator=rng)
    found = smoothness_by_count(data, held_out, FLOW, t, [1, 10, 4000], rng)
    slope = (2 * t - 1) / ((1 - t) ** 2 + t**2)
    assert found.norms[0].tolist() == pytest.approx([1 / t] * 20)
    assert found.norms[2].median().item() == pytest.approx(slope, abs=0.15)
    assert found.neighbours[0].tolist() == [1.0] * 20
    assert (found.neighbours[2] > found.neighbours[1]).all()
    summary = found.summary()
    assert [row["count"] for row in summary] == [1, 10, 4000]
    assert summary[1]["largest"] >= summary[1]["high"] >= summary[1]["median"]


@pytest.mark.parametrize("t", [0.0, 1.1, -0.1])
def test_levels_without_a_field_are_refused(t):
    with pytest.raises(DataError, match="noise level"):
        local_law(draw(0, 3, 2), draw(1, 1, 2), FLOW, t)


def test_counts_beyond_the_data_are_refused():
    with pytest.raises(ConfigError, match="between 1 and the 3"):
        smoothness_by_count(draw(0, 3, 2), draw(1, 2, 2), FLOW, 0.5, [2, 4], torch.Generator())


def test_pure_noise_pulls_nothing():
    """At t = 1 alpha is 0: every point weighs the same and the Jacobian is the identity."""
    law = local_law(draw(0, 5, 3), draw(1, 2, 3), FLOW, 1.0)
    torch.testing.assert_close(law.weights, torch.full((2, 5), 0.2).double())
    torch.testing.assert_close(field_jacobian(law), torch.eye(3).double().expand(2, 3, 3))
    assert math.isclose(law.neighbours[0].item(), 5)
