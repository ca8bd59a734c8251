"""The work in pieces: which images are cut together, resumed together and handed to a process together.

Where one chunk ends depends on the names around that place alone, so that an image more or less changes one chunk and
not all that follow, and on no machine and no number of workers. Pictures of one stem are never parted: two of them
with the same bytes are one root.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

from flowgrain.data.collections.base import stem_of

TYPICAL = 32
"""Images of a chunk on average."""
LEAST = 8
MOST = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Images that are next to each other."""

    index: int
    """Place among the chunks."""
    names: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name of the chunk in the data set: a hash of its first image's name, of nothing for the first chunk.

        So an image that comes to stand before all others changes the first chunk and makes no other one.
        """
        start = self.names[0] if self.index else ""
        return hashlib.sha1(start.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def cut_into_chunks(names: Sequence[str]) -> Iterator[Chunk]:
    """Chunks of names that are sorted by stem: :data:`LEAST` to about :data:`MOST` images each, fewer in the last."""
    index, current = 0, []
    for stem, group in groupby(names, key=stem_of):
        members = list(group)
        if current and (len(current) + len(members) > MOST or (len(current) >= LEAST and _begins_one(stem))):
            yield Chunk(index, tuple(current))
            index, current = index + 1, []
        current += members
    if current:
        yield Chunk(index, tuple(current))


def batched(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Runs of ``size`` values, the last one shorter."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


def _begins_one(stem: str) -> bool:
    return zlib.crc32(stem.encode("utf-8", "surrogateescape")) % (TYPICAL - LEAST) == 0
