"""The seam of upscalers: a window of the source image, brought to a slice's size.

Only Lanczos interpolation is here. It invents no detail, hence its own limit: above ``lanczos_max`` a box is
discarded and not blown up.
"""

from abc import ABC, abstractmethod

from PIL import Image

from flowgrain.data.records import Box


class Upscaler(ABC):
    """Enlarges a window of an image."""

    name: str
    max_factor: float
    """Greatest factor that gives a picture worth training on."""

    @abstractmethod
    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """The window (source pixels, fractions allowed) as an image of ``size`` (width, height)."""


class LanczosUpscaler(Upscaler):
    """Pillow's Lanczos filter, three lobes."""

    name = "lanczos"

    def __init__(self, max_factor: float):
        self.max_factor = max_factor

    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """See :class:`Upscaler`."""
        return resample(image, window, size)


def resample(image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
    """Lanczos, antialiased when it shrinks; the window may lie between pixels, so one pass does crop and resize."""
    return image.resize(size, Image.Resampling.LANCZOS, window)
