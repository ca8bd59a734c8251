"""Eqs. 4 and 37-45 on real small networks in float64, against autograd and dense linear algebra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flowgrain.errors import ConfigError
from flowgrain.geometry.kernel import (
    component_gram,
    condition_number,
    cosine_matrix,
    diagonal_dominance,
    gradient_components,
    jacobian,
    kernel_interactions,
    kernel_trace,
    leading_spectrum,
    level_matrix,
    module_prediction,
    neural_tangent_kernel,
    ntk_vector_product,
    rayleigh_quotients,
    sign_agreement,
    sign_reversing_pair,
    total_gradient,
    transposed_products,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
seeds = st.integers(0, 2**31 - 1)


class Attention(nn.Module):
    """One head over 4 tokens, with a residual: the blocks that the families have."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))


def network(name):
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6)).double(), torch.randn(1, 5).double()
    if name == "conv":
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 3, padding=1)]
        return nn.Sequential(*layers).double(), torch.randn(1, 2, 4, 4).double()
    return Attention().double(), torch.randn(1, 4, 6).double()


def case(name, groups, seed):
    """The network as a function, its parameters, and random fields u^xi with densities that sum to 1."""
    module, x = network(name)
    predict, parameters = module_prediction(module, x), dict(module.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    output = predict(parameters).detach()
    fields = torch.randn(groups, *output.shape, generator=generator, dtype=torch.float64)
    density = torch.softmax(2 * torch.randn(groups, generator=generator, dtype=torch.float64), dim=0)
    return predict, parameters, output, fields, density


def autograd_gradient(loss, parameters):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(parameters.values()))])


NETWORKS = pytest.mark.parametrize("name", ["mlp", "conv", "attention"])


@NETWORKS
@settings(max_examples=8)
@given(groups=st.integers(2, 5), seed=seeds)
def test_inner_products_of_the_components_are_kernel_products(name, groups, seed):
    predict, parameters, output, fields, density = case(name, groups, seed)
    residuals = output - fields
    loss = sum(a * (predict(parameters) - u) for a, u in zip(density, fields, strict=True)).square().sum() / 2
    total = autograd_gradient(loss, parameters)
    components = gradient_components(predict, parameters, residuals, density)
    torch.testing.assert_close(components.sum(0), total, **CLOSE)  # Eqs. 40-41
    residual = torch.einsum("g,g...->...", density, residuals)
    torch.testing.assert_close(total_gradient(predict, parameters, residual), total, **CLOSE)
    gram = component_gram(components)
    torch.testing.assert_close(gram.sum(), total.square().sum(), **CLOSE)  # Eq. 43
    kernel = neural_tangent_kernel(predict, parameters)
    torch.testing.assert_close(kernel_interactions(kernel, residuals, density), gram, **CLOSE)  # Eqs. 44-45


@NETWORKS
def test_a_component_is_the_gradient_of_its_weighted_error_with_densities_held(name):
    """The paper's remark after Eq. 42 notwithstanding; of the diagonal term of Eq. 3 it is not the gradient."""
    predict, parameters, output, fields, density = case(name, 3, 5)
    components = gradient_components(predict, parameters, output - fields, density)
    for index in range(3):
        error = (predict(parameters) - fields[index]).square().sum() / 2
        own = autograd_gradient(density[index] * error, parameters)
        torch.testing.assert_close(own, components[index], **CLOSE)
    diagonal = sum(a**2 * (predict(parameters) - u).square().sum() / 2 for a, u in zip(density, fields, strict=True))
    assert not torch.allclose(autograd_gradient(diagonal, parameters), components.sum(0), rtol=1e-2)


def test_the_mean_component_is_the_gradient_of_the_levels_conditional_loss():
    """E_{x ~ p_t} g_xi = (N_xi / N) grad of half the level's conditional loss, by quadrature in one dimension."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    data, group, t = torch.tensor([-1.3, -0.2, 0.4, 1.6, 0.9]).double(), torch.tensor([0, 1, 0, 1, 0]), 0.5
    parameters = dict(module.named_parameters())
    # left: the trapezoid rule over x, of marginal density times component, group fields from Eq. 13
    x = torch.linspace(-7, 7, 6001, dtype=torch.float64)
    weight = torch.exp(-((x[:, None] - (1 - t) * data) ** 2) / (2 * t * t)) / math.sqrt(2 * math.pi) / t
    target = (x[:, None] - data) / t  # (x - (1 - t) x0) / t - x0
    marginal = weight.mean(1)
    predict = module_prediction(module, x[:, None])
    rows = torch.zeros(2, len(x), 1, dtype=torch.float64)
    for level in range(2):
        mine = group == level
        alpha = weight[:, mine].sum(1) / weight.sum(1)
        field = (weight * target)[:, mine].sum(1) / weight[:, mine].sum(1)
        rows[level, :, 0] = (x[1] - x[0]) * marginal * alpha * (module(x[:, None])[:, 0].detach() - field)
    left = transposed_products(predict, parameters, rows)
    # right: Gauss-Hermite over each sample's own noise
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    noise, share = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    for level in range(2):
        loss = torch.zeros(()).double()
        for x0 in data[group == level]:
            error = module(((1 - t) * x0 + t * noise)[:, None])[:, 0] - (noise - x0)
            loss = loss + (share * error.square()).sum() / (group == level).sum()
        expected = (group == level).double().mean() * autograd_gradient(loss / 2, parameters)
        torch.testing.assert_close(left[level], expected, rtol=1e-8, atol=1e-10)


def test_a_levels_loss_gradients_are_kernel_products_of_residuals_on_its_slices():
    module, _ = network("mlp")
    x, target = torch.randn(6, 5).double(), torch.randn(6, 6).double()
    level = torch.tensor([0, 1, 2, 0, 1, 0])
    parameters = dict(module.named_parameters())
    gradients, residuals = [], torch.zeros(3, 6, 6).double()
    for index in range(3):
        mine = level == index
        gradients.append(autograd_gradient((module(x[mine]) - target[mine]).square().mean(), parameters))
        residuals[index, mine] = (2 * (module(x) - target) / (6 * mine.sum()))[mine].detach()
    expected = torch.stack(gradients)
    matrix = level_matrix(module_prediction(module, x), parameters, residuals)
    torch.testing.assert_close(matrix, expected @ expected.T, **CLOSE)


@NETWORKS
@settings(max_examples=5)
@given(seed=seeds)
def test_matrix_free_products_are_the_dense_kernels(name, seed):
    predict, parameters, output, fields, _ = case(name, 2, seed)
    rows = jacobian(predict, parameters)
    kernel = neural_tangent_kernel(predict, parameters)
    torch.testing.assert_close(kernel, rows @ rows.T, **CLOSE)
    product = ntk_vector_product(predict, parameters, fields[0])
    assert product.shape == output.shape
    torch.testing.assert_close(product.reshape(-1), kernel @ fields[0].reshape(-1), **CLOSE)
    lifted = transposed_products(predict, parameters, fields)
    torch.testing.assert_close(lifted, fields.flatten(1) @ rows, **CLOSE)
    quotients, values = rayleigh_quotients(lifted @ lifted.T, fields), torch.linalg.eigvalsh(kernel)
    assert (quotients >= values[0] - 1e-9).all() and (quotients <= values[-1] + 1e-9).all()
    expected = (fields.flatten(1) @ kernel * fields.flatten(1)).sum(1) / fields.flatten(1).square().sum(1)
    torch.testing.assert_close(quotients, expected, **CLOSE)


def test_the_jacobian_is_the_difference_quotient():
    predict, parameters, output, _, _ = case("mlp", 2, 3)
    direction = {name: torch.randn_like(value) for name, value in parameters.items()}
    moved = predict({name: value.detach() + 1e-6 * direction[name] for name, value in parameters.items()})
    back = predict({name: value.detach() - 1e-6 * direction[name] for name, value in parameters.items()})
    flat = torch.cat([value.reshape(-1) for value in direction.values()])
    slope = (jacobian(predict, parameters) @ flat).view_as(output)
    torch.testing.assert_close(((moved - back) / 2e-6).detach(), slope, rtol=1e-7, atol=1e-8)


def test_only_the_parameters_given_count():
    """Adapter space: a subset of the parameters, and one that the output does not reach."""
    module, x = network("mlp")
    module.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    predict = module_prediction(module, x)
    subset = {name: dict(module.named_parameters())[name] for name in ("2.bias", "unused")}
    lifted = transposed_products(predict, subset, torch.eye(6).double().view(6, 1, 6))
    torch.testing.assert_close(lifted, torch.cat([torch.eye(6), torch.zeros(6, 3)], 1).double())
    torch.testing.assert_close(neural_tangent_kernel(predict, subset), torch.eye(6).double())


@NETWORKS
def test_leading_spectrum_is_that_of_the_dense_kernel(name):
    predict, parameters, output, _, _ = case(name, 2, 0)
    kernel = neural_tangent_kernel(predict, parameters).detach().numpy()
    values = np.linalg.eigvalsh(kernel)[::-1]
    spectrum = leading_spectrum(predict, parameters, output, 3, tolerance=1e-10, generator=np.random.default_rng(0))
    np.testing.assert_allclose(spectrum.values, values[:3], rtol=1e-8)
    np.testing.assert_allclose(kernel @ spectrum.vectors, spectrum.vectors * spectrum.values, atol=1e-6 * values[0])
    assert (spectrum.residuals <= 1e-6 * values[0]).all() and spectrum.products > 3
    again = leading_spectrum(predict, parameters, output, 3, tolerance=1e-10, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(spectrum.values, again.values)


@pytest.mark.parametrize("count", [0, 6])
def test_a_count_beyond_the_kernel_is_refused(count):
    predict, parameters, output, _, _ = case("mlp", 2, 0)
    with pytest.raises(ConfigError, match="between 1 and 5"):
        leading_spectrum(predict, parameters, output, count, generator=np.random.default_rng(0))


def test_the_stochastic_trace_is_unbiased_and_knows_its_error():
    predict, parameters, output, _, _ = case("conv", 2, 0)
    exact = neural_tangent_kernel(predict, parameters).trace().item()
    estimate = kernel_trace(predict, parameters, output, 400, torch.Generator().manual_seed(0))
    assert 0 < estimate.standard_error < 0.1 * exact
    assert abs(estimate.trace - exact) < 4 * estimate.standard_error
    assert math.isnan(kernel_trace(predict, parameters, output, 1, torch.Generator().manual_seed(0)).standard_error)


def test_a_kernel_can_turn_agreement_into_conflict():
    """The remark of E.5 in two dimensions: positive definite, residuals agree, gradients conflict."""
    kernel = torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double()
    residuals = torch.tensor([[1.0, 0.0], [1.0, 2.0]]).double()
    assert (torch.linalg.eigvalsh(kernel) > 0).all()
    plain, lifted = residuals @ residuals.T, kernel_interactions(kernel, residuals, torch.ones(2).double())
    assert plain[0, 1] == 1 and lifted[0, 1] == -1
    assert sign_agreement(plain, lifted) == 0 and sign_agreement(plain, plain) == 1


@given(size=st.integers(2, 6), rank=st.integers(1, 6), shift=st.sampled_from([0.0, 1.0, 100.0]), seed=seeds)
def test_every_kernel_but_the_identity_reverses_some_pair(size, rank, shift, seed):
    factor = torch.randn(size, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kernel = factor @ factor.T + shift * torch.eye(size, dtype=torch.float64)
    one, two = sign_reversing_pair(kernel)
    assert one @ two > 0 and one @ kernel @ two < 0


def test_the_identity_keeps_all_signs():
    with pytest.raises(ValueError, match="identity"):
        sign_reversing_pair(3 * torch.eye(4).double())


def test_dominance_condition_and_cosines_of_a_known_matrix():
    matrix = torch.tensor([[4.0, 1.0, -1.0], [1.0, 2.0, 0.0], [-1.0, 0.0, 1.0]]).double()
    torch.testing.assert_close(diagonal_dominance(matrix), torch.tensor([2.0, 2.0, 1.0]).double())
    torch.testing.assert_close(cosine_matrix(matrix)[0], torch.tensor([1, 1 / math.sqrt(8), -0.5]).double())
    assert condition_number(torch.diag(torch.tensor([8.0, 2.0]))) == pytest.approx(4)
    assert condition_number(torch.ones(2, 2)) == math.inf
    assert diagonal_dominance(torch.eye(2)).tolist() == [math.inf, math.inf]
    assert cosine_matrix(torch.diag(torch.tensor([1.0, 0.0])))[1].isnan().all()


@given(size=st.integers(2, 5), seed=seeds)
def test_dominance_bounds_the_spectrum(size, seed):
    """Gershgorin: with least ratio rho > 1 every eigenvalue is at least min a_ii (1 - 1 / rho)."""
    factor = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = factor @ factor.T + size * torch.eye(size, dtype=torch.float64)
    rho = diagonal_dominance(matrix).min()
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] >= matrix.diagonal().min() * (1 - 1 / rho) - 1e-9
    assert values[-1] <= matrix.diagonal().max() * (1 + 1 / rho) + 1e-9
