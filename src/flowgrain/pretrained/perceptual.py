"""Networks of perceptual distance (LPIPS; Zhang et al. 2018, arXiv 1801.03924, Eq. 1) and its shift-tolerant form.

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) - f_lc(y))^2

over five stages l of a classification network, with features f of unit length over channels and learned weights w >= 0.
Version 0.1 of LPIPS, which scales its input, is what everybody reports. ST-LPIPS (Ghildyal and Liu 2022, arXiv
2207.13686) retrains the whole with blurred downsampling, so that a shift of one pixel no longer counts as a difference.
Here are the networks alone; ``perceptual_weights`` fills them. Evaluation and autoencoder training share them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Network = Literal["alex", "vgg"]
INPUT_SHIFT = (-0.030, -0.088, -0.188)
INPUT_SCALE = (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation for pixels in [-1, 1]."""
SMALLEST = 32
"""Shortest side in pixels that every stage of the networks can be computed of."""


@dataclass(frozen=True)
class Architecture:
    """Layers of a backbone in order, ends (exclusive) of its five stages, and their channels."""

    layers: tuple[nn.Module, ...]
    ends: tuple[int, ...]
    channels: tuple[int, ...]


class BlurPool(nn.Module):
    """Every second pixel after a [1 2 1] / 4 blur in both directions (Zhang 2019), with reflected borders of 2 px."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
        """Half the size, plus one cell."""
        line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
        return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def architecture(network: Network, shift_tolerant: bool) -> Architecture:
    """AlexNet or VGG-16 up to the last stage that is compared, with or without blurred downsampling."""
    if network == "alex":
        return _alexnet(shift_tolerant)
    return _vgg16(shift_tolerant)


def _alexnet(shift_tolerant: bool) -> Architecture:
    if shift_tolerant:
        start = [nn.Conv2d(3, 64, 11, stride=1, padding=2), BlurPool(), nn.ReLU()]
        ends = (3, 7, 11, 13, 15)
    else:
        start = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()]
        ends = (2, 5, 8, 10, 12)
    layers = [
        *start,
        *_halved(3, shift_tolerant),
        *_conv_relu(64, 192, 5),
        *_halved(3, shift_tolerant),
        *_conv_relu(192, 384, 3),
        *_conv_relu(384, 256, 3),
        *_conv_relu(256, 256, 3),
    ]
    return Architecture(tuple(layers), ends, (64, 192, 384, 256, 256))


def _vgg16(shift_tolerant: bool) -> Architecture:
    layers: list[nn.Module] = []
    ends, channels, width_in = [], (64, 128, 256, 512, 512), 3
    for width, repeats in zip(channels, (2, 2, 3, 3, 3), strict=True):
        if layers:
            layers += _halved(2, shift_tolerant)
        for _ in range(repeats):
            layers += _conv_relu(width_in, width, 3)
            width_in = width
        ends.append(len(layers))
    return Architecture(tuple(layers), tuple(ends), channels)


def _conv_relu(width_in: int, width: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width, kernel, padding=kernel // 2), nn.ReLU()]


def _halved(window: int, shift_tolerant: bool) -> list[nn.Module]:
    return [nn.MaxPool2d(window, stride=1), BlurPool()] if shift_tolerant else [nn.MaxPool2d(window, stride=2)]


class PerceptualNetwork(nn.Module):
    """A backbone with its heads; weights are random until they are loaded."""

    def __init__(self, design: Architecture):
        super().__init__()
        self.layers = nn.Sequential(*design.layers)
        self.heads = nn.ParameterList(torch.rand(channels) for channels in design.channels)
        self._ends = frozenset(design.ends)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of pictures in [0, 1], at least 0."""
        features = zip(self._unit_features(x), self._unit_features(y), strict=True)
        stages = [
            torch.einsum("bchw,c->bhw", (f - g).square(), head).mean(dim=(1, 2))
            for head, (f, g) in zip(self.heads, features, strict=True)
        ]
        return torch.stack(stages).sum(dim=0)

    def _unit_features(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        shift, scale = (pixels.new_tensor(values).view(3, 1, 1) for values in (INPUT_SHIFT, INPUT_SCALE))
        x = (2 * pixels - 1 - shift) / scale
        stages = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in self._ends:
                stages.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return stages
