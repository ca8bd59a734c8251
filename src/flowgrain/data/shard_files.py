"""Tar shards of a decomposed data set: how they are written, and how their members are called.

A root is one WebDataset sample: its members share a basename, the part of a name up to the first dot after the last
slash. Of the root ``fox-1a2b3c4d`` there are ``fox-1a2b3c4d.macro0.png`` (a slice), ``.macro0.mask.png`` (its mask),
``.macro0.txt`` (its caption) and ``.json`` (the records of all its slices). A root's own dots and percent signs are
written %2E and %25.

The bytes of a shard are a function of its members alone: no times, no owners.
"""

import os
import re
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from flowgrain.config import Config
from flowgrain.data.records import SliceRecord
from flowgrain.data.tar_members import BLOCK, name_fault, tar_contents
from flowgrain.errors import DataError

RECORDS_NAME = "json"
"""Local name of the member with a root's records."""
_KIND = "flowgrain root"
_ESCAPED = re.compile(r"%(25|2E)")


class ShardWriter:
    """Writes one tar; use it in a ``with`` statement. ``path`` appears, whole, when the block ends without an error."""

    def __init__(self, path: Path):
        """Start the shard beside ``path`` under a temporary name. Raises OSError where that is not possible."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        self._path = path
        self._temporary = Path(name)
        self._stream = os.fdopen(descriptor, "wb")
        self._names: set[str] = set()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns the (offset, size) of its bytes in the shard.

        Raises ValueError for a name that is empty, leaves the folder or is there already, OSError where the disk is
        full.
        """
        if fault := name_fault(name):
            raise ValueError(f"'{name}': {fault}")
        if name in self._names:
            raise ValueError(f"'{name}': already in {self._path.name}")
        self._names.add(name)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        member.mode = 0o644
        self._stream.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        offset = self._stream.tell()
        self._stream.write(data)
        self._stream.write(bytes(-len(data) % BLOCK))
        return offset, len(data)

    def close(self) -> None:
        """Finish the shard and give it its name; without this call nothing is left of it."""
        try:
            self._stream.write(bytes(2 * BLOCK))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self._path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Remove what was written; nothing happens after :meth:`close`."""
        try:
            self._stream.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


class RootRecords(Config):
    """The ``.json`` member of a root."""

    kind: str = _KIND
    records: tuple[SliceRecord, ...]
    """Of each slice, ``path`` is the name of its member in the same shard."""


def read_index(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, size) of each member of a whole shard by name.

    Raises :class:`DataError` where the file cannot be read, is no tar, or is damaged or cut short.
    """
    contents = tar_contents(path)
    if contents.problems:
        raise DataError(f"{path}: {contents.problems[0]}")
    return contents.members


def shard_member(root: str, local_name: str) -> str:
    """Name of the member ``local_name`` (``macro0.png``) of a root. Raises ValueError for an empty part."""
    if not root or not local_name:
        raise ValueError(f"a member needs a root and a name of its own, got '{root}' and '{local_name}'")
    return f"{root.replace('%', '%25').replace('.', '%2E')}.{local_name}"


def split_member(member: str) -> tuple[str, str]:
    """(root, local name) of a member: the inverse of :func:`shard_member`. Raises ValueError for other names."""
    escaped, dot, local_name = member.partition(".")
    if not escaped or not dot or not local_name or "/" in local_name:
        raise ValueError(f"'{member}' is no member of a root")
    return _ESCAPED.sub(lambda match: {"25": "%", "2E": "."}[match[1]], escaped), local_name


def encode_records(records: Iterable[SliceRecord]) -> bytes:
    """The ``.json`` member of one root; ``path`` of each record is to be the name of its member."""
    return RootRecords(records=tuple(records)).model_dump_json().encode()


def decode_records(data: bytes, place: str) -> tuple[SliceRecord, ...]:
    """The records of a ``.json`` member. Raises :class:`DataError` naming ``place`` where it is not one."""
    try:
        document = RootRecords.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{place}: {field + ': ' if field else ''}{problem['msg']}") from None
    if document.kind != _KIND:
        raise DataError(f"{place}: kind '{document.kind}' is not '{_KIND}'")
    return document.records


def holds_records(data: bytes) -> bool:
    """Whether the ``.json`` member of a sample was written by :func:`encode_records`."""
    return data.startswith(f'{{"kind":"{_KIND}"'.encode())
