"""A picture scaled into a network's frame with its aspect ratio kept, as ultralytics does it, and back."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

GREY = 114
"""Value of the borders that YOLO networks are trained with."""


@dataclass(frozen=True)
class Letterbox:
    """Where a picture of ``size`` lies in a frame; both (width, height) in pixels."""

    size: tuple[int, int]
    frame: tuple[int, int]

    @property
    def scaled(self) -> tuple[int, int]:
        """Size of the picture in the frame, at least one pixel a side."""
        scale = min(self.frame[0] / self.size[0], self.frame[1] / self.size[1])
        return max(round(self.size[0] * scale), 1), max(round(self.size[1] * scale), 1)

    @property
    def corner(self) -> tuple[int, int]:
        """Left and upper border, half of what is free (the smaller half, as ultralytics rounds it)."""
        scaled = self.scaled
        return (self.frame[0] - scaled[0]) // 2, (self.frame[1] - scaled[1]) // 2

    def pixels(self, image: Image.Image) -> Image.Image:
        """The frame with an RGB picture of ``size`` in it.

        Bilinear between the four nearest pixels, like OpenCV's: what the networks were trained and are run with
        elsewhere. Pillow's own bilinear resize averages over more of them when it shrinks.
        """
        canvas = Image.new("RGB", self.frame, (GREY, GREY, GREY))
        scaled = image
        if self.scaled != self.size:
            across, down = (have / want for have, want in zip(self.size, self.scaled, strict=True))
            scaled = image.transform(
                self.scaled, Image.Transform.AFFINE, (across, 0, 0, 0, down, 0), Image.Resampling.BILINEAR
            )
        canvas.paste(scaled, self.corner)
        return canvas

    def into(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes (x0, y0, x1, y1) of the picture in pixels of the frame."""
        return boxes * self._factors + np.tile(self.corner, 2)

    def out_of(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Boxes of the frame in pixels of the picture. Inverse of :meth:`into`.

        Each side has its own factor, since the scaled picture has whole pixels; ultralytics uses one for both.
        """
        return (boxes - np.tile(self.corner, 2)) / self._factors

    @property
    def _factors(self) -> Float[np.ndarray, "4"]:
        return np.tile(np.divide(self.scaled, self.size), 2)
