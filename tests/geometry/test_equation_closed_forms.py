"""Equations of Semantic Granularity Alignment against formulas worked out by hand, not against the code's own sums."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry.interference import (
    conditional_flow_matching_loss,
    conditional_variance,
    flow_matching_loss,
    interference_matrix,
    irreducible_loss,
    kernel_loss,
    pair_terms,
    quadratic_form,
    residuals,
    split,
)
from flowgrain.geometry.mixture import (
    AffinePath,
    EmpiricalLaw,
    GaussianMixtureLaw,
    GeneralPath,
    group_fields,
    log_marginal,
    marginal_field,
)
from flowgrain.geometry.partitions import from_labels

FLOW = AffinePath(RectifiedFlow())
# section 3.1 and Appendices A to C: s = 1 is data, x = s x1 + (1 - s) noise
PAPER = GeneralPath(mean=lambda x1, s: s * x1, std=lambda x1, s: (1 - s).expand(len(x1)))
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
seeds = st.integers(0, 10**6)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard_normal_law(d, path):
    return GaussianMixtureLaw(torch.ones(1), torch.zeros(1, d), torch.eye(d)[None], path)


@given(seed=seeds, d=st.integers(1, 5), t=st.floats(0.15, 0.95))
@settings(max_examples=40)
def test_eqs_8_to_14_two_points_are_a_switch(seed, d, t):
    """Data +a and -a: log odds 2 (1 - t) a.x / t^2, alpha their logistic, E[x0 | x] = a tanh(odds / 2)."""
    a, x = normal(seed, d), normal(seed + 1, 6, d)
    terms = EmpiricalLaw(torch.stack([a, -a]), FLOW).terms(x, t)
    groups = group_fields(terms, from_labels(["plus", "minus"]))  # groups in the order of their names
    odds = 2 * (1 - t) * (x @ a) / t**2
    torch.testing.assert_close(groups.alpha[:, 1], torch.sigmoid(odds), **CLOSE)
    torch.testing.assert_close(groups.log_z[:, 1] - groups.log_z[:, 0], odds, **CLOSE)
    torch.testing.assert_close(groups.fields, torch.stack([x + a, x - a], dim=1) / t, **CLOSE)
    torch.testing.assert_close(marginal_field(terms), (x - torch.tanh(odds / 2)[:, None] * a) / t, **CLOSE)
    square = (x.square().sum(dim=1) + (1 - t) ** 2 * a.square().sum()) / (2 * t**2)
    log_p = torch.cosh(odds / 2).log() - square - d * math.log(t * math.sqrt(2 * math.pi))
    torch.testing.assert_close(log_marginal(terms), log_p, **CLOSE)  # Eq. 10
    # Corollary 1: the variance of +-a under the two weights, seen through 1 / t
    variance = a.square().sum() / torch.cosh(odds / 2).square() / t**2
    torch.testing.assert_close(conditional_variance(terms), variance, **CLOSE)


@given(seed=seeds, t=st.floats(0.02, 0.98))
@settings(max_examples=20)
def test_eq_11_standard_normal_data(seed, t):
    """Rectified flow: u = (2t - 1) x / ((1 - t)^2 + t^2). Variance preserving: nothing moves, u = 0."""
    x = normal(seed, 5, 3)
    terms = standard_normal_law(3, RectifiedFlow()).terms(x, t)
    torch.testing.assert_close(marginal_field(terms), (2 * t - 1) / ((1 - t) ** 2 + t**2) * x, **CLOSE)
    still = standard_normal_law(3, VariancePreserving(NoiseSchedule())).terms(x, t)
    assert marginal_field(still).abs().max() <= 1e-9 * still.field.abs().max().clamp(min=1)
    log_p = -0.5 * x.square().sum(dim=1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_marginal(still), log_p, rtol=1e-9, atol=1e-9)


def test_eqs_1_and_23_over_all_levels():
    """v = 0 on standard normal data in one dimension: int_0^1 (2t - 1)^2 / (1 - 2t + 2t^2) dt = 2 - pi / 2.

    L_CFM is E |noise - x0|^2 = 2 at every level, so that pi / 2 of it is what no model can learn.
    """
    law, grid = standard_normal_law(1, RectifiedFlow()), torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    cell = torch.full((2001,), math.log(18 / 2000), dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(30)
    total = sum(
        weight / 2 * flow_matching_loss(torch.zeros_like(grid), law.terms(grid, (node + 1) / 2), cell).item()
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True)
    )
    assert total == pytest.approx(2 - math.pi / 2, rel=1e-10)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_eq_24_of_two_points(t):
    """Data +1 and -1, v = c: L_CFM = E (noise - x0 - c)^2 = 2 + c^2 at every level; L_FM is less by the constant."""
    grid = torch.linspace(-12, 12, 8001, dtype=torch.float64)[:, None]
    cell = torch.full((8001,), math.log(24 / 8000), dtype=torch.float64)
    terms = EmpiricalLaw(torch.tensor([[1.0], [-1.0]]), FLOW).terms(grid, t)
    for c in (0.0, -1.5):
        velocity = torch.full_like(grid, c)
        cfm = conditional_flow_matching_loss(velocity, terms, cell).item()
        assert cfm == pytest.approx(2 + c * c, rel=1e-10)
        fm = flow_matching_loss(velocity, terms, cell).item()
        assert fm == pytest.approx(cfm - irreducible_loss(terms, cell).item(), rel=1e-10)


def test_eqs_3_and_15_to_20_by_hand():
    """v = (1, 0), u^1 = (0, 0), u^2 = (2, 1), alpha = (1/4, 3/4): e = (-1/2, -3/4), |e|^2 = 13/16 = 19/16 - 6/16."""
    fields = torch.tensor([[[0.0, 0.0], [2.0, 1.0]]], dtype=torch.float64)
    alpha, velocity = torch.tensor([[0.25, 0.75]]).double(), torch.tensor([[1.0, 0.0]]).double()
    residual = residuals(velocity, fields)
    omega = interference_matrix(residual)
    assert residual.tolist() == [[[1, 0], [-1, -1]]]
    assert omega.tolist() == [[[1, -1], [-1, 2]]]
    assert (16 * pair_terms(alpha, omega)).tolist() == [[[1, -3], [-3, 18]]]
    assert 16 * quadratic_form(alpha, omega).item() == 13 and 32 * kernel_loss(alpha, residual).item() == 13
    parts = split(alpha, omega)
    assert (16 * parts.independent.item(), 16 * parts.correlation.item()) == (19, -6)


@given(seed=seeds, labels=st.permutations([0, 0, 0, 1, 1, 2]), t=st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_the_papers_clock_turns_fields_round_and_nothing_else(seed, labels, t):
    """s = 1 - t: densities, alpha and Omega are the same, velocities and residuals change sign."""
    samples, x, velocity = normal(seed, 6, 3), normal(seed + 1, 4, 3), normal(seed + 2, 4, 3)
    partition = from_labels(labels)
    ours = group_fields(EmpiricalLaw(samples, FLOW).terms(x, t), partition)
    theirs = group_fields(EmpiricalLaw(samples, PAPER).terms(x, 1 - t), partition)
    torch.testing.assert_close(theirs.log_z, ours.log_z, **CLOSE)
    torch.testing.assert_close(theirs.alpha, ours.alpha, **CLOSE)
    torch.testing.assert_close(theirs.fields, -ours.fields, **CLOSE)
    omegas = [interference_matrix(residuals(v, g.fields)) for v, g in ((velocity, ours), (-velocity, theirs))]
    torch.testing.assert_close(omegas[1], omegas[0], **CLOSE)
