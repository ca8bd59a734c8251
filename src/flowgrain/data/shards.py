"""The store under the caches: named tensors by content key, in memory or in safetensors shards of one folder.

Shards are written under temporary names and renamed, and never changed afterwards, so that several processes can
fill and read one folder at a time; the headers of the shards are the index. A shard that cannot be used (damaged, of
another model, precision or code version, of another writer) is passed over and left where it is. Every entry has a
checksum, which is compared when it is first read: a damaged entry is made anew, with a line in the log.
"""

import hashlib
import logging
import shutil
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.files import atomic_write_bytes

CODE_VERSION = "2"
"""Raised whenever the same picture or caption would be encoded or stored differently."""

SHARD_ENTRIES = 256
SHARD_BYTES = 256 * 2**20
_OPEN_SHARDS = 64
_OPEN_BYTES = 2 * 2**30
"""Shards stay mapped up to so many and so many bytes: pages that were read count as memory of the process."""
_CHECKSUM = "crc "

Item = TypeVar("Item")
Tensors = dict[str, Tensor]
Progress = Callable[[int, int], None]
"""Called with (done, total) after each entry."""

_log = logging.getLogger(__name__)


def nbytes(tensors: Tensors) -> int:
    """Bytes of an entry's tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


class ShardStore:
    """Entries of one kind by one model. ``folder`` None keeps them in memory."""

    def __init__(self, folder: Path | None, kind: str, fingerprint: str):
        self._folder = folder
        self._kind = kind
        self._fingerprint = fingerprint
        self._memory: dict[str, Tensors] = {}
        self._pending: dict[str, Tensors] = {}
        self._places: dict[str, tuple[Path, tuple[str, ...], str | None]] = {}
        self._sound: set[str] = set()
        self._reported: set[Path] = set()
        self._open: OrderedDict[Path, tuple[Any, int]] = OrderedDict()
        if folder is not None:
            self._index(folder)

    def key(self, *content: str) -> str:
        """Hexadecimal key of an entry made from ``content`` by this model and this code."""
        parts = (self._kind, CODE_VERSION, self._fingerprint, *content)
        return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()

    def complete(
        self,
        wanted: Iterable[tuple[Item, str]],
        encode: Callable[[Item], Tensors],
        cost: Callable[[Item], int],
        on_progress: Progress,
    ) -> int:
        """Encode and keep every wanted (item, key) that is missing; returns their number.

        The bytes of an item's entry are proportional to ``cost(item)``: from the first one the need of all is known,
        and compared with the free space. What was encoded is kept when this is stopped. Raises :class:`DataError`
        where the folder has too little room or cannot be written.
        """
        missing = {key: item for item, key in wanted if key not in self._memory and key not in self._places}
        size = 0
        try:
            for done, (key, item) in enumerate(missing.items(), start=1):
                # copies: mean and log-variance are often views of one tensor, which safetensors refuses
                entry = {n: t.clone(memory_format=torch.contiguous_format) for n, t in encode(item).items()}
                size += nbytes(entry)
                if self._folder is None:
                    self._memory[key] = entry
                else:
                    self._pending[key] = entry
                if done == 1:
                    total = sum(cost(each) for each in missing.values())
                    self._check_room(len(missing), -(-nbytes(entry) * total // cost(item)))
                if len(self._pending) >= SHARD_ENTRIES or size >= SHARD_BYTES:
                    self._flush()
                    size = 0
                on_progress(done, len(missing))
        finally:
            self._flush()
        return len(missing)

    def read(self, key: str, encode: Callable[[], Tensors]) -> Tensors:
        """Tensors of an entry by name; ``encode`` makes them anew where its shard is damaged or gone.

        Raises KeyError where it was never filled.
        """
        if key in self._memory:
            return self._memory[key]
        shard, names, checksum = self._places[key]
        try:
            stream = self._stream(shard)
            tensors = {name: stream.get_tensor(f"{key}.{name}") for name in names}
        except (SafetensorError, OSError) as error:
            return self._anew(key, shard, f"cannot be read ({error})", encode)
        if key not in self._sound:
            if _checksum(tensors) != checksum:
                return self._anew(key, shard, "is damaged (checksum)", encode)
            self._sound.add(key)
        return tensors

    def _anew(self, key: str, shard: Path, what: str, encode: Callable[[], Tensors]) -> Tensors:
        """Encode an entry again; kept in memory up to the size of a shard, since memory was to be saved."""
        if shard not in self._reported:
            self._reported.add(shard)
            _log.warning(
                "%s: an entry %s and is encoded anew in this run; remove the file to have all of it written again",
                shard,
                what,
            )
        tensors = encode()
        if sum(map(nbytes, self._memory.values())) + nbytes(tensors) <= SHARD_BYTES:
            self._memory[key] = tensors
        return tensors

    def _check_room(self, entries: int, need: int) -> None:
        if self._folder is None:
            return
        existing = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if need > free:
            raise DataError(
                f"{self._folder}: caching {entries} {self._kind} entries needs {need / 2**30:.2f} GiB, "
                f"{free / 2**30:.2f} GiB are free; free some space, choose another folder in data.cache, or set it to "
                "false to encode at every step"
            )

    def _flush(self) -> None:
        """Write the pending entries as one shard."""
        # taken out first: entries that could not be written are not tried a second time on the way out
        entries, self._pending = self._pending, {}
        if self._folder is None or not entries:
            return
        tensors = {f"{key}.{name}": tensor for key, entry in entries.items() for name, tensor in entry.items()}
        checksums = {key: _checksum(entry) for key, entry in entries.items()}
        name = hashlib.blake2b("".join(sorted(entries)).encode(), digest_size=8).hexdigest()
        shard = self._folder / f"{self._kind}-{name}.safetensors"
        metadata = self._metadata() | {_CHECKSUM + key: value for key, value in checksums.items()}
        try:
            atomic_write_bytes(shard, save(tensors, metadata))
        except OSError as error:
            raise DataError(
                f"{self._folder}: the cache cannot be written ({error.strerror}); the shards written so far stay and "
                "will be used; free some space, choose another folder in data.cache, or set it to true to keep the "
                "cache in memory"
            ) from None
        self._places |= {key: (shard, tuple(entry), checksums[key]) for key, entry in entries.items()}

    def _metadata(self) -> dict[str, str]:
        return {"writer": "flowgrain", "version": CODE_VERSION, "kind": self._kind, "model": self._fingerprint}

    def _index(self, folder: Path) -> None:
        """Learn the entries of the usable shards; one log line tells how many were passed over, why, and of which."""
        reasons: Counter[str] = Counter()
        example: dict[str, str] = {}
        for shard in sorted(folder.glob(f"{self._kind}-*.safetensors")):
            try:
                with safe_open(shard, framework="pt") as stream:
                    metadata: dict[str, str] = stream.metadata() or {}
                    reason = self._refusal(metadata)
                    names = [] if reason else list(stream.keys())
            except FileNotFoundError:  # removed by somebody since the folder was listed
                continue
            except (SafetensorError, OSError):
                reason, metadata, names = "damaged or truncated", {}, []
            if reason:
                reasons[reason] += 1
                example.setdefault(reason, shard.name)
            self._learn(shard, names, metadata)
        if reasons:
            listed = ", ".join(f"{count} {why} ({example[why]})" for why, count in sorted(reasons.items()))
            _log.warning("%s: %s shards passed over and computed anew where needed: %s", folder, self._kind, listed)

    def _learn(self, shard: Path, names: list[str], metadata: dict[str, str]) -> None:
        entries: dict[str, list[str]] = {}
        for full in names:
            key, _, name = full.partition(".")
            entries.setdefault(key, []).append(name)
        for key, own in entries.items():
            self._places[key] = (shard, tuple(own), metadata.get(_CHECKSUM + key))

    def _refusal(self, metadata: dict[str, str]) -> str:
        """Why a shard with this metadata cannot be used, empty where it can."""
        if metadata.get("writer") != "flowgrain" or metadata.get("kind") != self._kind:
            return "not written by flowgrain"
        if metadata.get("version") != CODE_VERSION:
            return "of another code version"
        return "" if metadata.get("model") == self._fingerprint else "of another model or precision"

    def _stream(self, shard: Path) -> Any:
        """Memory-mapped shard; the ones used last stay open, within the limits on open files and mapped bytes."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard][0]
        stream, size = safe_open(shard, framework="pt"), shard.stat().st_size
        mapped = size + sum(known for _, known in self._open.values())
        while self._open and (len(self._open) >= _OPEN_SHARDS or mapped > _OPEN_BYTES):
            mapped -= self._open.popitem(last=False)[1][1]
        self._open[shard] = stream, size
        return stream


def _checksum(tensors: Tensors) -> str:
    """CRC-32 over names, types, shapes and bytes, in the order of the names."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
