"""Eqs. 4, 5 and 39-45 of Semantic Granularity Alignment on models of known Jacobian and kernel."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.flow.paths import RectifiedFlow
from flowgrain.geometry.interference import interference_matrix, quadratic_form, residuals
from flowgrain.geometry.kernel import (
    component_gram,
    gradient_components,
    jacobian,
    kernel_interactions,
    neural_tangent_kernel,
    sign_agreement,
    total_gradient,
)
from flowgrain.geometry.mixture import AffinePath, EmpiricalLaw, group_fields
from flowgrain.geometry.partitions import from_labels

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
seeds = st.integers(0, 10**6)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def local_case(seed, output, groups):
    """Residuals and densities of some groups at one x."""
    return normal(seed, groups, output), torch.softmax(normal(seed + 1, groups), dim=0)


@given(seed=seeds, output=st.integers(1, 5), inputs=st.integers(1, 5), groups=st.integers(2, 4))
@settings(max_examples=30)
def test_eqs_39_to_45_of_a_linear_layer(seed, output, inputs, groups):
    """v = W x: J Delta = Delta x', Theta = |x|^2 I, gradients interact as |x|^2 alpha alpha Omega: signs stay."""
    weight, x = normal(seed + 2, output, inputs), normal(seed + 3, inputs)
    residual, density = local_case(seed, output, groups)
    predict, parameters = lambda p: p["weight"] @ x, {"weight": weight}
    eye, square = torch.eye(output, dtype=torch.float64), x.square().sum()
    torch.testing.assert_close(jacobian(predict, parameters), torch.kron(eye, x[None]), **CLOSE)  # Eq. 39
    kernel = neural_tangent_kernel(predict, parameters)
    torch.testing.assert_close(kernel, square * eye, **CLOSE)  # Eq. 44
    components = gradient_components(predict, parameters, residual, density)
    expected = density[:, None] * torch.einsum("go,i->goi", residual, x).flatten(1)
    torch.testing.assert_close(components, expected, **CLOSE)  # Eq. 42
    total = torch.outer(density @ residual, x).flatten()
    torch.testing.assert_close(total_gradient(predict, parameters, density @ residual), total, **CLOSE)  # Eq. 40
    torch.testing.assert_close(components.sum(dim=0), total, **CLOSE)  # Eq. 41
    omega = interference_matrix(residual[None])[0]
    expected_gram = square * density[:, None] * omega * density
    torch.testing.assert_close(component_gram(components), expected_gram, **CLOSE)  # Eq. 43
    gram = kernel_interactions(kernel, residual, density)
    torch.testing.assert_close(gram, expected_gram, **CLOSE)  # Eqs. 4 and 45
    assert sign_agreement(omega, gram) == 1


@given(seed=seeds, rank=st.integers(1, 3), groups=st.integers(2, 4))
@settings(max_examples=30)
def test_eqs_42_to_45_of_a_low_rank_layer(seed, rank, groups):
    """v = (W + B A) x, A and B trained: Theta = |A x|^2 I + |x|^2 B B'. At B = 0, where LoRA starts, signs are kept."""
    frozen, x = normal(seed + 2, 4, 3), normal(seed + 3, 3)
    down, up = normal(seed + 4, rank, 3), normal(seed + 5, 4, rank)
    residual, density = local_case(seed, 4, groups)

    def predict(p):
        return frozen @ x + p["up"] @ (p["down"] @ x)

    middle, eye = down @ x, torch.eye(4, dtype=torch.float64)
    kernel = neural_tangent_kernel(predict, {"down": down, "up": up})
    torch.testing.assert_close(kernel, middle.square().sum() * eye + x.square().sum() * up @ up.T, **CLOSE)
    components = gradient_components(predict, {"down": down, "up": up}, residual, density)
    weighted = density[:, None] * residual
    to_down = torch.einsum("gr,i->gri", weighted @ up, x).flatten(1)
    to_up = torch.einsum("go,r->gor", weighted, middle).flatten(1)
    torch.testing.assert_close(components, torch.cat([to_down, to_up], dim=1), **CLOSE)
    start = neural_tangent_kernel(predict, {"down": down, "up": torch.zeros_like(up)})
    torch.testing.assert_close(start, middle.square().sum() * eye, **CLOSE)
    omega = interference_matrix(residual[None])[0]
    assert sign_agreement(omega, kernel_interactions(start, residual, density)) == 1


def test_proposition_3_is_of_half_the_loss_of_eq_1():
    """J' e is the gradient of |e|^2 / 2 (Eq. 37); the gradient of Eq. 1's integrand is twice that."""
    weight, x, target = normal(0, 3, 2), normal(1, 2), normal(2, 3)
    parameters = {"weight": weight}
    full = torch.func.grad(lambda w: (w @ x - target).square().sum())(weight).flatten()
    lifted = total_gradient(lambda p: p["weight"] @ x, parameters, weight @ x - target)
    torch.testing.assert_close(2 * lifted, full, **CLOSE)


def test_the_last_arrow_of_eq_5_is_no_equivalence():
    """A model linear in its parameters descends on E[alpha' Omega alpha] to almost nothing; its kernel never moves."""
    samples, t = normal(0, 6, 1), 0.7
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
    groups = group_fields(
        EmpiricalLaw(samples, AffinePath(RectifiedFlow())).terms(x, t), from_labels([0, 1, 0, 1, 2, 2])
    )
    features = torch.exp(-0.5 * ((x - torch.linspace(-2, 2, 8, dtype=torch.float64)) / 0.5).square())

    def predict(p):
        return features @ p["weight"]

    def loss(weight):
        residual = residuals(features @ weight[:, None], groups.fields)
        return quadratic_form(groups.alpha, interference_matrix(residual)).mean()

    weight = torch.zeros(8, dtype=torch.float64)
    before, first = neural_tangent_kernel(predict, {"weight": weight}), loss(weight).item()
    for _ in range(400):
        weight = weight - 0.5 * torch.func.grad(loss)(weight)
    assert loss(weight).item() < 0.01 * first
    assert torch.equal(neural_tangent_kernel(predict, {"weight": weight}), before)
