"""Deeper compression of an ``AutoencoderKL`` by stride: f8 becomes f16, f32, ..., with the weights that it has.

Diffusion-4K (arXiv 2503.18352, section 3.2), reused by Spatial Gram Alignment (arXiv 2605.20808): the encoder's first
convolution gets stride k = 2^n, and the map is upsampled k times (nearest) right before the decoder's last one. No
layer is added and no file of diffusers copied: the stride is a field of the convolution, upsampling a subclass of it.

The last step holds the largest map, 128 channels at full resolution. It can be computed in pieces with a border of
ov = 1 low-resolution pixels, cut off after the convolution:

    piece = conv(up_k(h[rows a - ov to b + ov]))[k ov : k ov + k (b - a)]

which is bitwise the whole map. The released code starts the cut at ov instead of k ov: its output is shifted by one
pixel down and right, P[1:, 1:] == Full[:-1, :-1], sees zeros in the first row and column and loses the last ones. A
decoder that was trained so has learned to undo it; ``legacy_shift`` is for such weights.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from flowgrain.errors import ConfigError, ModelError

OVERLAP = 1
"""Of pieces in low-resolution pixels: the last convolution is 3x3."""


@dataclass(frozen=True)
class Depth:
    """How much deeper than its layers an autoencoder compresses."""

    doublings: int = 0
    legacy_shift: bool = False

    @property
    def factor(self) -> int:
        """k, the stride of the first convolution."""
        return 2**self.doublings


def upsampled_convolution(
    features: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"] | None,
    factor: int,
    parts: int = 1,
    legacy_shift: bool = False,
) -> Float[Tensor, "b d i j"]:
    """A 3x3 convolution (zeros around) of the map upsampled ``factor`` times, in ``parts`` x ``parts`` pieces.

    The number of pieces changes memory alone. Raises ValueError where ``parts`` exceeds a side of the map.
    """
    height, width = features.shape[-2:]
    if not 1 <= parts <= min(height, width):
        raise ValueError(f"{parts} parts a side of a map of {height}x{width}")
    if parts == 1 and not legacy_shift:
        return functional.conv2d(_upsampled(features, factor), weight, bias, padding=1)
    bordered = functional.pad(features, (OVERLAP,) * 4)
    start = OVERLAP if legacy_shift else factor * OVERLAP
    rows = []
    for top, bottom in _cuts(height, parts):
        row = []
        for left, right in _cuts(width, parts):
            piece = bordered[:, :, top : bottom + 2 * OVERLAP, left : right + 2 * OVERLAP]
            piece = functional.conv2d(_upsampled(piece, factor), weight, bias, padding=1)
            down, across = start + factor * (bottom - top), start + factor * (right - left)
            row.append(piece[:, :, start:down, start:across])
        rows.append(torch.cat(row, dim=3))
    return torch.cat(rows, dim=2)


class UpsampledOutput(nn.Conv2d):
    """The decoder's last convolution on an upsampled map; parameters and their names are those of the plain one."""

    def __init__(self, plain: nn.Conv2d, factor: int, legacy_shift: bool):
        size: Any = plain.kernel_size
        super().__init__(plain.in_channels, plain.out_channels, size, padding=1, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.factor = factor
        self.legacy_shift = legacy_shift
        self.parts = 1

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """See :func:`upsampled_convolution`."""
        return upsampled_convolution(input, self.weight, self.bias, self.factor, self.parts, self.legacy_shift)


def deepen(vae: AutoencoderKL, doublings: int = 1, legacy_shift: bool = False) -> AutoencoderKL:
    """Make ``vae`` compress 2^doublings times more a side, in place, and return it; parameters stay the same objects.

    Tiles keep their size in pixels. Raises :class:`ConfigError` for a model that is deeper already, and for
    ``legacy_shift`` with anything but one doubling, for which alone such weights exist; :class:`ModelError` for
    another last layer than a 3x3 convolution.
    """
    if depth_of(vae).doublings:
        raise ConfigError(f"deeper compression: the autoencoder has {depth_of(vae).doublings} doublings already")
    if doublings < 0 or (legacy_shift and doublings != 1):
        raise ConfigError(f"deeper compression: {doublings} doublings; take 0 or more, and 1 with legacy_shift")
    if not doublings:
        return vae
    first, last = vae.encoder.conv_in, vae.decoder.conv_out
    if (first.kernel_size, first.padding, last.kernel_size, last.padding) != ((3, 3), (1, 1)) * 2:
        raise ModelError("deeper compression needs 3x3 convolutions at both ends, padded by 1; this model has others")
    factor = 2**doublings
    first.stride = (factor, factor)
    vae.decoder.conv_out = UpsampledOutput(last, factor, legacy_shift)
    vae.tile_latent_min_size = max(vae.tile_latent_min_size // factor, 1)
    return vae


def depth_of(vae: AutoencoderKL) -> Depth:
    """What :func:`deepen` did to a model."""
    last = vae.decoder.conv_out
    if not isinstance(last, UpsampledOutput):
        return Depth()
    return Depth(last.factor.bit_length() - 1, last.legacy_shift)


def shallow_copy(vae: AutoencoderKL) -> AutoencoderKL:
    """A copy, with weights of its own, that compresses as its layers do: the teacher of a deeper model."""
    copied = copy.deepcopy(vae)
    last = copied.decoder.conv_out
    if isinstance(last, UpsampledOutput):
        plain = nn.Conv2d(last.in_channels, last.out_channels, 3, padding=1, device="meta")
        plain.weight, plain.bias = last.weight, last.bias
        copied.decoder.conv_out = plain
        copied.encoder.conv_in.stride = (1, 1)
        copied.tile_latent_min_size *= last.factor
    return copied


def cell_pixels(vae: AutoencoderKL) -> int:
    """Pixels per latent cell and side, deeper compression included."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1) * depth_of(vae).factor


def set_parts(vae: AutoencoderKL, parts: int) -> None:
    """Compute the last step of a deeper model in ``parts`` x ``parts`` pieces; nothing else changes.

    Raises :class:`ConfigError` for a model that is not deeper, or less than one part.
    """
    last = vae.decoder.conv_out
    if not isinstance(last, UpsampledOutput) or parts < 1:
        raise ConfigError(f"{parts} parts: pieces (1 or more) are of the last step of a deeper autoencoder; remove it")
    last.parts = parts


def _upsampled(features: Tensor, factor: int) -> Tensor:
    return functional.interpolate(features, scale_factor=factor, mode="nearest")


def _cuts(length: int, parts: int) -> list[tuple[int, int]]:
    return list(pairwise(length * number // parts for number in range(parts + 1)))
