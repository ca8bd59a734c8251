"""PCA planes of a path, grids on them, filter normalisation; distance from the prior and the three regimes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.geometry.landscape import (
    evaluate_on_plane,
    fit_plane,
    normalise_filters,
    path_gram,
    plane_axes,
    random_walk_explained,
)
from flowgrain.geometry.regimes import (
    RegimeRule,
    classify_regimes,
    effective_change,
    gain_share,
    low_rank_change,
    prediction_distance,
)

seeds = st.integers(0, 2**31 - 1)


def points(seed, n, size):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 9), size=st.integers(1, 12), block=st.integers(1, 10), seed=seeds)
def test_the_streamed_gram_is_the_dense_one(n, size, block, seed):
    path = points(seed, n, size)
    offset = path - path[0]
    np.testing.assert_allclose(path_gram(lambda: iter(path), block), offset @ offset.T, atol=1e-12)


def test_the_gram_takes_few_passes():
    path, passes = points(0, 9, 5), 0

    def vectors():
        nonlocal passes
        passes += 1
        yield from path

    path_gram(vectors, block=4)
    assert passes == 3
    with pytest.raises(DataError, match="at least one"):
        path_gram(lambda: iter([]))


@pytest.mark.parametrize("origin", ["mean", "first", "last"])
@given(n=st.integers(3, 9), size=st.integers(2, 12), seed=seeds)
def test_the_plane_is_that_of_a_singular_value_decomposition(origin, n, size, seed):
    path = points(seed, n, size)
    plane = fit_plane(lambda: iter(path), origin)
    centre = {"mean": path.mean(0), "first": path[0], "last": path[-1]}[origin]
    values = torch.linalg.svdvals(path - centre)
    torch.testing.assert_close(plane.origin, centre, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(plane.explained, (values[:2] ** 2 / values.square().sum()).numpy(), atol=1e-9)
    torch.testing.assert_close(plane.directions @ plane.directions.T, torch.eye(2).double(), rtol=1e-6, atol=1e-6)
    projected = (path - centre) @ plane.directions.T
    np.testing.assert_allclose(plane.coordinates, projected, atol=1e-6)
    x, y, rest = plane.project(path[1])
    np.testing.assert_allclose([x, y], plane.coordinates[1], atol=1e-6)
    assert rest == pytest.approx((path[1] - plane.point(x, y)).norm().item(), abs=1e-9)


def test_axes_point_towards_the_end_whatever_the_decomposition():
    path = points(4, 6, 20)
    for sign in (1, -1):
        plane = fit_plane(lambda s=sign: iter(s * path), "first")
        assert (plane.coordinates[-1] >= 0).all()


def test_a_path_on_a_line_has_no_plane():
    with pytest.raises(DataError, match="fewer than two directions"):
        fit_plane(lambda: iter([torch.ones(4) * i for i in range(5)]))


def test_a_random_walk_explains_what_the_closed_form_says():
    """Exactly so for orthogonal steps, the limit of independent ones in many dimensions."""
    n = 30
    plane = fit_plane(lambda: iter(torch.tril(torch.ones(n, n - 1), diagonal=-1).double()), "mean")
    np.testing.assert_allclose(plane.explained, random_walk_explained(n), rtol=1e-10)
    np.testing.assert_allclose(random_walk_explained(10000), [6 / math.pi**2, 6 / (4 * math.pi**2)], rtol=1e-3)
    assert random_walk_explained(12, components=11).sum() == pytest.approx(1)


def test_a_quadratic_on_the_plane():
    path = points(1, 5, 8)
    plane = fit_plane(lambda: iter(path))
    x, y = plane_axes(plane, 7, 5, margin=0.5)
    assert x[0] < plane.coordinates[:, 0].min() and y[-1] > plane.coordinates[:, 1].max()
    values = evaluate_on_plane(plane, x, y, lambda theta: (theta - plane.origin).square().sum().item())
    np.testing.assert_allclose(values, x[None, :] ** 2 + y[:, None] ** 2, rtol=1e-9)


def test_filters_take_the_references_norms():
    rng = torch.Generator().manual_seed(0)
    reference = {"conv": torch.randn(4, 2, 3, 3, generator=rng), "linear": torch.randn(3, 5, generator=rng)}
    direction = {name: 7 * torch.randn(value.shape, generator=rng) for name, value in reference.items()}
    reference["bias"] = direction["bias"] = torch.ones(3)
    direction["linear"][1] = 0
    found = normalise_filters(direction, reference)
    for name in ("conv", "linear"):
        expected = reference[name].flatten(1).norm(dim=1)
        if name == "linear":
            expected[1] = 0
        torch.testing.assert_close(found[name].flatten(1).norm(dim=1), expected)
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(1), direction[name].flatten(1))
        torch.testing.assert_close(cosine, torch.where(expected > 0, 1.0, 0.0))
    assert not found["bias"].any()


@given(rank=st.integers(1, 4), seed=seeds, scale=st.floats(-2, 2), gauge=st.floats(0.1, 10))
def test_the_effective_change_is_the_products_norm_in_any_gauge(rank, seed, scale, gauge):
    rng = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 7, generator=rng).double(), torch.randn(5, rank, generator=rng).double()
    expected = abs(scale) * (up @ down).norm().item()
    assert low_rank_change(down, up, scale) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert low_rank_change(gauge * down, up / gauge, scale) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    both = effective_change([(down, up, scale), (2 * down, up, scale)])
    assert both == pytest.approx(math.sqrt(5) * expected, rel=1e-9, abs=1e-12)


def test_convolutions_are_flattened():
    down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    product = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    assert low_rank_change(down, up) == pytest.approx(product.norm().item(), rel=1e-5)


def test_prediction_distance_is_a_mean_a_sample():
    adapted = torch.arange(8.0).view(2, 1, 2, 2)
    prior = adapted.clone()
    prior[1] += 3
    assert prediction_distance(adapted, prior).tolist() == [0, 9]


DISTANCE = np.array([0.0, 1.0, 2.0, 3.0, 4.0])


def test_a_run_passes_through_the_three_regimes():
    loss = np.array([1.0, 0.9, 0.6, 0.62, 0.8])
    assert classify_regimes(DISTANCE, loss) == ["underfit", "underfit", "goal", "goal", "out of domain"]
    np.testing.assert_allclose(gain_share(DISTANCE, loss), [0, 0.25, 1, 0.95, 0.5])


def test_the_rate_narrows_the_goal_on_both_sides():
    loss = np.array([1.0, 0.62, 0.6, 0.62, 0.65])
    rate = np.array([0.9, 0.5, 0.1, 0.15, 0.6])
    found = classify_regimes(DISTANCE, loss, rate)
    assert found == ["underfit", "underfit", "goal", "goal", "out of domain"]
    assert classify_regimes(DISTANCE, loss) == ["underfit"] + ["goal"] * 4


def test_a_run_that_only_loses_leaves_the_domain_and_one_that_idles_does_not():
    assert classify_regimes(DISTANCE, 1 + DISTANCE) == ["underfit"] + ["out of domain"] * 4
    idle = 1 + np.array([0.0, 0.001, 0.002, 0.001, 0.003])
    assert classify_regimes(DISTANCE, idle, rule=RegimeRule(least_gain=0.01)) == ["underfit"] * 5
    rate = np.array([0.2, 0.2, 0.2, 0.2, 0.9])
    assert classify_regimes(DISTANCE, idle, rate, RegimeRule(least_gain=0.01)) == ["underfit"] * 4 + ["out of domain"]
    assert np.isnan(gain_share(DISTANCE, idle)).all()


@given(n=st.integers(2, 8), seed=st.integers(0, 999))
def test_the_order_of_checkpoints_does_not_matter_and_the_best_is_the_goal(n, seed):
    rng = np.random.default_rng(seed)
    distance, loss = np.concatenate([[0.0], rng.random(n - 1) + 0.1]), rng.random(n)
    found = classify_regimes(distance, loss)
    order = rng.permutation(n)
    assert classify_regimes(distance[order], loss[order]) == [found[i] for i in order]
    if loss.argmin() != 0:
        assert found[loss.argmin()] == "goal" and found[0] == "underfit"


def test_curves_that_cannot_be_judged():
    with pytest.raises(DataError, match="same number"):
        classify_regimes(DISTANCE[:1], DISTANCE[:1])
    with pytest.raises(DataError, match="not finite"):
        classify_regimes(DISTANCE, np.full(5, np.nan))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        RegimeRule(reach=1.5)
