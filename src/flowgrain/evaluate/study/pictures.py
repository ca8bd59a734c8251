"""Pictures of a study: re-encoded without metadata, of one size within an item, under random names."""

import io
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flowgrain.data.images import open_image
from flowgrain.errors import DataError
from flowgrain.evaluate.study.config import PictureConfig
from flowgrain.evaluate.study.plan import MEDIA, Picture

BLUR = 0.03
"""Radius of the strongest blur, share of the longer side."""
NOISE = 48.0
"""Standard deviation of the strongest noise, of 255."""
_WEBP_QUALITY = 95
_SAME_SHAPE = 0.01


class PictureWriter:
    """Writes pictures into ``folder/media``."""

    def __init__(self, folder: Path, config: PictureConfig):
        self._folder = folder / MEDIA
        self._folder.mkdir()
        self._config = config
        self._written: dict[Path, Picture] = {}

    def once(self, path: Path) -> Picture:
        """A picture that several items show; it is written the first time only."""
        if path not in self._written:
            self._written[path] = self.write(self.load(path))
        return self._written[path]

    def load(self, path: Path) -> Image.Image:
        """The picture as it is shown, at most ``max_side`` long."""
        image = open_image(path)
        limit = self._config.max_side
        if limit is None or max(image.size) <= limit:
            return image
        scale = limit / max(image.size)
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), _LANCZOS)

    def write(self, image: Image.Image) -> Picture:
        """Encode the pixels alone; the name is random, so it tells nothing."""
        clean = Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())  # nothing of image.info
        stream = io.BytesIO()
        if self._config.format == "webp":
            clean.save(stream, "WEBP", quality=_WEBP_QUALITY)
        else:
            clean.save(stream, "PNG")
        name = f"{secrets.token_hex(16)}.{self._config.format}"
        (self._folder / name).write_bytes(stream.getvalue())
        return Picture(name=name, width=image.width, height=image.height)


def same_size(images: Sequence[Image.Image], paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures of one item at the size of the smallest one: a size must not tell which variant it is.

    Raises DataError where two have different shapes.
    """
    smallest = min(images, key=lambda image: image.width * image.height)
    for image, path in zip(images, paths, strict=True):
        if abs(image.width * smallest.height / (image.height * smallest.width) - 1) > _SAME_SHAPE:
            raise DataError(
                f"{path}: {image.width}x{image.height}, another variant's picture of the same item is "
                f"{smallest.width}x{smallest.height}; draw all variants in one shape"
            )
    return [image if image.size == smallest.size else image.resize(smallest.size, _LANCZOS) for image in images]


def degrade(image: Image.Image, strength: float, seed: int) -> Image.Image:
    """The picture blurred and noisy; ``strength`` from 0 (as it is) to 1 (``BLUR``, ``NOISE``)."""
    if strength == 0:
        return image
    blurred = image.filter(ImageFilter.GaussianBlur(BLUR * strength * max(image.size)))
    noise = np.random.default_rng(seed).normal(0, NOISE * strength, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(blurred, np.float64) + noise).clip(0, 255).round().astype(np.uint8))


_LANCZOS = Image.Resampling.LANCZOS
