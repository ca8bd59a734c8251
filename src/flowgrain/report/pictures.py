"""Pictures and drawings as data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowgrain.data.images import open_image

MAX_SIDE = 256
"""Longest side in pixels of an embedded picture; larger ones are scaled down to keep the page light."""


@dataclass(frozen=True)
class Tile:
    """One picture of a grid. ``caption`` may be empty."""

    uri: str
    alt: str
    width: int
    height: int
    caption: str = ""


@dataclass(frozen=True)
class Drawing:
    """One figure as SVG, drawn for light and for dark pages; size in CSS pixels."""

    light: str
    dark: str
    width: int
    height: int


def picture_tile(path: Path, alt: str, caption: str = "", max_side: int = MAX_SIDE) -> Tile:
    """Embed a picture, scaled down to ``max_side`` where it is larger.

    Pictures of at most ``MAX_SIDE`` pixels are embedded as lossless WebP, pixel for pixel; larger and scaled ones as
    WebP of quality 90.
    Raises :class:`flowgrain.errors.DataError` for a file that is no picture.
    """
    image = open_image(path)
    lossy = max(image.size) > min(max_side, MAX_SIDE)
    if max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossy:
        image.save(buffer, "WEBP", quality=90, method=4)
    else:
        image.save(buffer, "WEBP", lossless=True, quality=60, method=4)
    return Tile(data_uri("image/webp", buffer.getvalue()), alt, image.width, image.height, caption)


def data_uri(media_type: str, data: bytes) -> str:
    """``data`` as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
