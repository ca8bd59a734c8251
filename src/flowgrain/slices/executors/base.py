"""The seam of executors: chunks in, reports out, in any order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from flowgrain.slices.chunk_work import ChunkReport
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.pieces import WorkSettings

OnChunk = Callable[[Chunk, ChunkReport], None]
"""Called when a chunk is finished and its record written."""
OnImage = Callable[[str], None]
"""Called with the name of each image that is done."""


POLL = 1.0
"""Seconds until chunks are looked for again where there were none for the moment."""


class Executor(ABC):
    """Does all chunks. Stops at the first error that is not one image's own, with finished chunks kept."""

    @abstractmethod
    def run(self, settings: WorkSettings, chunks: Iterable[Chunk | None], on_chunk: OnChunk, on_image: OnImage) -> None:
        """Do the chunks, taking the next one only when there is room for it.

        None among the chunks: others have those that are left, so finish what is in hand before waiting for more.

        Raises :class:`flowgrain.errors.FlowgrainError` where a model, a worker or the data set's folder fails.
        """
