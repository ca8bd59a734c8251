"""Eqs. 30 to 33 of Semantic Granularity Alignment as printed, and what they and Eq. 6 make of the quadratic form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.time_laws import LinearShift, LogitNormal
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.flow.weightings import MinSnr
from flowgrain.geometry.interference import flow_matching_error, modulated_weights
from flowgrain.geometry.mixture import AffinePath, EmpiricalLaw, conditional_field, group_fields, sample_location
from flowgrain.geometry.partitions import from_labels

GAMMA = (4.0, 5.0, 7.0)


@given(t=st.floats(0.001, 0.999), granularity=st.integers(0, 2))
def test_eq_33_in_both_printed_forms(t, granularity):
    """min(SNR, Gamma) / SNR = min(1, Gamma / SNR), of the path's own SNR."""
    path, level = VariancePreserving(NoiseSchedule()), torch.tensor([t], dtype=torch.float64)
    c, gamma = path.coefficients(level), GAMMA[granularity]
    snr = (c.alpha.square() / c.sigma.square()).item()
    weight = MinSnr(path)(level, torch.tensor([granularity])).item()
    assert weight == pytest.approx(min(snr, gamma) / snr, rel=1e-6)
    assert weight == pytest.approx(min(1.0, gamma / snr), rel=1e-6)


@given(delta=st.floats(-1, 1), mu=st.floats(-1, 3), std=st.floats(0.3, 2))
@settings(max_examples=30)
def test_eqs_30_and_31_add_to_the_logit(delta, mu, std):
    """The odds t / (1 - t) of Eq. 31 are those of Eq. 30 times e^mu: in median and in spread."""
    law = LogitNormal(std=std, delta=(delta, 0.0, 0.0), shift=LinearShift(1, 2, mu, mu))
    u = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)  # 0 and 1 standard deviations
    t = law.quantile(u, torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    odds = t / (1 - t)
    assert odds[0].item() == pytest.approx(math.exp(delta + mu), rel=1e-10)
    assert odds[1].item() == pytest.approx(math.exp(delta + mu + std), rel=1e-9)


@given(seed=st.integers(0, 10**6), t=st.floats(0.1, 0.9))
@settings(max_examples=20)
def test_the_modulated_objective_is_least_at_the_field_of_the_modulated_weights(seed, t):
    """sum_k factor(xi_k) p_t(x|k) |v - u(x|k)|^2, the training objective at x, is least at v = sum alpha~ u^xi.

    factor = pi(t|xi) omega(t, xi) lambda_xi, with the paper's Delta and Gamma and lambda of our own.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    partition, path = from_labels([0, 0, 1, 1, 1, 2, 2]), AffinePath(RectifiedFlow())
    moments = path.moments(samples, t)
    x = sample_location(moments, torch.randn(7, 2, generator=generator, dtype=torch.float64))
    kinds, level = torch.arange(3), torch.full((3,), t, dtype=torch.float64)
    density = LogitNormal(delta=(0.5, 0.0, -0.5)).density(level, kinds, kinds)
    omega = MinSnr(VariancePreserving(NoiseSchedule()), GAMMA)(level, kinds).double()
    factor = density * omega * torch.tensor([1.0, 2.0, 0.5]).double()
    groups = group_fields(EmpiricalLaw(samples, path).terms(x, t), partition)
    velocity = torch.einsum("mg,mgd->md", modulated_weights(groups.alpha, factor.expand(7, 3)), groups.fields)

    square = (x[:, None] - moments.mean).square().sum(dim=2) / moments.std.square()
    weight = factor[partition.labels] * torch.exp(0.5 * (square.amin(dim=1, keepdim=True) - square))
    field = conditional_field(x, moments)

    def objective(v):
        return (weight * (v[:, None] - field).square().sum(dim=2)).sum()

    slope = torch.func.grad(objective)(velocity)
    assert slope.abs().max() <= 1e-10 * (weight[:, :, None] * field).abs().max()
    modulated = EmpiricalLaw(samples, path, weights=factor[partition.labels]).terms(x, t)
    assert flow_matching_error(velocity, modulated).max() <= 1e-20 * field.square().max()
