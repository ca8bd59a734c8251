"""WebDataset shards: pictures and the files beside them as members of uncompressed tars.

Members belong together by WebDataset's rule: what stands before the first dot after the last slash of their names is
one. Each tar's headers are read once; after that a member is a seek and a read, in any process.
"""

import itertools
import json
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flowgrain.data.collections.base import Collection, by_stem, stem_of
from flowgrain.data.images import EXTENSIONS, MASK_ENDINGS, is_picture
from flowgrain.data.tar_members import TarContents, tar_contents
from flowgrain.errors import DataError

SUFFIX = ".tar"
_READERS = 4
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_SHARDS = 100_000
_CAPTION_KEYS = ("caption", "text")
"""Keys of a sample's ``.json`` that hold its caption where no text member does."""


class TarShards(Collection):
    """The pictures in several tars, by their members' names.

    Where one name occurs in two tars (shards that each count from 0), every name gets its tar's name as a folder:
    ``photos-000003/fox.png``. Members that WebDataset passes over (hidden ones, ``__meta__``) are no pictures.
    """

    def __init__(self, tars: Sequence[Path], folder: Path, title: str, prefixed: bool = False):
        """``prefixed`` gives every name its tar's name as a folder in any case."""
        self.folder = folder
        self.title = title
        self._tars = tuple(tars)
        self._prefixed = prefixed

    def names(self) -> Sequence[str]:
        """See :class:`Collection`: the members that are pictures by their extension, masks excepted."""
        found = sorted((name for name in self.members() if is_picture(name) and not _is_hidden(name)), key=by_stem)
        if not found:
            known = ", ".join(sorted(extension[1:] for extension in EXTENSIONS))
            reasons = "".join(f"; {place}: {reason}" for place, reason in self.problems()[:1])
            raise DataError(f"{self._where()}: no image in it; members ending in {known} are read{reasons}")
        return found

    def members(self) -> Iterator[str]:
        """Names of all members, pictures or not, sorted. Raises :class:`DataError` for a tar that cannot be read."""
        return (_text(name) for name in self._table.names)

    def in_same_tar(self, name: str, member: str) -> str:
        """Name of the member ``member`` of the tar that holds ``name``."""
        row = self._table.row(name)
        if row is None or not self._table.prefixed:
            return member
        return f"{self._prefixes[self._table.shard[row]]}/{member}"

    def read(self, name: str) -> bytes:
        """See :class:`Collection`; refuses a tar that changed since its headers were read."""
        row = self._table.row(name)
        if row is None:
            raise DataError(f"{self.place(name)}: no such member")
        return self._read(name, row)

    def beside(self, name: str, suffix: str) -> bytes | None:
        """See :class:`Collection`: the member of the picture's stem, else that of its sample.

        A sample without a caption's text has the ``caption`` or ``text`` of its ``.json`` for its ``.txt``.
        """
        found = self._beside(name, suffix)
        if found is not None:
            return self._read(*found)
        if suffix == ".txt" and self._beside(name, ".caption") is None:
            return self._caption_in_json(name)
        return None

    def has(self, name: str, suffix: str) -> bool:
        """See :class:`Collection`."""
        return self._beside(name, suffix) is not None

    def place(self, name: str, suffix: str | None = None) -> str:
        """See :class:`Collection`: ``photos-000003.tar: fox.png``."""
        target, row = name, self._table.row(name)
        if suffix is not None:
            target, row = self._beside(name, suffix) or (stem_of(name) + suffix, row)
        if row is None:
            return f"{self._where()}: {target}"
        shard = self._table.shard[row]
        member = target[len(self._prefixes[shard]) + 1 :] if self._table.prefixed else target
        return f"{self._tars[shard]}: {member}"

    def stamp(self, name: str) -> str | None:
        """Length, times and inode of the tar, and the member's place in it."""
        row = self._table.row(name)
        if row is None:
            return None
        length, *times = self._table.stamps[self._table.shard[row]]
        return f"{length} {' '.join(map(str, times))} {self._table.offset[row]} {self._table.size[row]}"

    def changed(self, name: str) -> int:
        """See :class:`Collection`: the tar's last change."""
        row = self._table.row(name)
        return 0 if row is None else max(self._table.stamps[self._table.shard[row]][1:3])

    def problems(self) -> Sequence[tuple[str, str]]:
        """Members that are refused and the damage of tars."""
        return self._table.problems

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TarShards) and (other._tars, other._prefixed) == (self._tars, self._prefixed)

    def __hash__(self) -> int:
        return hash(self._tars)

    @cached_property
    def _table(self) -> "_Table":
        with ThreadPoolExecutor(_READERS) as pool:
            return _Table.of(list(pool.map(tar_contents, self._tars)), self._tars, self._prefixes, self._prefixed)

    @cached_property
    def _prefixes(self) -> list[str]:
        return [tar_prefix(tar, self.folder) for tar in self._tars]

    def _where(self) -> str:
        return str(self.folder / self.title) if len(self._tars) != 1 else str(self._tars[0])

    def _beside(self, name: str, suffix: str) -> tuple[str, int] | None:
        stem = stem_of(name)
        folder, slash, file = stem.rpartition("/")
        # a mask is one picture's; a text may be that of all pictures of the sample
        sample = stem if suffix in MASK_ENDINGS else folder + slash + (file.partition(".")[0] or file)
        for base in dict.fromkeys((stem, sample)):
            row = self._table.row(base + suffix)
            if row is not None:
                return base + suffix, row
        return None

    def _read(self, name: str, row: int) -> bytes:
        table = self._table
        shard, size = int(table.shard[row]), int(table.size[row])
        try:
            with open(self._tars[shard], "rb", buffering=0) as stream:
                status = os.fstat(stream.fileno())
                if (status.st_size, status.st_mtime_ns) != table.stamps[shard][:2]:
                    raise DataError(f"{self.place(name)}: the tar has changed since it was opened; start again")
                data = os.pread(stream.fileno(), size, int(table.offset[row]))
                while data and len(data) < size:  # one call reads 2 GiB at most
                    data += os.pread(stream.fileno(), size - len(data), int(table.offset[row]) + len(data))
        except OSError as error:
            raise DataError(f"{self.place(name)}: cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise DataError(f"{self.place(name)}: the tar ends before it")
        return data

    def _caption_in_json(self, name: str) -> bytes | None:
        found = self._beside(name, ".json")
        if found is None:
            return None
        try:
            document = json.loads(self._read(*found))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(name, '.json')}: not JSON ({error})") from None
        for key in _CAPTION_KEYS if isinstance(document, dict) else ():
            if isinstance(document.get(key), str):
                return document[key].encode("utf-8", "surrogatepass")
        return None


def find_tars(path: Path) -> tuple[list[Path], Path] | None:
    """The tars that ``path`` names (a folder that holds some, one tar, a pattern) and their folder; None for others.

    A pattern has ``{000000..000012}``, ``{a,b}``, ``*`` or ``?`` in its last part. Raises :class:`DataError` where a
    tar of a ``{}`` pattern is missing.
    """
    if path.is_dir():
        try:
            tars = sorted(tar for tar in path.iterdir() if tar.name.endswith(SUFFIX) and _is_shard(tar))
        except OSError as error:
            raise DataError(f"{path}: the folder cannot be read ({error.strerror})") from None
        return (tars, path) if tars else None
    if path.exists():
        return ([path], path.parent) if path.name.endswith(SUFFIX) else None
    if not path.name.endswith(SUFFIX) or not (set("*?[{") & set(path.name)):
        return None
    spelled = [path.parent / name for name in _expanded(path.name)]
    tars = [tar for each in spelled for tar in ([each] if not set("*?[") & set(each.name) else sorted(
        tar for tar in each.parent.glob(each.name) if _is_shard(tar)))]  # fmt: skip
    missing = [tar for tar in tars if not tar.exists()]
    if missing:
        raise DataError(f"{path}: {len(missing)} of its {len(tars)} tars are missing, the first: {missing[0].name}")
    if not tars:
        raise DataError(f"{path}: no tar of such a name")
    return list(dict.fromkeys(tars)), path.parent


def tar_prefix(tar: Path, folder: Path) -> str:
    """What stands before the names of a tar's members where tars hold the same names: its path without ``.tar``."""
    return tar.relative_to(folder).as_posix().removesuffix(SUFFIX)


def _is_shard(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) or (parts[-1].startswith("__") and "__." in parts[-1])


def _expanded(pattern: str) -> list[str]:
    """Every spelling of a pattern with ``{first..last}`` and ``{one,two}``."""
    pieces: list[list[str]] = []
    end = 0
    for match in _RANGE.finditer(pattern):
        pieces.append([pattern[end : match.start()]])
        if match[1] is None:
            pieces.append(match[3].split(","))
        else:
            first, last = int(match[1]), int(match[2])
            if not 0 <= last - first < _MOST_SHARDS:
                raise DataError(f"{pattern}: the range {match[0]} is empty or holds more than {_MOST_SHARDS} tars")
            pieces.append([str(number).zfill(len(match[1])) for number in range(first, last + 1)])
        end = match.end()
    return ["".join(parts) for parts in itertools.product(*pieces, [pattern[end:]])]


class _Names(Sequence[bytes]):
    """Sorted names in one block of memory."""

    def __init__(self, block: bytes, starts: np.ndarray):
        self._block = block
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._block[self._starts[index] : self._starts[index + 1]]


@dataclass(frozen=True)
class _Table:
    """Where each member is: about 30 bytes and its name a member, so that it can be sent to other processes."""

    names: _Names
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    stamps: list[tuple[int, int, int, int]]
    prefixed: bool
    problems: tuple[tuple[str, str], ...]

    @staticmethod
    def of(contents: Sequence[TarContents], tars: Sequence[Path], prefixes: Sequence[str], prefixed: bool) -> "_Table":
        """The table of several tars."""
        total = sum(len(each.members) for each in contents)
        prefixed = prefixed or len(set().union(*(each.members for each in contents))) < total
        rows = sorted(
            (_bytes(f"{prefixes[number]}/{name}" if prefixed else name), number, offset, size)
            for number, each in enumerate(contents)
            for name, (offset, size) in each.members.items()
        )
        starts = np.cumsum([0, *(len(row[0]) for row in rows)], dtype=np.int64)
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, 3)
        return _Table(
            names=_Names(b"".join(row[0] for row in rows), starts),
            shard=numbers[:, 0].astype(np.int32),
            offset=numbers[:, 1].copy(),
            size=numbers[:, 2].copy(),
            stamps=[each.stamp for each in contents],
            prefixed=prefixed,
            problems=tuple((str(tars[number]), r) for number, each in enumerate(contents) for r in each.problems),
        )

    def row(self, name: str) -> int | None:
        """Row of a member, None where there is none."""
        wanted = _bytes(name)
        row = bisect_left(self.names, wanted)
        return row if row < len(self.names) and self.names[row] == wanted else None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
