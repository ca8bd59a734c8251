"""Section 3.1 and Appendices B, C, E.1 of Semantic Granularity Alignment as identities on random partitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from flowgrain.errors import DataError
from flowgrain.flow.paths import RectifiedFlow, grouped_mse
from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.geometry.interference import (
    batch_loss,
    bootstrap_mean,
    conditional_error,
    conditional_flow_matching_loss,
    conditional_variance,
    field_spread,
    flow_matching_error,
    flow_matching_loss,
    global_residual,
    interference_matrix,
    irreducible_loss,
    kernel_loss,
    modulated_weights,
    off_diagonal_weight,
    pair_terms,
    quadratic_form,
    residual_cosines,
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
    sample_location,
    target_flow,
)
from flowgrain.geometry.partitions import from_labels

VP = NoiseSchedule()
PATHS = {
    "flow": AffinePath(RectifiedFlow()),
    "vp": AffinePath(VariancePreserving(VP)),
    "general": GeneralPath(
        mean=lambda x1, t: torch.cos(t * math.pi / 2) * x1,
        std=lambda x1, t: t * (1 + 0.5 * torch.tanh(x1.sum(dim=1))),
    ),
}


def close(a, b, relative=1e-10):
    assert a.shape == b.shape
    scale = max(a.abs().max().item(), b.abs().max().item())
    assert (a - b).abs().max().item() <= relative * scale


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def cases(draw):
    n, d = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    size = draw(st.integers(2, n))
    rest = draw(st.lists(st.integers(0, size - 1), min_size=n - size, max_size=n - size))
    labels = draw(st.permutations([*range(size), *rest]))
    return draw(st.sampled_from(list(PATHS))), draw(st.integers(0, 10**6)), d, labels, draw(st.floats(0.03, 0.97))


def build(case):
    """A model's velocity at queries, the law's terms there and a decomposition."""
    kind, seed, d, labels, t = case
    law = EmpiricalLaw(normal(seed, len(labels), d), PATHS[kind])
    terms = law.terms(normal(seed + 1, 5, d), t)
    return normal(seed + 2, 5, d), terms, group_fields(terms, from_labels(labels))


class Field(torch.nn.Module):
    """A real small network v(x, t)."""

    def __init__(self, d):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(d)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(d + 1, 16),
                torch.nn.SiLU(),
                torch.nn.Linear(16, 16),
                torch.nn.Tanh(),
                torch.nn.Linear(16, d),
            ).double()

    def forward(self, x, t):
        return self.layers(torch.cat([x, torch.full_like(x[:, :1], t)], dim=1))


def gradient(loss, network):
    """d loss(network) / d theta through torch.func, as one vector."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    grads = torch.func.grad(lambda p: loss(lambda *x: torch.func.functional_call(network, p, x)))(parameters)
    return torch.cat([g.flatten() for g in grads.values()])


@given(cases())
@settings(max_examples=60)
def test_eqs_3_and_15_to_22_the_quadratic_form_is_the_squared_error(case):
    """alpha' Omega alpha = |v - u_t|^2 = independent + correlation = the sum of all pair terms."""
    velocity, terms, groups = build(case)
    alpha, residual = groups.alpha, residuals(velocity, groups.fields)
    omega = interference_matrix(residual)
    error = (velocity - marginal_field(terms)).square().sum(dim=1)  # Eq. 15
    # cross terms cancel: rounding is measured against what is summed
    size = pair_terms(alpha, omega).abs().sum(dim=(1, 2)).max().item()
    parts = split(alpha, omega)
    for value in (
        global_residual(alpha, residual).square().sum(dim=1),  # Eqs. 16 and 36
        pair_terms(alpha, omega).sum(dim=(1, 2)),  # Eq. 17
        quadratic_form(alpha, omega),  # Eqs. 20 to 22
        parts.independent + parts.correlation,  # Eq. 3
        2 * kernel_loss(alpha, residual),  # Eq. 37
        flow_matching_error(velocity, terms),  # Eqs. 1 and 23
    ):
        assert (value - error).abs().max().item() <= 1e-10 * size


@given(cases())
@settings(max_examples=40)
def test_eq_18_omega_is_a_gram_matrix(case):
    """Symmetric, positive semi-definite, diagonal = squared residuals; cosines in [-1, 1]."""
    velocity, _, groups = build(case)
    residual = residuals(velocity, groups.fields)
    omega = interference_matrix(residual)
    close(omega, omega.mT)
    close(omega.diagonal(dim1=1, dim2=2), residual.square().sum(dim=2))
    assert torch.linalg.eigvalsh(omega).min() >= -1e-12 * omega.abs().max()
    close(
        residual_cosines(omega), torch.nn.functional.cosine_similarity(residual[:, :, None], residual[:, None], dim=3)
    )


@given(cases())
@settings(max_examples=40)
def test_eqs_35_and_38_the_residuals_superpose(case):
    """sum_xi alpha_xi (v - u^xi) = v - u_t, by the partition of unity."""
    velocity, terms, groups = build(case)
    residual = residuals(velocity, groups.fields)
    close(residual[:, 0], velocity - groups.fields[:, 0])
    scale = groups.fields.abs().max().item()
    e = global_residual(groups.alpha, residual)
    assert (e - (velocity - marginal_field(terms))).abs().max().item() <= 1e-10 * scale


@given(cases())
@settings(max_examples=30)
def test_a_perfect_model_has_cross_terms_that_are_minus_the_diagonal(case):
    """At v = u_t: alpha' Omega alpha = 0 though Omega is not; negative cross terms are no sign of a conflict left."""
    _, terms, groups = build(case)
    omega = interference_matrix(residuals(marginal_field(terms), groups.fields))
    parts = split(groups.alpha, omega)
    assert (parts.independent + parts.correlation).abs().max() <= 1e-10 * omega.abs().max()
    assert (parts.correlation <= 1e-10 * omega.abs().max()).all()


@given(cases())
@settings(max_examples=30)
def test_the_loss_is_the_mean_diagonal_less_the_spread_of_the_targets(case):
    """|v - u_t|^2 = sum alpha |Delta_xi|^2 - sum alpha |u^xi - u_t|^2."""
    velocity, terms, groups = build(case)
    omega = interference_matrix(residuals(velocity, groups.fields))
    diagonal = (groups.alpha * omega.diagonal(dim1=1, dim2=2)).sum(dim=1)
    value = diagonal - field_spread(groups.alpha, groups.fields)
    assert (value - flow_matching_error(velocity, terms)).abs().max() <= 1e-10 * diagonal.max()


@given(cases())
@settings(max_examples=20)
def test_the_weight_of_all_cross_terms(case):
    _, _, groups = build(case)
    alpha = groups.alpha
    pairs = alpha[:, :, None] * alpha[:, None] * (1 - torch.eye(alpha.shape[1], dtype=torch.float64))
    assert torch.allclose(off_diagonal_weight(alpha), pairs.sum(dim=(1, 2)), rtol=1e-10, atol=1e-14)
    assert off_diagonal_weight(torch.tensor([[0.0, 1.0], [0.5, 0.5]])).tolist() == [0, 0.5]


def test_cosines_where_a_residual_is_zero():
    omega = interference_matrix(torch.tensor([[[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]]]))
    assert residual_cosines(omega).tolist() == [[[0, 0, 0], [0, 1, -1], [0, -1, 1]]]


@given(cases())
@settings(max_examples=20)
def test_modulation_changes_alpha_and_not_the_group_fields(case):
    """Samples weighted by a factor of their group: Eq. 8 with pi(t|xi) omega(t,xi) lambda_xi for 1 / N."""
    kind, seed, d, labels, t = case
    _, _, groups = build(case)
    partition = from_labels(labels)
    factor = normal(seed + 5, len(partition)).exp()
    law = EmpiricalLaw(normal(seed, len(labels), d), PATHS[kind], weights=factor[partition.labels])
    weighted = group_fields(law.terms(normal(seed + 1, 5, d), t), partition)
    close(weighted.fields, groups.fields)
    close(weighted.alpha, modulated_weights(groups.alpha, factor.expand(5, -1)))


def test_modulation_needs_a_weight():
    with pytest.raises(DataError, match="no weight to share"):
        modulated_weights(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 0.0]]))


@given(cases())
@settings(max_examples=40)
def test_corollary_1_at_a_point(case):
    """E[|v - u_t(x|k)|^2 | x] = |v - u_t(x)|^2 + variance: equal gradients in v, a difference without v."""
    velocity, terms, _ = build(case)
    excess = conditional_variance(terms)
    close(conditional_error(velocity, terms), flow_matching_error(velocity, terms) + excess)
    gradients = [
        torch.func.grad(lambda v, error=error: error(v, terms).sum())(velocity)
        for error in (conditional_error, flow_matching_error)
    ]
    scale = terms.field.abs().max().item()
    assert (gradients[0] - gradients[1]).abs().max().item() <= 1e-10 * scale


@pytest.mark.parametrize("kind", [*PATHS, "mixture"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_corollary_1_on_a_network(kind, t):
    """grad_theta L_FM = grad_theta L_CFM on common points of p_t, and L_CFM - L_FM does not depend on theta."""
    d, n = 3, 7
    samples = normal(0, n, d)
    if kind == "mixture":
        law = GaussianMixtureLaw(normal(1, n).exp(), samples, 0.2 * torch.eye(d).expand(n, d, d), RectifiedFlow())
        x = normal(2, 50, d)
    else:
        law = EmpiricalLaw(samples, PATHS[kind])
        x = sample_location(PATHS[kind].moments(samples.repeat(8, 1), t), normal(2, 8 * n, d))
    terms, network = law.terms(x, t), Field(d)
    log_measure = -log_marginal(terms) - math.log(len(x))  # points drawn from p_t
    fm, cfm = (
        gradient(lambda net, loss=loss: loss(net(x, t), terms, log_measure), network)
        for loss in (flow_matching_loss, conditional_flow_matching_loss)
    )
    assert fm.norm() > 1e-3
    close(fm, cfm)
    for factor in (1, -3):
        velocity = factor * network(x, t)
        difference = conditional_flow_matching_loss(velocity, terms, log_measure) - flow_matching_loss(
            velocity, terms, log_measure
        )
        assert difference.item() == pytest.approx(irreducible_loss(terms, log_measure).item(), rel=1e-10)


def test_eqs_23_and_24_by_independent_quadratures():
    """L_CFM over p(x|x1) with Gauss-Hermite nodes of its own = L_FM over p_t on a grid + the constant, d = 1."""
    samples, t, network = normal(0, 4, 1), 0.6, Field(1)
    law = EmpiricalLaw(samples, PATHS["flow"])
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(120))
    cfm = 0.0
    for k in range(4):
        moments = PATHS["flow"].moments(samples[k].expand(120, 1), t)
        x, target = sample_location(moments, nodes[:, None]), target_flow(moments, nodes[:, None])
        cfm += (weights @ (network(x, t) - target).square()[:, 0]).item() / math.sqrt(2 * math.pi) / 4
    grid = torch.linspace(-12, 12, 6001, dtype=torch.float64)[:, None]
    terms = law.terms(grid, t)
    cell = torch.full((6001,), math.log(24 / 6000), dtype=torch.float64)
    fm = flow_matching_loss(network(grid, t), terms, cell).item()
    assert cfm == pytest.approx(fm + irreducible_loss(terms, cell).item(), rel=1e-10)
    assert conditional_flow_matching_loss(network(grid, t), terms, cell).item() == pytest.approx(cfm, rel=1e-10)


def test_eq_28_is_the_training_loss_of_the_package():
    """1/B sum |v - (mu' + sigma' eps)|^2 = elements x mean of grouped_mse, for rectified flow samples of a Path."""
    path, t = RectifiedFlow(), 0.3
    x0, noise, prediction = normal(0, 5, 2, 4, 3), normal(1, 5, 2, 4, 3), normal(2, 5, 2, 4, 3)
    sample = path(x0, noise, torch.full((5,), t, dtype=torch.float64))
    moments = PATHS["flow"].moments(x0.flatten(1), t)
    close(sample.x_t.flatten(1), sample_location(moments, noise.flatten(1)))  # Eq. 26
    close(sample.target.flatten(1), target_flow(moments, noise.flatten(1)))  # Eq. 27
    eq28 = batch_loss(prediction.flatten(1), target_flow(moments, noise.flatten(1)))
    assert eq28.item() == pytest.approx(24 * grouped_mse(prediction, sample).mean().item(), rel=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_eq_28_of_vp_is_its_training_loss_times_a_factor_of_t(prediction):
    """The target of a VP model is affine in the velocity at fixed x_t: their errors differ by a number."""
    path, t = VariancePreserving(VP, prediction), torch.full((5,), 0.3, dtype=torch.float64)
    x0, noise, error = normal(0, 5, 2, 4, 3), normal(1, 5, 2, 4, 3), 0.1 * normal(2, 5, 2, 4, 3)
    sample = path(x0, noise, t)
    predicted = path.prediction_to_x0(sample.target + error, sample.x_t, t)
    velocity = path.x0_to_velocity(predicted, sample.x_t, t)
    moments = PATHS["vp"].moments(x0.flatten(1), 0.3)
    eq28 = batch_loss(velocity.flatten(1), target_flow(moments, noise.flatten(1)))
    c = path.coefficients(t[:1])
    gain = (c.d_alpha - c.d_sigma * c.alpha / c.sigma).item()
    from_x0 = {"epsilon": -c.alpha / c.sigma, "v_prediction": -1 / c.sigma, "sample": torch.ones(1)}[prediction].item()
    loss = grouped_mse(sample.target + error, sample).mean().item()
    assert eq28.item() == pytest.approx(24 * (gain / from_x0) ** 2 * loss, rel=1e-10)


def matrices(n=40):
    return np.random.default_rng(0).exponential(size=(n, 2, 3)) * np.array([[1, 2, 0], [1, 1, 1]])


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_intervals_are_those_of_scipy(method):
    values = matrices()
    ours = bootstrap_mean(values, method=method, resamples=20000)
    np.testing.assert_allclose(ours.mean, values.mean(axis=0))
    column = values[:, 0, 1]
    theirs = bootstrap(
        (column,), np.mean, method="BCa" if method == "bca" else method, n_resamples=20000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low[0, 1] == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high[0, 1] == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.low[0, 2] == ours.mean[0, 2] == ours.high[0, 2] == 0  # an entry that never varies


def test_bca_moves_the_interval_of_a_skewed_entry_up():
    values = matrices(15)
    bca, percentile = (bootstrap_mean(values, method=m) for m in ("bca", "percentile"))
    assert (bca.high > percentile.high)[values.std(axis=0) > 0].all()


def test_clusters_are_drawn_whole():
    """Ten copies of a query in one cluster tell no more than the query."""
    values = matrices(12)
    alone = bootstrap_mean(values, seed=3)
    copies = bootstrap_mean(np.repeat(values, 10, axis=0), clusters=[i // 10 for i in range(120)], seed=3)
    np.testing.assert_allclose(copies.low, alone.low)
    np.testing.assert_allclose(copies.high, alone.high)
    naive = bootstrap_mean(np.repeat(values, 10, axis=0))
    assert (naive.high - naive.low)[0, 0] < 0.5 * (alone.high - alone.low)[0, 0]


def test_bootstrap_is_seeded_and_refuses_what_it_cannot_do():
    values = matrices()
    np.testing.assert_array_equal(bootstrap_mean(values).low, bootstrap_mean(values).low)
    assert (bootstrap_mean(values).low != bootstrap_mean(values, seed=1).low).any()
    with pytest.raises(DataError, match="at least 2 independent"):
        bootstrap_mean(values, clusters=["one"] * 40)
    with pytest.raises(DataError, match="1 entries are not finite"):
        bootstrap_mean(np.array([1.0, np.nan, 2.0]))
    with pytest.raises(DataError, match="3 cluster names for 40"):
        bootstrap_mean(values, clusters=[1, 2, 3])
    with pytest.raises(DataError, match="level 1"):
        bootstrap_mean(values, level=1.0)
