"""Pictures on their way to a model: bare pixels, bounded size, one encoding, no metadata."""

import base64
import io
import math
from typing import Literal

from PIL import Image
from pydantic import Field

from flowgrain.config import Config

PIXELS_PER_TOKEN = 750
"""The forecast's rule: a picture costs its pixels / 750 tokens, plus ``TOKENS_PER_PICTURE``. Vendors count between
one token per 1024 pixels and one per 500; what the endpoint reports replaces the rule after the first answers."""
TOKENS_PER_PICTURE = 85


class PictureConfig(Config):
    """How pictures are sent."""

    max_side: int = Field(default=1024, ge=32, le=8192, description="longer side in pixels; larger ones are shrunk")
    format: Literal["png", "jpeg"] = Field(default="png", description="png is exact, jpeg several times smaller")
    quality: int = Field(default=95, ge=50, le=100, description="of a JPEG; its colours are never subsampled")
    detail: Literal["auto", "low", "high"] | None = Field(
        default=None, description="OpenAI's detail parameter; null: not sent"
    )


def sent_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(width, height) at which a picture is sent: never enlarged, its shape kept."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture_tokens(size: tuple[int, int], max_side: int) -> int:
    """The tokens that a picture of ``size`` is forecast to cost."""
    width, height = sent_size(size, max_side)
    return math.ceil(width * height / PIXELS_PER_TOKEN) + TOKENS_PER_PICTURE


def text_tokens(text: str) -> int:
    """The tokens that a text is forecast to cost: one for three bytes of UTF-8, an upper figure for English."""
    return math.ceil(len(text.encode("utf-8", errors="replace")) / 3)


def encode_picture(image: Image.Image, config: PictureConfig) -> bytes:
    """The file that is sent: RGB pixels alone, so that nothing of the source's metadata or name goes along."""
    pixels = image.convert("RGB")
    size = sent_size(pixels.size, config.max_side)
    if size != pixels.size:
        pixels = pixels.resize(size, Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", pixels.size, pixels.tobytes())  # Pillow writes what it finds in the source's info
    stream = io.BytesIO()
    if config.format == "png":
        bare.save(stream, "PNG")
    else:
        bare.save(stream, "JPEG", quality=config.quality, subsampling=0)
    return stream.getvalue()


def picture_part(data: bytes, config: PictureConfig) -> dict[str, object]:
    """The content part of a message that shows an encoded picture."""
    url = f"data:image/{config.format};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url} | ({"detail": config.detail} if config.detail else {})}


def text_part(text: str) -> dict[str, object]:
    """The content part of a message that says something."""
    return {"type": "text", "text": text}
