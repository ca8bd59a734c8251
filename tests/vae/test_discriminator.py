"""Sizes, receptive fields and hinge values of the discriminators, by known numbers and by hand."""

import pytest
import torch
from torch import nn

from flowgrain.errors import ConfigError
from flowgrain.vae.discriminator import (
    DiscriminatorConfig,
    build_discriminator,
    discriminator_hinge,
    frozen,
    generator_hinge,
    gradient_penalty,
)


def built(seed=0, channels=3, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_discriminator(DiscriminatorConfig(**settings), channels)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts():
    # pix2pix prints 2.769 M (6 channels, batch norm), CycleGAN 2.765 M (3 channels, instance norm)
    assert count(built(channels=6, normalisation="batch")) == 2_768_705
    assert count(built(normalisation="instance")) == 2_764_737
    convolutions = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    expected = sum(9 * a * b + b for a, b in convolutions) + 513
    assert count(built(architecture="paella")) == expected


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field(layers, field):
    side = 2 * field + 8
    network = built(layers=layers, width=4, normalisation="none").double()
    images = torch.zeros(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    logits = network(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == field


@pytest.mark.parametrize("settings", [{"layers": 3}, {"layers": 1}, {"architecture": "paella"}])
def test_smallest_side_is_the_smallest_that_works(settings):
    network = built(width=8, **settings).train()
    images = torch.rand(2, 3, network.smallest, network.smallest)
    assert network(images).isfinite().all()
    with pytest.raises(ConfigError, match=f"it needs {network.smallest} a side"):
        network(images[..., 1:, 1:])
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network.layers(images[..., : network.smallest - 1, : network.smallest - 1])


def test_instance_norm_is_by_sample_and_batch_norm_is_not():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for kind, alike in (("instance", True), ("none", True), ("batch", False)):
        network = built(width=8, normalisation=kind, layers=2).train()
        assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5) == alike


def test_spectral_norm_bounds_every_convolution():
    network = built(width=8, layers=2, spectral_norm=True)
    for _ in range(40):
        network(torch.rand(1, 3, 32, 32))
    network.eval()
    weights = [layer.weight for layer in network.layers if isinstance(layer, nn.Conv2d)]
    largest = [torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() for weight in weights]
    assert len(largest) == 4
    assert largest == pytest.approx([1] * 4, rel=0.02)


def test_paella_ends_in_a_sigmoid_unless_told_otherwise():
    images = torch.rand(1, 3, 65, 65) * 2 - 1
    inside = built(architecture="paella", width=8)(images)
    logits = built(architecture="paella", width=8, sigmoid=False)(images)
    assert torch.allclose(torch.sigmoid(logits), inside)


def test_hinge_by_hand():
    original = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]).view(2, 1, 1, 2)
    output = torch.tensor([[-2.0, 0.0], [0.5, -0.5]]).view(2, 1, 1, 2)
    assert discriminator_hinge(original, output).tolist() == [0.25 + 0.5, 1.0 + 1.0]
    assert generator_hinge(output).tolist() == [1.0, 0.0]


class Linear(nn.Module):
    """D(x) = a sum over pixels of x times a fixed pattern; d / dx is a times the pattern."""

    def __init__(self, pattern):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.pattern = pattern

    def forward(self, images):
        return (self.scale * self.pattern * images).sum(dim=1, keepdim=True)


def test_gradient_penalty_of_a_linear_discriminator():
    pattern = torch.full((3, 2, 2), 0.5)  # norm sqrt(12) / 2
    network, images = Linear(pattern), torch.rand(2, 3, 2, 2)
    norm = 12**0.5  # 2 * sqrt(12) / 2
    assert gradient_penalty(network, images).tolist() == pytest.approx([(norm - 1) ** 2] * 2)
    assert gradient_penalty(network, images, "zero").tolist() == pytest.approx([12.0] * 2)
    gradient_penalty(network, images).sum().backward()
    # d (a n - 1)^2 / da = 2 n (a n - 1), two samples, n the pattern's norm
    assert network.scale.grad.item() == pytest.approx(2 * 2 * (norm / 2) * (norm - 1), rel=1e-5)


def test_gradient_penalty_survives_a_discriminator_without_slope():
    network = Linear(torch.zeros(3, 2, 2))
    penalty = gradient_penalty(network, torch.rand(1, 3, 2, 2))
    penalty.sum().backward()
    assert penalty.item() == pytest.approx(1)
    assert network.scale.grad.item() == 0


def test_frozen_lets_gradients_pass_and_puts_flags_back():
    network = built(width=4, layers=1, spectral_norm=True)
    next(network.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    with frozen(network):
        value = network(images).sum()
    value.backward()
    assert images.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
