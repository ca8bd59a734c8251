"""Perceptual distance as a loss, differentiable in its first argument: L_LPIPS of Eq. 7 (arXiv 2605.20808).

LPIPS itself (Zhang et al. 2018, arXiv 1801.03924) needs ImageNet weights that the user names. The stand-in
``mobilenet`` runs wherever the MobileNetV2 weights are installed and is a different number: features of three blocks of
unit length, squared differences summed over channels, averaged over places, summed over blocks, without learned
weights. The embedded autoencoder was trained with it.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowgrain.errors import ConfigError, DataError
from flowgrain.pretrained.mobilenet import MEAN, STD, WEIGHTS_SHA256, MobileNetV2, load_mobilenet_v2
from flowgrain.pretrained.perceptual import SMALLEST
from flowgrain.pretrained.perceptual_weights import PERCEPTUAL_USAGE, open_network

STAND_IN = "mobilenet"
STAND_IN_BLOCKS = (1, 3, 6)
"""Last blocks at strides 2, 4 and 8."""
STAND_IN_SMALLEST = 16
USAGE = f"{STAND_IN} (a stand-in for LPIPS), {PERCEPTUAL_USAGE}"


class MobileNetDistance(nn.Module):
    """Squared distance of unit-length MobileNetV2 features; the network is frozen."""

    def __init__(self, network: MobileNetV2, blocks: tuple[int, ...] = STAND_IN_BLOCKS):
        super().__init__()
        self.layers = nn.ModuleList(list(network.features)[: max(blocks) + 1])
        self.blocks = frozenset(blocks)
        self.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The distance of pictures in [0, 1], at least 0."""
        pairs = zip(self._features(x), self._features(y), strict=True)
        return torch.stack([(f - g).square().sum(dim=1).mean(dim=(1, 2)) for f, g in pairs]).sum(dim=0)

    def _features(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        x, found = (pixels - mean) / std, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.blocks:
                found.append(functional.normalize(x, dim=1))
        return found


class PerceptualLoss(nn.Module):
    """A frozen perceptual distance of pictures in [-1, 1], by sample, in float32 also under autocast.

    It has no trainable parameters and stays in evaluation mode.
    """

    def __init__(self, distance: nn.Module, title: str, version: str, smallest: int):
        super().__init__()
        self.distance = distance.eval().requires_grad_(False)
        self.title = title
        self.version = version
        """Everything that changes the number."""
        self.smallest = smallest

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Stays in evaluation mode: batch statistics must not move."""
        return super().train(False)

    def forward(self, output: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """At least 0. Raises :class:`DataError` for sides too short for the network."""
        height, width = images.shape[-2:]
        if min(height, width) < self.smallest:
            raise DataError(f"a picture of {width}x{height} pixels: {self.title} needs {self.smallest} a side")
        with torch.autocast(output.device.type, enabled=False):
            x, y = ((1 + pixels.float()) / 2 for pixels in (output, images))
            return self.distance(x, y)


def open_perceptual_loss(spec: str, heads: Path | None = None) -> PerceptualLoss:
    """The loss named ``mobilenet``, ``st-lpips``, ``st-lpips:vgg``, ``lpips-alex:FILE`` or ``lpips-vgg:FILE``.

    ``heads`` is a file for the last two. Raises :class:`ConfigError` for anything else, and :class:`ModelError` for
    weights that are missing or of another network.
    """
    if spec == STAND_IN:
        if heads is not None:
            raise ConfigError(f"perceptual distance '{spec}' has no heads; they go with lpips only, remove {heads}")
        version = f"blocks {', '.join(map(str, STAND_IN_BLOCKS))}, sha256 {WEIGHTS_SHA256}"
        title = "MobileNetV2 stand-in for LPIPS"
        return PerceptualLoss(MobileNetDistance(load_mobilenet_v2()), title, version, STAND_IN_SMALLEST)
    kind = spec.partition(":")[0]
    if kind not in ("st-lpips", "lpips-alex", "lpips-vgg"):
        raise ConfigError(f"perceptual distance '{spec}'; use {USAGE}")
    loaded = open_network(spec, heads)
    return PerceptualLoss(loaded.network, loaded.title, loaded.version, SMALLEST)
