"""Lanczos interpolation. It invents no detail, hence a limit of its own: above it a box is discarded, not blown up."""

from typing import Literal

from PIL import Image

from flowgrain.data.records import Box
from flowgrain.slices.upscalers.base import Upscaler, UpscalerConfig, UpscalerContext


class LanczosConfig(UpscalerConfig):
    """Interpolation up to ``lanczos_max`` and nothing beyond it."""

    kind: Literal["lanczos"] = "lanczos"

    def build(self, context: UpscalerContext) -> "LanczosUpscaler":
        """See :class:`UpscalerConfig`."""
        return LanczosUpscaler(context.lanczos_max)


class LanczosUpscaler(Upscaler):
    """Pillow's Lanczos filter, three lobes."""

    name = "lanczos"

    def __init__(self, max_factor: float):
        self.max_factor = max_factor

    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """See :class:`Upscaler`."""
        return resample(image, window, size)

    def method(self, factor: float) -> str:
        """See :class:`Upscaler`."""
        return self.name

    def fingerprint(self) -> str:
        """See :class:`Upscaler`."""
        return ""


def resample(image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
    """Lanczos, antialiased when it shrinks; the window may lie between pixels, so one pass does crop and resize."""
    return image.resize(size, Image.Resampling.LANCZOS, window)
