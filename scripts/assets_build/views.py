"""The views of a base picture that the base model learns: whole, close-up, extreme close-up and two oblong crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import vocabulary
from .render import WHOLE, BaseImages

CLOSENESS = {"close-up": 0.6, "extreme close-up": 0.4}
CROPS_EACH = 2
OBLONG = {"portrait": (112, 144), "landscape": (144, 112)}  # width, height
SEED = 23


@dataclass(frozen=True)
class View:
    """One picture to learn with its caption; ``kind`` is "whole", a closeness, or an oblong format."""

    row: int
    kind: str
    caption: str
    pixels: np.ndarray


def all_views(images: BaseImages, rows: list[int]) -> list[View]:
    """Every view of the given rows, in a fixed order."""
    return [view for row in rows for view in _views(images, row)]


def whole_views(images: BaseImages, rows: list[int]) -> list[View]:
    """The whole pictures of the given rows alone."""
    return [_whole(images, row) for row in rows]


def _views(images: BaseImages, row: int) -> list[View]:
    picture = Image.fromarray(images.pixels[row])
    concept, style = images.concepts[row], vocabulary.STYLES[images.styles[row]]
    rng = np.random.default_rng((SEED, row))
    result = [_whole(images, row)]
    for closeness, fraction in CLOSENESS.items():
        close = vocabulary.caption(concept, style, closeness)
        for _ in range(CROPS_EACH):
            result.append(View(row, closeness, close, _crop(picture, fraction, rng)))
    for kind, (width, height) in OBLONG.items():
        result.append(View(row, kind, result[0].caption, _oblong(picture, width, height)))
    return result


def _whole(images: BaseImages, row: int) -> View:
    words = vocabulary.caption(images.concepts[row], vocabulary.STYLES[images.styles[row]])
    return View(row, "whole", words, _resized(Image.fromarray(images.pixels[row]), (WHOLE, WHOLE)))


def _crop(picture: Image.Image, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """A square crop of a fraction of the side, somewhere on the drawing: the busiest of three tries."""
    side = round(picture.width * fraction)
    spare = picture.width - side
    tries = []
    for _ in range(3):
        left, top = (int(spare * (0.1 + 0.8 * rng.random())) for _ in range(2))
        crop = picture.crop((left, top, left + side, top + side))
        tries.append((float(np.asarray(crop).std()), left, top))
    _, left, top = max(tries)
    return _resized(picture.crop((left, top, left + side, top + side)), (WHOLE, WHOLE))


def _oblong(picture: Image.Image, width: int, height: int) -> np.ndarray:
    """The largest centred crop with the wanted sides' ratio."""
    scale = picture.width / max(width, height)
    wide, high = width * scale, height * scale
    left, top = (picture.width - wide) / 2, (picture.height - high) / 2
    return _resized(picture, (width, height), (left, top, left + wide, top + high))


def _resized(picture: Image.Image, size: tuple[int, int], box: tuple[float, ...] | None = None) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box))
