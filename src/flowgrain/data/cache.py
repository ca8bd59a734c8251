"""Autoencoder posteriors and prompt embeddings, computed once and kept by content.

A posterior's key is made of the file's bytes, its transform, the mirror state, the family's fingerprint and the code
version, so that an entry can be missing but never wrong. Live and cached sources encode one picture (one caption) a
call and give the same bits. On disk entries live in safetensors shards, whose headers are the index.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowgrain.data.dataset import SliceDataset
from flowgrain.errors import DataError
from flowgrain.families.base import Capabilities, Family, Posterior, TextEmbedding
from flowgrain.files import atomic_write_bytes

CODE_VERSION = "1"
"""Raised whenever the same picture or caption would be encoded differently."""

SHARD_ENTRIES = 256
SHARD_BYTES = 256 * 2**20
_OPEN_SHARDS = 64

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Called with (done, total) after each entry."""

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
        self._store = _Store(folder, "posterior", family.fingerprint())
        self._keys: dict[tuple[int, bool], str] = {}

    def fill(
        self, dataset: SliceDataset, flips: tuple[bool, ...] = (False,), on_progress: Progress = ignore_progress
    ) -> int:
        """Encode what is missing for ``dataset`` and make :meth:`get` answer for it; returns how many were encoded.

        Stopping it (Ctrl-C) keeps what was done so far. Raises :class:`DataError` for a picture that cannot be read.
        """
        live = LivePosteriors(dataset, self._family)
        wanted = {(index, flip): self._key(dataset, index, flip) for index in range(len(dataset)) for flip in flips}

        def encode(item: tuple[int, bool]) -> dict[str, Tensor]:
            posterior = live.get(*item)
            return {"mean": posterior.mean, "logvar": posterior.logvar}

        encoded = self._store.complete(wanted.items(), encode, on_progress)
        self._keys = wanted
        return encoded

    def get(self, index: int, flip: bool) -> Posterior:
        """Posterior of slice ``index`` of the data set filled last, a batch of one on the CPU."""
        tensors = self._store.read(self._keys[index, flip])
        return Posterior(tensors["mean"], tensors["logvar"])

    def _key(self, dataset: SliceDataset, index: int, flip: bool) -> str:
        chosen = dataset.slices[index]
        return self._store.key(chosen.digest, chosen.transform, "mirrored" if flip else "as is")


class EmbeddingCache(EmbeddingSource):
    """Prompt embeddings, in memory (``folder`` None) or in shards under ``folder``."""

    def __init__(self, folder: Path | None, family: Family):
        self._live = LiveEmbeddings(family)
        self._store = _Store(folder, "embedding", family.fingerprint())

    def fill(self, captions: Iterable[str], on_progress: Progress = ignore_progress) -> int:
        """Embed the captions that are missing; returns how many there were."""
        wanted = {caption: self._store.key(caption) for caption in captions}
        return self._store.complete(wanted.items(), lambda caption: self._live.get(caption).tensors, on_progress)

    def get(self, caption: str) -> TextEmbedding:
        """Embedding of one filled caption, a batch of one on the CPU."""
        return TextEmbedding(self._store.read(self._store.key(caption)))


def forecast_bytes(dataset: SliceDataset, capabilities: Capabilities) -> int:
    """Bytes of the posteriors of a data set in float32, both mirror states where it flips: an upper bound."""
    scale, channels = capabilities.latent_scale, capabilities.latent_channels
    cells = sum((s.bucket[0] // scale) * (s.bucket[1] // scale) for s in dataset.slices)
    return 2 * 4 * channels * cells * len(dataset.flips)


class _Store:
    """Named tensors by content key, in memory or in shards of one folder."""

    def __init__(self, folder: Path | None, kind: str, fingerprint: str):
        self._folder = folder
        self._kind = kind
        self._fingerprint = fingerprint
        self._memory: dict[str, dict[str, Tensor]] = {}
        self._shard_of: dict[str, tuple[Path, tuple[str, ...]]] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()
        if folder is not None:
            self._index(folder)

    def key(self, *content: str) -> str:
        """Hexadecimal key of an entry made from ``content`` by this model and this code."""
        parts = (self._kind, CODE_VERSION, self._fingerprint, *content)
        return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()

    def complete(
        self, wanted: Iterable[tuple[Item, str]], encode: Callable[[Item], dict[str, Tensor]], on_progress: Progress
    ) -> int:
        """Encode and keep every wanted (item, key) that is missing; returns their number."""
        missing = {key: item for item, key in wanted if key not in self._memory and key not in self._shard_of}
        try:
            for done, (key, item) in enumerate(missing.items(), start=1):
                # copies: mean and log-variance are often views of one tensor, which safetensors refuses
                self._memory[key] = {n: t.clone(memory_format=torch.contiguous_format) for n, t in encode(item).items()}
                if self._folder is not None and self._shard_is_full():
                    self._flush()
                on_progress(done, len(missing))
        finally:
            self._flush()
        return len(missing)

    def read(self, key: str) -> dict[str, Tensor]:
        """Tensors of an entry by name; KeyError where it was never filled."""
        if key in self._memory:
            return self._memory[key]
        shard, names = self._shard_of[key]
        stream = self._open_shard(shard)
        return {name: stream.get_tensor(f"{key}.{name}") for name in names}

    def _shard_is_full(self) -> bool:
        size = sum(t.nbytes for tensors in self._memory.values() for t in tensors.values())
        return len(self._memory) >= SHARD_ENTRIES or size >= SHARD_BYTES

    def _flush(self) -> None:
        """Write the entries in memory as one shard; without a folder they stay in memory."""
        if self._folder is None or not self._memory:
            return
        tensors = {f"{key}.{name}": t for key, entry in self._memory.items() for name, t in entry.items()}
        name = hashlib.blake2b("".join(sorted(self._memory)).encode(), digest_size=8).hexdigest()
        shard = self._folder / f"{self._kind}-{name}.safetensors"
        try:
            atomic_write_bytes(shard, save(tensors, self._metadata()))
        except OSError as error:
            raise DataError(
                f"{self._folder}: the cache cannot be written ({error.strerror}); free some space, choose another "
                "folder in data.cache, or set it to true to keep the cache in memory"
            ) from None
        self._shard_of |= {key: (shard, tuple(entry)) for key, entry in self._memory.items()}
        self._memory = {}

    def _metadata(self) -> dict[str, str]:
        return {"writer": "flowgrain", "version": CODE_VERSION, "kind": self._kind, "model": self._fingerprint}

    def _index(self, folder: Path) -> None:
        """Learn the entries of the usable shards; one log line tells how many were passed over and why."""
        reasons: Counter[str] = Counter()
        for shard in sorted(folder.glob(f"{self._kind}-*.safetensors")):
            try:
                with safe_open(shard, framework="pt") as stream:
                    reason = self._refusal(stream.metadata() or {})
                    names = [] if reason else list(stream.keys())
            except (SafetensorError, OSError):
                reason, names = "damaged or truncated", []
            if reason:
                reasons[reason] += 1
            entries: dict[str, list[str]] = {}
            for full in names:
                key, _, name = full.partition(".")
                entries.setdefault(key, []).append(name)
            self._shard_of |= {key: (shard, tuple(own)) for key, own in entries.items()}
        if reasons:
            listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
            _log.warning("%s: %s shards passed over and computed anew where needed: %s", folder, self._kind, listed)

    def _refusal(self, metadata: dict[str, str]) -> str:
        """Why a shard with this metadata cannot be used, empty where it can."""
        if metadata.get("writer") != "flowgrain" or metadata.get("kind") != self._kind:
            return "not written by flowgrain"
        if metadata.get("version") != CODE_VERSION:
            return "of another code version"
        return "" if metadata.get("model") == self._fingerprint else "of another model or precision"

    def _open_shard(self, shard: Path) -> Any:
        """Memory-mapped shard; the ones used last stay open, within the limit on open files."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            self._open[shard] = safe_open(shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shard}: this part of the cache was changed while in use ({error}); run again") from None
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard]
