"""Compression ratio of pictures as JPEG files (Diffusion-4K, arXiv 2503.18352; its published ``eval.py``).

Detail costs bytes: a lower ratio means more of it, and noise has the lowest of all. The paper saves its pictures as
JPEG of quality 95 (Pillow's default 4:2:0 chroma) and divides the bytes of all raw pixels by those of all files.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import open_rgb

QUALITY = 95
CHROMA_420 = 2
"""Pillow's number for chroma at half the resolution in both directions."""


def compression_ratio(image: Image.Image, quality: int = QUALITY) -> float:
    """Bytes of an RGB picture's raw pixels divided by those of its JPEG file, above 0; lower is richer in detail."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=CHROMA_420)
    return raw_bytes(image) / buffer.tell()


def raw_bytes(image: Image.Image) -> int:
    """Bytes of the picture's pixels at 8 bits and three channels."""
    return image.width * image.height * 3


class CompressionRatio(PictureScore):
    """:func:`compression_ratio` of pictures, each compressed here whatever its own format.

    ``stored`` True divides by the size of the file as it lies on disk instead, which is what the published script does;
    it says something about detail only where all files were written by one encoder with one setting.
    Raises :class:`ConfigError` for a quality outside 1..95, above which Pillow turns parts of the compression off.
    """

    higher_is_better = None

    def __init__(self, quality: int = QUALITY, stored: bool = False):
        if not 1 <= quality <= QUALITY:
            raise ConfigError(f"JPEG quality {quality}: must lie in 1..{QUALITY}")
        self.quality = quality
        self.stored = stored
        self.title = "compression ratio of the files" if stored else f"compression ratio (JPEG {quality})"
        self.version = "files as stored" if stored else f"Pillow {Image.__version__}, JPEG quality {quality}, 4:2:0"

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; one picture is in memory at a time.

        Raises :class:`DataError` where files as stored are asked for and a picture is none.
        """
        return np.array([self._ratio(picture) for picture in pictures], dtype=np.float64)

    def pooled(self, values: Float[np.ndarray, " k"]) -> float:
        """Raw bytes of all pictures divided by the bytes of all their files: the harmonic mean of the ratios.

        For pictures of one size this is the ratio of the totals; of several sizes, each picture counts alike.
        """
        return float(1 / np.mean(1 / values))

    def _ratio(self, picture: ImageLike) -> float:
        if not self.stored:
            return compression_ratio(open_rgb(picture), self.quality)
        if not isinstance(picture, Path):
            raise DataError(f"{self.title}: a picture in memory has no file size; give files, or use stored=False")
        return raw_bytes(open_rgb(picture)) / picture.stat().st_size
