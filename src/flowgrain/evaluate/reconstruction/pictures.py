"""Originals as they are given to an autoencoder: sized, then cropped to what it can encode."""

import math

from PIL import Image
from pydantic import Field

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.evaluate.reconstruction.perceptual import SMALLEST


class Preparation(Config):
    """How a picture becomes an original. The same for every autoencoder that is compared."""

    size: int | None = Field(
        default=None, ge=SMALLEST, description="side in pixels of a centred square; None keeps size and aspect"
    )
    max_pixels: int | None = Field(
        default=None, ge=SMALLEST**2, description="pictures of more pixels are scaled down to about this many"
    )
    multiple: int = Field(default=8, ge=1, description="sides are cropped to multiples of this many pixels")

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The original. Raises :class:`DataError` for a picture that is too small to be encoded and measured."""
        if self.size is not None:
            picture = _resized(picture, self.size / min(picture.size))
        elif self.max_pixels is not None and picture.width * picture.height > self.max_pixels:
            picture = _resized(picture, math.sqrt(self.max_pixels / (picture.width * picture.height)))
        wanted = (self.size, self.size) if self.size is not None else picture.size
        width, height = (side - side % self.multiple for side in wanted)
        if min(width, height) < SMALLEST:
            raise DataError(f"{picture.width}x{picture.height} pixels, at least {SMALLEST} a side are needed")
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))


def _resized(picture: Image.Image, factor: float) -> Image.Image:
    if factor == 1:
        return picture
    width, height = (max(round(side * factor), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
