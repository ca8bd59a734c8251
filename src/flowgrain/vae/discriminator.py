"""Discriminators of patches, and their hinge losses: L_adv of Eq. 7 (Spatial Gram Alignment, arXiv 2605.20808).

``patch``: PatchGAN (Isola et al. 2017, arXiv 1611.07004, section 3.2), which the paper cites: 4x4 convolutions, n of
them of stride 2, logits of patches of 70 px at n = 3. ``paella``: what the authors' SC-VAE (Diffusion-4K,
arXiv 2503.18352) takes from Paella: 3x3 convolutions of stride 2 with spectral norm, and a sigmoid, under which the
hinge acts on values in (0, 1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from flowgrain.config import Config
from flowgrain.errors import ConfigError

Normalisation = Literal["instance", "batch", "none"]
SLOPE = 0.2
INITIAL_STD = 0.02
PAELLA_DEPTH = 6


class DiscriminatorConfig(Config):
    """The network that tells originals from reconstructions."""

    architecture: Literal["patch", "paella"] = Field(default="patch", description="PatchGAN, or that of SC-VAE")
    layers: int = Field(default=3, ge=1, le=6, description="stride-2 layers of PatchGAN: patches of 34, 70, 142 px")
    width: int = Field(default=64, ge=1, description="channels of the first layer")
    normalisation: Normalisation = Field(
        default="instance",
        description="of PatchGAN: instance is by sample, so that micro-batches change nothing; batch is the ancestors'",
    )
    spectral_norm: bool = Field(default=False, description="of PatchGAN's convolutions; paella always has it")
    sigmoid: bool = Field(default=True, description="of paella: hinge on values in (0, 1), as released")
    gradient_penalty: float = Field(default=0.0, ge=0, description="weight of the penalty on originals; SC-VAE: 10")
    penalty_form: Literal["unit", "zero"] = Field(
        default="unit", description="(|g| - 1)^2 as SC-VAE, or |g|^2 (R1), g the gradient of the summed logits"
    )


class Discriminator(nn.Module):
    """Convolutions that give a map of logits, one a patch."""

    def __init__(self, layers: nn.Sequential, smallest: int):
        super().__init__()
        self.layers = layers
        self.smallest = smallest
        """Shortest side in pixels that every layer can be computed of."""

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 i j"]:
        """Logits of images in [-1, 1]. Raises :class:`ConfigError` for sides below ``smallest``."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise ConfigError(
                f"discriminator: pictures of {width}x{height} px, it needs {self.smallest} a side; "
                "take fewer layers, the architecture 'patch', or larger pictures"
            )
        return self.layers(images)


def build_discriminator(config: DiscriminatorConfig, channels: int = 3) -> Discriminator:
    """A discriminator with fresh weights from torch's global generator, for images of ``channels``."""
    if config.architecture == "paella":
        return Discriminator(_paella(channels, config), smallest=2**PAELLA_DEPTH + 1)
    # the last two convolutions take 1 off a side each, and a norm needs more than one place
    return Discriminator(_patch(channels, config), smallest=3 * 2**config.layers)


def _patch(channels: int, config: DiscriminatorConfig) -> nn.Sequential:
    widths = [config.width * min(2**number, 8) for number in range(config.layers + 1)]
    layers: list[nn.Module] = [_convolution(channels, widths[0], 2, True, config), nn.LeakyReLU(SLOPE)]
    for number, (width_in, width) in enumerate(pairwise(widths), start=1):
        stride = 2 if number < config.layers else 1
        layers += [
            _convolution(width_in, width, stride, config.normalisation != "batch", config),
            *_normalised(width, config.normalisation),
            nn.LeakyReLU(SLOPE),
        ]
    return nn.Sequential(*layers, _convolution(widths[-1], 1, 1, True, config))


def _convolution(width_in: int, width: int, stride: int, bias: bool, config: DiscriminatorConfig) -> nn.Module:
    """4x4; its bias is left out where a batch norm has one."""
    layer = nn.Conv2d(width_in, width, 4, stride, padding=1, bias=bias)
    nn.init.normal_(layer.weight, 0.0, INITIAL_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if config.spectral_norm else layer


def _normalised(width: int, kind: Normalisation) -> list[nn.Module]:
    if kind == "none":
        return []
    if kind == "instance":
        return [nn.InstanceNorm2d(width)]
    layer = nn.BatchNorm2d(width)
    nn.init.normal_(layer.weight, 1.0, INITIAL_STD)
    return [layer]


def _paella(channels: int, config: DiscriminatorConfig) -> nn.Sequential:
    widths = [channels, *(config.width * min(2**number, 8) for number in range(PAELLA_DEPTH))]
    layers: list[nn.Module] = []
    for number, (width_in, width) in enumerate(pairwise(widths)):
        layers.append(spectral_norm(nn.Conv2d(width_in, width, 3, stride=2, padding=1)))
        layers += [nn.InstanceNorm2d(width)] if number else []
        layers.append(nn.LeakyReLU(SLOPE))
    layers.append(nn.Conv2d(widths[-1], 1, 1))
    return nn.Sequential(*layers, *([nn.Sigmoid()] if config.sigmoid else []))


@torch.no_grad()
def advance_spectral_norms(discriminator: Discriminator) -> None:
    """One power iteration of each spectral norm, once an update; nothing where there is none.

    Afterwards its forward passes change no state, so that their number, the micro-batches', changes nothing: layers are
    in evaluation mode but for batch norms, which keep to the statistics of what they are given.
    """
    discriminator.train()
    for layer in discriminator.modules():
        if parametrize.is_parametrized(layer, "weight"):
            _ = layer.weight  # in training mode reading the weight iterates once
    for layer in discriminator.modules():
        layer.training = isinstance(layer, nn.BatchNorm2d)


def generator_hinge(logits: Float[Tensor, "b 1 i j"]) -> Float[Tensor, " b"]:
    """L_adv of the autoencoder: minus the mean logit of its outputs, by sample."""
    return -logits.float().mean(dim=(1, 2, 3))


def discriminator_hinge(
    original: Float[Tensor, "b 1 i j"], reconstructed: Float[Tensor, "b 1 i j"]
) -> Float[Tensor, " b"]:
    """mean relu(1 - D(x)) + mean relu(1 + D(x_hat)), by sample.

    Latent diffusion halves it; with Adam-like optimizers that is the same.
    """
    real = functional.relu(1 - original.float()).mean(dim=(1, 2, 3))
    return real + functional.relu(1 + reconstructed.float()).mean(dim=(1, 2, 3))


def gradient_penalty(
    discriminator: nn.Module, images: Float[Tensor, "b c h w"], form: Literal["unit", "zero"] = "unit"
) -> Float[Tensor, " b"]:
    """(|g| - 1)^2 (``unit``) or |g|^2 (``zero``) of g = d sum of logits / d image at originals, by sample, in float32.

    Differentiable in the discriminator's parameters.
    """
    with torch.autocast(images.device.type, enabled=False), torch.enable_grad():
        pixels = images.detach().float().requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator(pixels).sum(), pixels, create_graph=True)
        squares = slope.square().sum(dim=(1, 2, 3))
    if form == "zero":
        return squares
    return (squares.clamp(min=1e-20).sqrt() - 1).square()  # the root of 0 has no gradient


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module in the block, to none of its parameters; flags are put back after it."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
