"""The seam of image encoders: pictures in, one feature vector each out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from flowgrain.data.images import open_image
from flowgrain.errors import DataError
from flowgrain.evaluate.base import ImageLike


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """Prompts in the joint space of an encoder of pictures and text."""

    features: Float[np.ndarray, "n d"]
    truncated: tuple[int, ...]
    """Rows whose prompt is longer than the text encoder's context: its end was cut off."""


class ImageEncoder(ABC):
    """Pictures to feature vectors. ``name`` and ``version`` say everything that changes the numbers."""

    family: str
    """Kind of network, for the names of metrics: ``MobileNetV2``, ``CLIP``, ``DINOv2``, ``Inception``."""
    name: str
    version: str
    """Origin of the weights, with the start of the SHA-256 of their file."""
    size: int
    """Side in pixels of what the network sees."""
    resize: str
    dimension: int
    batch_size: int = 16
    """Pictures encoded in one go. A row is the same in any batch to rounding (1e-5 relative), not to the bit."""

    @abstractmethod
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """Features, float32, a row for each picture; pictures are decoded batch by batch, never all at once."""

    def text(self, prompts: Sequence[str]) -> TextFeatures | None:
        """The prompts in the space of the picture features; None if the encoder has no text side."""
        return None

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"] | None:
        """Class logits from the encoder's own features, for the Inception Score; None if it is no classifier."""
        return None


def open_rgb(image: ImageLike) -> Image.Image:
    """The picture as 8-bit RGB, transparency on white. Raises :class:`DataError` for what is no picture."""
    if isinstance(image, Path):
        return open_image(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"picture array of {image.dtype} {image.shape}: expected uint8 of shape (h, w, 3)")
        return Image.fromarray(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
