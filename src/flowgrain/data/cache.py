"""Autoencoder posteriors and prompt embeddings, computed once and kept by content.

A posterior's key is made of the file's bytes, its transform, the mirror state, how the autoencoder was tiled, the
family's fingerprint and the code version, so that an entry can be missing but never wrong. Live and cached sources
encode one picture (one caption) a call and give the same bits. ``shards.py`` keeps the entries, on disk in safetensors
shards.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from flowgrain.data.dataset import SliceDataset
from flowgrain.data.shards import Progress, ShardStore, Tensors, nbytes
from flowgrain.families.base import Capabilities, Family, Posterior, TextEmbedding

_log = logging.getLogger(__name__)


def ignore_progress(done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


class PosteriorSource(ABC):
    """Where the trainer gets posteriors from."""

    @abstractmethod
    def get(self, index: int, flip: bool) -> Posterior:
        """Posterior of slice ``index``, a batch of one on the CPU."""


class EmbeddingSource(ABC):
    """Where the trainer gets prompt embeddings from."""

    @abstractmethod
    def get(self, caption: str) -> TextEmbedding:
        """Embedding of one caption, a batch of one on the CPU."""


class LivePosteriors(PosteriorSource):
    """Encodes the picture each time it is asked for."""

    def __init__(self, dataset: SliceDataset, family: Family):
        self._dataset, self._family = dataset, family

    def get(self, index: int, flip: bool) -> Posterior:
        """Posterior of slice ``index``, a batch of one on the CPU."""
        posterior = self._family.encode_pixels(self._dataset.pixels(index, flip)[None])
        return Posterior(posterior.mean.cpu(), posterior.logvar.cpu())


class LiveEmbeddings(EmbeddingSource):
    """Runs the text encoders each time."""

    def __init__(self, family: Family):
        self._family = family

    def get(self, caption: str) -> TextEmbedding:
        """Embedding of one caption, a batch of one on the CPU."""
        embedding = self._family.embed_text([caption])
        return TextEmbedding({name: tensor.cpu() for name, tensor in embedding.tensors.items()})


class PosteriorCache(PosteriorSource):
    """Posteriors of a data set, in memory (``folder`` None) or in shards under ``folder``."""

    def __init__(self, folder: Path | None, family: Family):
        self._family = family
        self._store = ShardStore(folder, "posterior", family.fingerprint())
        self._filled: tuple[LivePosteriors, dict[tuple[int, bool], str]] | None = None

    def fill(
        self, dataset: SliceDataset, flips: tuple[bool, ...] = (False,), on_progress: Progress = ignore_progress
    ) -> int:
        """Encode what is missing for ``dataset`` and make :meth:`get` answer for it; returns how many were encoded.

        Stopping it (Ctrl-C) keeps what was done so far. Raises :class:`DataError` for a picture that cannot be read,
        and where the folder has too little room or cannot be written.
        """
        live = LivePosteriors(dataset, self._family)
        wanted = {(index, flip): self._key(dataset, index, flip) for index in range(len(dataset)) for flip in flips}

        def area(item: tuple[int, bool]) -> int:
            width, height = dataset.slices[item[0]].bucket
            return width * height

        encoded = self._store.complete(wanted.items(), lambda item: _posterior_tensors(live, *item), area, on_progress)
        self._filled = live, wanted
        return encoded

    def get(self, index: int, flip: bool) -> Posterior:
        """Posterior of slice ``index`` of the data set filled last, a batch of one on the CPU; KeyError before that."""
        if self._filled is None:
            raise KeyError((index, flip))
        live, keys = self._filled
        tensors = self._store.read(keys[index, flip], lambda: _posterior_tensors(live, index, flip))
        return Posterior(tensors["mean"], tensors["logvar"])

    def _key(self, dataset: SliceDataset, index: int, flip: bool) -> str:
        chosen = dataset.slices[index]
        width, height = chosen.bucket
        tiles = self._family.encoding_of(height, width)  # empty for a whole pass, whose key stays what it was
        content = (chosen.digest, chosen.transform, "mirrored" if flip else "as is", *([tiles] if tiles else []))
        return self._store.key(*content)


class EmbeddingCache(EmbeddingSource):
    """Prompt embeddings, in memory (``folder`` None) or in shards under ``folder``."""

    def __init__(self, folder: Path | None, family: Family):
        self._family = family
        self._live = LiveEmbeddings(family)
        self._store = ShardStore(folder, "embedding", family.fingerprint())

    def fill(self, captions: Iterable[str], on_progress: Progress = ignore_progress) -> int:
        """Embed the captions that are missing; returns how many there were.

        Raises :class:`DataError` where the folder has too little room or cannot be written.
        """
        wanted = {caption: self._store.key(caption) for caption in captions}
        embedded: list[str] = []

        def embed(caption: str) -> Tensors:
            embedded.append(caption)
            return self._live.get(caption).tensors

        count = self._store.complete(wanted.items(), embed, lambda _caption: 1, on_progress)
        cut = self._family.cut_captions(embedded)
        if cut.lengths:
            _tell_of_cut_captions(len(cut.lengths), len(embedded), cut.limit)
        return count

    def get(self, caption: str) -> TextEmbedding:
        """Embedding of one filled caption, a batch of one on the CPU; KeyError where it was not filled."""
        tensors = self._store.read(self._store.key(caption), lambda: self._live.get(caption).tensors)
        return TextEmbedding(tensors)


@cache
def _tell_of_cut_captions(cut: int, captions: int, limit: int) -> None:
    """Once a process: the arms of a comparison embed the same captions."""
    what = f"{cut} of {captions} captions are longer than the {limit} tokens that the model reads"
    _log.warning("%s: it does not see their end; flowgrain check names them", what)


def _posterior_tensors(live: LivePosteriors, index: int, flip: bool) -> Tensors:
    posterior = live.get(index, flip)
    return {"mean": posterior.mean, "logvar": posterior.logvar}


def forecast_bytes(dataset: SliceDataset, capabilities: Capabilities) -> int:
    """Bytes of the posteriors of a data set in float32, both mirror states where it flips: an upper bound."""
    scale, channels = capabilities.latent_scale, capabilities.latent_channels
    cells = sum((s.bucket[0] // scale) * (s.bucket[1] // scale) for s in dataset.slices)
    return 2 * 4 * channels * cells * len(dataset.flips)


def forecast_embedding_bytes(captions: int, embedding: TextEmbedding) -> int:
    """Bytes of the prompt embeddings of distinct captions, each as large as ``embedding`` (one row; any device)."""
    return captions * nbytes(embedding.tensors)
