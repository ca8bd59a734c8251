"""Appendix A and C.3 of Semantic Granularity Alignment: Eqs. 7-14, 19, 25-27, 34, each as an identity."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flowgrain.errors import DataError
from flowgrain.flow.paths import RectifiedFlow
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry.mixture import (
    AffinePath,
    EmpiricalLaw,
    GaussianMixtureLaw,
    GeneralPath,
    conditional_field,
    group_fields,
    log_conditional,
    log_marginal,
    marginal_field,
    sample_location,
    target_flow,
)
from flowgrain.geometry.partitions import Partition, from_index_sets, from_labels

# sigma depends on the sample, mu is not linear in it: all that Eq. 25 allows
GENERAL = GeneralPath(
    mean=lambda x1, t: torch.cos(t * math.pi / 2) * x1 + 0.3 * t * torch.tanh(x1),
    std=lambda x1, t: t * (1 + 0.5 * torch.tanh(x1.sum(dim=1))),
)
PATHS = {"flow": AffinePath(RectifiedFlow()), "vp": AffinePath(VariancePreserving(NoiseSchedule())), "general": GENERAL}
LAWS = ["flow", "vp", "general", "mixture flow", "mixture vp"]


def close(a, b, relative=1e-10):
    assert a.shape == b.shape
    scale = max(a.abs().max().item(), b.abs().max().item())
    assert (a - b).abs().max().item() <= relative * scale


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_law(kind, seed, n, d):
    if not kind.startswith("mixture"):
        return EmpiricalLaw(normal(seed, n, d), PATHS[kind])
    root = 0.5 * normal(seed + 1, n, d, d)
    weights = normal(seed + 2, n).exp()
    return GaussianMixtureLaw(weights, normal(seed, n, d), root @ root.mT, PATHS[kind.removeprefix("mixture ")].path)


@st.composite
def cases(draw, laws=LAWS):
    """A kind of law of N components in d dimensions, labels of all groups, and a level."""
    n, d = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    size = draw(st.integers(2, n))
    rest = draw(st.lists(st.integers(0, size - 1), min_size=n - size, max_size=n - size))
    labels = draw(st.permutations([*range(size), *rest]))
    return draw(st.sampled_from(laws)), draw(st.integers(0, 10**6)), d, labels, draw(st.floats(0.03, 0.97))


def build(case):
    """The law, a partition of it, queries and the level."""
    kind, seed, d, labels, t = case
    return make_law(kind, seed, len(labels), d), from_labels(labels), normal(seed + 3, 5, d), t


@pytest.mark.parametrize("path", PATHS)
def test_eq_25_the_conditional_density_is_the_normal_density(path):
    x1, x = normal(0, 4, 3), normal(1, 6, 3)
    moments = PATHS[path].moments(x1, 0.4)
    law = torch.distributions.Normal(moments.mean, moments.std[:, None])
    close(log_conditional(x, moments), law.log_prob(x[:, None]).sum(dim=2))


@pytest.mark.parametrize("path", ["flow", "general"])
@given(t=st.floats(0.01, 0.99))
@settings(max_examples=15)
def test_eq_27_is_the_time_derivative_of_eq_26(path, t):
    """u_t(x | x1) = d/dt [mu_t(x1) + sigma_t(x1) noise] at fixed noise."""
    x1, noise = normal(0, 5, 3), normal(1, 5, 3)
    moments = PATHS[path].moments(x1, t)
    level = torch.tensor(t, dtype=torch.float64)
    derivative = torch.func.jacfwd(lambda s: sample_location(PATHS[path].moments(x1, s), noise))(level)
    close(target_flow(moments, noise), derivative)


@pytest.mark.parametrize("path", PATHS)
def test_the_conditional_field_at_a_sample_location_is_the_target_flow(path):
    """Eq. 26 solved for the noise and put in Eq. 27."""
    x1, noise = normal(0, 5, 3), normal(1, 5, 3)
    moments = PATHS[path].moments(x1, 0.3)
    field = conditional_field(sample_location(moments, noise), moments)
    close(field.diagonal(dim1=0, dim2=1).T, target_flow(moments, noise))


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving(NoiseSchedule())])
def test_conditional_fields_are_the_velocities_of_the_package(path):
    x0, noise, t = normal(0, 4, 2, 2, 3), normal(1, 4, 2, 2, 3), 0.35
    moments = AffinePath(path).moments(x0.flatten(1), t)
    x = sample_location(moments, noise.flatten(1))
    expected = path.x0_to_velocity(x0, x.view_as(x0), torch.full((4,), t, dtype=torch.float64))
    close(target_flow(moments, noise.flatten(1)), expected.flatten(1))


@given(cases())
@settings(max_examples=40)
def test_eqs_10_and_12_as_printed(case):
    """p_t = sum_k w_k p_t(x|k) and u_t = sum_i u_i p_i / sum_k p_k, in plain numbers."""
    law, _, x, t = build(case)
    terms = law.terms(x, t)
    weight = terms.log_weight.exp()
    density = weight * (terms.log_density - terms.log_density.max()).exp()
    close((log_marginal(terms) - terms.log_density.max()).exp(), density.sum(dim=1) / weight.sum())
    bare = density[:, :, None] / density.sum(dim=1)[:, None, None]
    if (density.sum(dim=1) > 0).all():
        close(marginal_field(terms), (bare * terms.field).sum(dim=1))


@pytest.mark.parametrize("kind", LAWS)
def test_eq_7_the_marginal_density_integrates_to_one(kind):
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = log_marginal(make_law(kind, 3, 5, 1).terms(grid[:, None], 0.5)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("kind", ["flow", "general", "mixture flow"])
@given(seed=st.integers(0, 1000), t=st.floats(0.15, 0.9))
@settings(max_examples=10)
def test_marginal_and_group_fields_obey_the_continuity_equation(kind, seed, t):
    """d p / dt + div(p u) = 0 for p_t with u_t of Eq. 11, and for each Z_xi with u^xi of Eq. 13."""
    law, partition = make_law(kind, seed, 6, 2), Partition(torch.tensor([0, 1, 2, 0, 1, 2]), ("a", "b", "c"))

    def density_and_field(point, level):
        terms = law.terms(point[None], level)
        groups = group_fields(terms, partition)
        return torch.cat([log_marginal(terms), groups.log_z[0]]), torch.cat([marginal_field(terms), groups.fields[0]])

    x, level = 0.5 * normal(seed + 9, 2), torch.tensor(t, dtype=torch.float64)
    field = density_and_field(x, level)[1]
    log_rate = torch.autograd.functional.jacobian(lambda s: density_and_field(x, s)[0], level)
    score = torch.autograd.functional.jacobian(lambda p: density_and_field(p, level)[0], x)
    slopes = torch.autograd.functional.jacobian(lambda p: density_and_field(p, level)[1], x)
    terms = [log_rate, slopes.diagonal(dim1=1, dim2=2).sum(dim=1), (field * score).sum(dim=1)]
    scale = max(term.abs().max().item() for term in terms)
    assert sum(terms).abs().max().item() <= 1e-10 * max(scale, 1)


@given(cases())
@settings(max_examples=60)
def test_eqs_13_14_19_34_any_partition_decomposes_the_field(case):
    """sum_xi alpha_xi u^xi = u_t, sum alpha = 1, sum Z_xi = Z_total."""
    law, partition, x, t = build(case)
    terms = law.terms(x, t)
    groups = group_fields(terms, partition)
    close(groups.marginal, marginal_field(terms))
    close(groups.alpha.sum(dim=1), torch.ones(5, dtype=torch.float64))
    log_total = torch.logsumexp(terms.log_weight + terms.log_density, dim=1)
    close(torch.logsumexp(groups.log_z, dim=1), log_total)
    close(groups.alpha, (groups.log_z - log_total[:, None]).exp())


@given(cases(laws=["flow", "vp", "general"]))
@settings(max_examples=20)
def test_eq_13_as_printed(case):
    """Z_xi is the sum of the densities of the group's samples, without 1 / N."""
    law, partition, x, t = build(case)
    moments = law.path.moments(law.samples, t)
    groups = group_fields(law.terms(x, t), partition)
    log_density, field = log_conditional(x, moments), conditional_field(x, moments)
    for group in range(len(partition)):
        members = partition.labels == group
        peak = log_density[:, members].amax(dim=1, keepdim=True)
        density = (log_density[:, members] - peak).exp()
        close(groups.log_z[:, group], peak[:, 0] + density.sum(dim=1).log())
        z = density.sum(dim=1, keepdim=True)
        close(groups.fields[:, group], torch.einsum("mk,mkd->md", density / z, field[:, members]))


@given(cases(), st.data())
@settings(max_examples=30)
def test_merging_two_groups_gives_density_and_field_of_the_union(case, data):
    """Z_{a+b} = Z_a + Z_b and u^{a+b} = (Z_a u^a + Z_b u^b) / (Z_a + Z_b)."""
    law, partition, x, t = build(case)
    assume(len(partition) >= 3)
    a, b = data.draw(st.permutations(range(len(partition))))[:2]
    parts, whole = (group_fields(law.terms(x, t), p) for p in (partition, partition.merge(a, b)))
    place = a if b > a else a - 1
    close(whole.log_z[:, place], torch.logsumexp(parts.log_z[:, [a, b]], dim=1))
    share = torch.softmax(parts.log_z[:, [a, b]], dim=1)
    close(whole.fields[:, place], torch.einsum("mg,mgd->md", share, parts.fields[:, [a, b]]))
    close(whole.marginal, parts.marginal)


@given(cases(laws=["flow", "vp", "general"]), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_samples_and_the_names_of_groups_do_not_matter(case, random):
    law, partition, x, t = build(case)
    order, renamed = list(range(len(law))), list(range(len(partition)))
    random.shuffle(order)
    random.shuffle(renamed)
    other = EmpiricalLaw(law.samples[order], law.path)
    labels = torch.tensor(renamed)[partition.labels[order]]
    here, there = group_fields(law.terms(x, t), partition), group_fields(other.terms(x, t), from_labels(labels))
    close(there.log_z[:, renamed], here.log_z)
    close(there.fields[:, renamed], here.fields)


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving(NoiseSchedule())])
def test_a_mixture_without_spread_is_the_empirical_law(path):
    """C_k = 0: Eq. 8."""
    samples, x = normal(0, 6, 3), normal(1, 5, 3)
    diracs = GaussianMixtureLaw(torch.full((6,), 1 / 6), samples, torch.zeros(6, 3, 3), path).terms(x, 0.3)
    empirical = EmpiricalLaw(samples, AffinePath(path)).terms(x, 0.3)
    close(log_marginal(diracs), log_marginal(empirical), 1e-7)  # the weights 1/6 are float32
    close(diracs.field, empirical.field)


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving(NoiseSchedule())])
@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_the_mixture_field_is_the_integral_of_eq_11(path, t):
    """int u_t(x|x1) p_t(x|x1) q(x1) dx1 / p_t(x), by the trapezoid rule over x1 in one dimension."""
    weights, means = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.tensor([[-1.0], [0.2], [1.5]]).double()
    spread = torch.tensor([0.1, 0.5, 0.3], dtype=torch.float64).view(3, 1, 1)
    law = GaussianMixtureLaw(weights, means, spread, path)
    x1 = torch.linspace(-7, 7, 2001, dtype=torch.float64)[:, None]
    component = torch.distributions.Normal(means[:, 0], spread[:, 0, 0].sqrt())
    q = (weights * component.log_prob(x1).exp()).sum(dim=1)
    integral = EmpiricalLaw(x1, AffinePath(path), weights=q)
    x = normal(0, 9, 1)
    close(marginal_field(law.terms(x, t)), marginal_field(integral.terms(x, t)))
    close(log_marginal(law.terms(x, t)), log_marginal(integral.terms(x, t)))


def test_a_weight_of_two_is_a_sample_twice():
    samples, x = normal(0, 3, 2), normal(1, 4, 2)
    weighted = EmpiricalLaw(samples, PATHS["flow"], weights=torch.tensor([1.0, 2.0, 1.0])).terms(x, 0.5)
    repeated = EmpiricalLaw(samples[[0, 1, 1, 2]], PATHS["flow"]).terms(x, 0.5)
    close(log_marginal(weighted), log_marginal(repeated))
    close(marginal_field(weighted), marginal_field(repeated))


@pytest.mark.parametrize("kind", ["flow", "vp"])
def test_limits_of_alpha(kind):
    """t -> 0: one-hot at the nearest sample's group; t -> 1: n_xi / N, and fields of the group means."""
    samples, partition = normal(0, 9, 3), from_labels([0, 0, 0, 0, 0, 1, 1, 1, 2])
    law = EmpiricalLaw(samples, PATHS[kind])
    low = group_fields(law.terms(samples + 1e-3, 0.0005 if kind == "vp" else 1e-4), partition)
    close(low.alpha, torch.nn.functional.one_hot(partition.labels, 3).double())
    schedule = NoiseSchedule(zero_terminal_snr=True)
    last = EmpiricalLaw(samples, AffinePath(VariancePreserving(schedule))) if kind == "vp" else law
    x = normal(1, 5, 3)
    high = group_fields(last.terms(x, 1.0), partition)
    close(high.alpha, partition.shares.expand(5, 3))
    if kind == "flow":
        means = torch.stack([samples[partition.labels == group].mean(dim=0) for group in range(3)])
        close(high.fields, x[:, None] - means)


def test_fields_stay_finite_where_densities_underflow():
    """Log-densities that differ by tens of thousands: alpha is 0 to the last bit, the group's field is not 0 / 0."""
    samples = torch.cat([torch.zeros(2, 400), torch.full((2, 400), 3.0)]).double()
    groups = group_fields(EmpiricalLaw(samples, PATHS["flow"]).terms(samples[:1], 0.05), from_labels([0, 0, 1, 1]))
    assert groups.alpha.tolist() == [[1.0, 0.0]]
    assert (groups.log_z[0, 0] - groups.log_z[0, 1]).item() > 1e5
    assert groups.fields.isfinite().all()


def test_errors():
    samples, x = normal(0, 3, 2), normal(1, 2, 2)
    law = EmpiricalLaw(samples, PATHS["flow"])
    with pytest.raises(DataError, match="sigma = 0 at this noise level"):
        law.terms(x, 0)
    with pytest.raises(DataError, match=r"t = 1\.5 lies outside"):
        law.terms(x, 1.5)
    with pytest.raises(DataError, match="labels 2 samples, the data has 3"):
        group_fields(law.terms(x, 0.5), from_labels([0, 1]))
    with pytest.raises(DataError, match="not positive"):
        EmpiricalLaw(samples, PATHS["flow"], weights=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="positive semi-definite"):
        GaussianMixtureLaw(torch.ones(1), torch.zeros(1, 2), -torch.eye(2)[None], RectifiedFlow())
    singular = GaussianMixtureLaw(torch.ones(1), torch.zeros(1, 2), torch.zeros(1, 2, 2), RectifiedFlow())
    with pytest.raises(DataError, match="covariance is singular"):
        singular.terms(x, 0)


def test_a_mixture_with_spread_has_a_field_where_sigma_is_0():
    law = make_law("mixture flow", 0, 3, 2)
    assert law.terms(normal(1, 4, 2), 0).field.isfinite().all()


def test_index_sets_are_a_partition():
    samples, x = normal(0, 4, 2), normal(1, 3, 2)
    terms = EmpiricalLaw(samples, PATHS["flow"]).terms(x, 0.5)
    close(
        group_fields(terms, from_index_sets([[0, 3], [1, 2]], 4)).fields,
        group_fields(terms, from_labels([0, 1, 1, 0])).fields,
    )
