"""The pictures of a comparison as a model sees them: known by content, sent without their names."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flowgrain.data.images import check_whole, decode_image, read_bytes, sha1_of_bytes
from flowgrain.errors import DataError
from flowgrain.vlm.images import PictureConfig, encode_picture, picture_part, picture_tokens

_ENCODED = 32
"""Encoded pictures that are kept: those of one item serve all of its questions."""


@dataclass(frozen=True)
class PictureFacts:
    """What planning needs of a picture."""

    sha1: str
    side: int
    """The longer one, in pixels."""
    tokens: int
    """By the forecast's rule."""


class PictureBook:
    """Reads pictures; each file once for its facts, and again when it is sent. Safe for several threads."""

    def __init__(self, config: PictureConfig):
        self._config = config
        self._facts: dict[Path, PictureFacts] = {}
        self.part = lru_cache(maxsize=_ENCODED)(self._part)
        """Path -> the content part of a message; raises DataError for a file that has changed."""

    def facts(self, path: Path) -> PictureFacts:
        """Content and cost of a picture; raises DataError for a file that is missing or damaged."""
        if path not in self._facts:
            data = read_bytes(path)
            size = check_whole(data, path)
            tokens = picture_tokens(size, self._config.max_side)
            self._facts[path] = PictureFacts(sha1_of_bytes(data), max(size), tokens)
        return self._facts[path]

    def largest_side(self) -> int:
        """The longest side of all pictures whose facts were asked for; 0 before any."""
        return max((facts.side for facts in self._facts.values()), default=0)

    def _part(self, path: Path) -> dict[str, object]:
        data = read_bytes(path)
        if sha1_of_bytes(data) != self.facts(path).sha1:
            raise DataError(f"{path}: changed while it was being judged; start again, only what differs is asked anew")
        return picture_part(encode_picture(decode_image(data, path)[0], self._config), self._config)
