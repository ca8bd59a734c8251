"""Enlarging by networks: the smallest sufficient factor, then one pass of resampling to the exact window and size."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import Field

from flowgrain.data.records import Box
from flowgrain.slices.upscalers.base import Network, Upscaler, UpscalerConfig
from flowgrain.slices.upscalers.lanczos import resample
from flowgrain.slices.upscalers.tiling import enlarge

MARGIN = 16
"""Input pixels around a window that the network sees too, so that it does not guess at the window's edges; beyond the
image its border pixels are repeated (Real-ESRGAN's own programs do so for 10)."""
_EXACT = 1e-9
"""Relative room for rounding where a factor is compared with a limit: a window is its size divided by its scale."""


class NetworkConfig(UpscalerConfig):
    """What all upscalers with a network share."""

    tile: int = Field(
        default=128, ge=32, le=4096, description="side of the parts that the network sees at once, input pixels; memory"
    )
    overlap: int | None = Field(
        default=None,
        ge=0,
        le=1024,
        description="input pixels that a tile sees around its part; null: the network's reach",
    )


class SuperResolution(Upscaler):
    """Networks of one kind by factor; up to ``lanczos_max`` interpolation, which needs no invention."""

    def __init__(self, name: str, networks: Sequence[Network], lanczos_max: float, config: NetworkConfig, digest: str):
        self.name = name
        self._networks = sorted(networks, key=lambda network: network.factor)
        self._lanczos_max = lanczos_max
        self._tile = config.tile
        self._overlap = config.overlap
        self._digest = digest
        self.max_factor = max(lanczos_max, float(self._networks[-1].factor))

    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """See :class:`Upscaler`."""
        x0, y0, x1, y1 = window
        network = self._network(max(size[0] / (x1 - x0), size[1] / (y1 - y0)))
        if network is None:
            return resample(image, window, size)
        left, top = math.floor(x0) - MARGIN, math.floor(y0) - MARGIN
        seen = _with_border(image, (left, top, math.ceil(x1) + MARGIN, math.ceil(y1) + MARGIN))
        overlap = network.reach if self._overlap is None else self._overlap
        large = enlarge(seen, network, self._tile, overlap)
        factor = network.factor
        inside = ((x0 - left) * factor, (y0 - top) * factor, (x1 - left) * factor, (y1 - top) * factor)
        return resample(large, inside, size)

    def method(self, factor: float) -> str:
        """See :class:`Upscaler`."""
        network = self._network(factor)
        return "lanczos" if network is None else f"{self.name} x{network.factor}"

    def fingerprint(self) -> str:
        """See :class:`Upscaler`."""
        return self._digest

    def _network(self, factor: float) -> Network | None:
        """The network of the smallest sufficient factor; None where interpolation does."""
        least = factor * (1 - _EXACT)
        if least <= self._lanczos_max:
            return None
        return next((network for network in self._networks if network.factor >= least), self._networks[-1])


def _with_border(image: Image.Image, region: tuple[int, int, int, int]) -> Image.Image:
    """A region of an image that may reach beyond it; there the nearest pixel of the image is repeated."""
    left, top, right, bottom = region
    inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    part = image.crop(inside)
    if inside == region:
        return part
    beyond = ((inside[1] - top, bottom - inside[3]), (inside[0] - left, right - inside[2]), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), beyond, mode="edge"))
