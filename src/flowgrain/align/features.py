"""Tokens of a vision model for the slices of a data set, computed once and kept by content.

As in ``data/cache.py``, an entry's key is made of the file's bytes, its transform, the mirror state, the grid, the
encoder's version, the kept precision and the code version, so that an entry can be missing but never wrong. Live and
cached sources encode one picture a call, round to the kept precision and give the same bits. A mirrored picture has an
entry of its own: a vision transformer's features of it are not those of the picture, mirrored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.grids import Grid
from flowgrain.data.cache import ignore_progress
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.shards import Progress, ShardStore
from flowgrain.errors import ModelError

GridRule = Callable[[int, int], Grid]
"""(height, width) of a slice in pixels -> its grid; for example :meth:`flowgrain.align.grids.GridConfig.of`."""
KeptPrecision = Literal["float16", "bfloat16", "float32"]


class FeatureSource(ABC):
    """Where the trainer gets the reference's tokens from."""

    @abstractmethod
    def grid(self, index: int) -> Grid:
        """Grid of slice ``index``."""

    @abstractmethod
    def get(self, index: int, flip: bool) -> Float[Tensor, "1 n c"]:
        """Tokens of slice ``index``, row by row, in the kept precision, on the CPU."""


class LiveFeatures(FeatureSource):
    """Encodes the picture each time it is asked for."""

    def __init__(
        self, dataset: SliceDataset, encoder: StructureEncoder, rule: GridRule, kept: KeptPrecision = "float16"
    ):
        self._dataset, self._encoder, self._rule, self._kept = dataset, encoder, rule, kept

    def grid(self, index: int) -> Grid:
        """See :meth:`FeatureSource.grid`."""
        width, height = self._dataset.slices[index].bucket
        return self._rule(height, width)

    def get(self, index: int, flip: bool) -> Float[Tensor, "1 n c"]:
        """See :meth:`FeatureSource.get`.

        Raises :class:`DataError` for a picture that cannot be read, :class:`ModelError` where features are not finite
        in the kept precision.
        """
        tokens = self._encoder.tokens(self._dataset.pixels(index, flip)[None], self.grid(index)).cpu()
        kept = tokens.to(getattr(torch, self._kept))
        if not kept.isfinite().all():
            raise ModelError(self._not_finite(tokens, self._dataset.slices[index].slice_id))
        return kept

    def _not_finite(self, tokens: Tensor, slice_id: str) -> str:
        where = f"slice '{slice_id}': features of {self._encoder.name}"
        if not tokens.isfinite().all():
            return f"{where} are not finite; compute them in float32, and check the encoder's weights"
        largest = f"{tokens.abs().max():.3g}"
        return f"{where} reach {largest}, more than {self._kept} holds; keep them in bfloat16 or float32"


class FeatureCache(FeatureSource):
    """Tokens of a data set, in memory (``folder`` None) or in shards under ``folder``."""

    def __init__(self, folder: Path | None, encoder: StructureEncoder, rule: GridRule, kept: KeptPrecision = "float16"):
        self._encoder, self._rule = encoder, rule
        self._kept: KeptPrecision = kept
        self._store = ShardStore(folder, f"structure-{encoder.kind}", f"{encoder.version}, kept in {kept}")
        self._filled: tuple[LiveFeatures, dict[tuple[int, bool], str]] | None = None

    def fill(
        self, dataset: SliceDataset, flips: tuple[bool, ...] = (False,), on_progress: Progress = ignore_progress
    ) -> int:
        """Encode what is missing for ``dataset`` and make :meth:`get` answer for it; returns how many were encoded.

        Stopping it (Ctrl-C) keeps what was done so far. Raises :class:`DataError` for a picture that cannot be read,
        and where the folder has too little room or cannot be written; :class:`ModelError` as :class:`LiveFeatures`.
        """
        live = LiveFeatures(dataset, self._encoder, self._rule, self._kept)
        wanted = {(index, flip): self._key(dataset, index, flip) for index in range(len(dataset)) for flip in flips}
        encoded = self._store.complete(
            wanted.items(),
            lambda item: {"tokens": live.get(*item)},
            lambda item: live.grid(item[0]).places,
            on_progress,
        )
        self._filled = live, wanted
        return encoded

    def grid(self, index: int) -> Grid:
        """Grid of slice ``index`` of the data set filled last; KeyError before that."""
        if self._filled is None:
            raise KeyError(index)
        return self._filled[0].grid(index)

    def get(self, index: int, flip: bool) -> Float[Tensor, "1 n c"]:
        """Tokens of slice ``index`` of the data set filled last; KeyError where they were not filled."""
        if self._filled is None:
            raise KeyError((index, flip))
        live, keys = self._filled
        return self._store.read(keys[index, flip], lambda: {"tokens": live.get(index, flip)})["tokens"]

    def _key(self, dataset: SliceDataset, index: int, flip: bool) -> str:
        chosen = dataset.slices[index]
        width, height = chosen.bucket
        state = "mirrored" if flip else "as is"
        return self._store.key(chosen.digest, chosen.transform, state, str(self._rule(height, width)))


def forecast_feature_bytes(dataset: SliceDataset, width: int, rule: GridRule, kept: KeptPrecision = "float16") -> int:
    """Bytes of the tokens of a data set, both mirror states where it flips: an upper bound, since copies share entries.

    ``width`` is the encoder's: 32 x 32 places of 768 channels in float16 are 1.5 MiB.
    """
    places = sum(rule(s.bucket[1], s.bucket[0]).places for s in dataset.slices)
    return getattr(torch, kept).itemsize * width * places * len(dataset.flips)
