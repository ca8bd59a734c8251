"""The table of contents of a tar file: where each member's bytes are, so that members are read one by one.

Only headers are read. What the file itself or its maker can break (a cut file, a damaged header, links, devices, names
that leave the folder) is told and never raised: the members before the damage are good.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from flowgrain.errors import DataError

BLOCK = 512
_LONGEST_RECORD = 2**20
"""Most bytes of a header that describes another (a long name): more is damage or malice."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True)
class TarContents:
    """What a tar file holds."""

    members: dict[str, tuple[int, int]]
    """(offset, size) in bytes of the contents of each regular member, by name."""
    problems: tuple[str, ...]
    """What was left out, and why; each begins with the member's name where one is known."""
    stamp: tuple[int, int, int, int]
    """(length, modification time, inode change time, inode) of the file when it was read."""


def tar_contents(path: Path) -> TarContents:
    """The members of an uncompressed tar (v7, ustar, pax, GNU).

    Raises :class:`DataError` where the file cannot be read or is compressed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise DataError(f"{path}: not a regular file")
        with open(path, "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            _check_not_compressed(path, os.pread(stream.fileno(), BLOCK, 0))
            reader = _Reader(stream.fileno(), status.st_size)
            reader.read_all()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return TarContents(reader.members, tuple(reader.problems), times)


class _Damage(Exception):
    """The headers cannot be followed any further."""


class _Reader:
    """Walks from header to header."""

    def __init__(self, descriptor: int, length: int):
        self.members: dict[str, tuple[int, int]] = {}
        self.problems: list[str] = []
        self._descriptor = descriptor
        self._length = length
        self._began = False

    def read_all(self) -> None:
        """Fill ``members`` and ``problems``."""
        place = 0
        try:
            following = True
            while following:
                place, following = self._member(place)
        except _Damage as damage:
            if not self._length:
                reason = "not a tar: the file is empty (0 bytes)"
            elif not self._began:
                reason = f"not a tar, or damaged at its start ({damage})"
            else:
                reason = f"damaged or cut short ({damage}): the {len(self.members)} members before that are read"
            self.problems.append(reason)

    def _member(self, place: int) -> tuple[int, bool]:
        """Enter the member whose headers begin at ``place``; returns where the next begins and whether there is one."""
        described: dict[str, str] = {}
        while True:
            header = os.pread(self._descriptor, BLOCK, place)
            if not header and not described:
                raise _Damage("no end mark")
            if len(header) < BLOCK:
                raise _Damage(f"header cut at byte {place}")
            if not any(header):
                return place, False
            _check_sum(header, place)
            self._began = True
            kind, size, body = header[156:157], _number(header[124:136], place), place + BLOCK
            if kind not in (b"x", b"g", b"L", b"K"):
                break
            data = self._record(body, size)
            if kind == b"L":
                described["path"] = _text(data.partition(b"\0")[0])
            elif kind == b"x":
                described |= _pax(data, place)
            place = body + _padded(size)
        if kind == b"S":
            body = self._after_sparse_map(header, body)
        size = _decimal(described["size"], place) if "size" in described else size
        name = described.get("path") or _short_name(header)
        if kind in _REFUSED or not self._is_regular(kind, name):
            if kind in _REFUSED:
                self.problems.append(f"{name}: {_REFUSED[kind]}, only regular members are read")
                size = 0 if kind in b"12346" else size
            elif kind != b"5":
                self.problems.append(f"{name}: a member of unknown kind {kind!r}")
            return body + _padded(size), True
        if body + size > self._length:
            raise _Damage(f"{name} lacks {body + size - self._length} of its {size} bytes")
        self._enter(name, body, size, sparse=any(key.startswith("GNU.sparse") for key in described))
        return body + _padded(size), True

    def _enter(self, name: str, offset: int, size: int, sparse: bool) -> None:
        name = _plain(name)
        reason = "a sparse file, only regular members are read" if sparse else name_fault(name)
        if reason:
            self.problems.append(f"{name}: {reason}")
        elif name in self.members:
            self.problems.append(f"{name}: the second member of this name, the first is read")
        else:
            self.members[name] = offset, size

    def _is_regular(self, kind: bytes, name: str) -> bool:
        return kind in (b"0", b"\0", b"7") and not name.endswith("/")

    def _record(self, offset: int, size: int) -> bytes:
        if size > _LONGEST_RECORD:
            raise _Damage(f"a name of {size} bytes at byte {offset}")
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise _Damage(f"header cut at byte {offset}")
        return data

    def _after_sparse_map(self, header: bytes, body: int) -> int:
        more = header[482]
        while more:
            block = os.pread(self._descriptor, BLOCK, body)
            if len(block) < BLOCK:
                raise _Damage(f"header cut at byte {body}")
            more, body = block[504], body + BLOCK
        return body


def name_fault(name: str) -> str:
    """Why a member of this name is not taken; empty where it is.

    What would leave the folder that it is unpacked to is refused everywhere, also where nothing is unpacked: names go
    on into slice files.
    """
    parts = name.split("/")
    if not name or name.endswith("/"):
        return "a member without a name"
    if name.startswith("/") or ".." in parts or "" in parts or "\0" in name:
        return "a name that leaves the folder of the tar"
    return ""


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _check_not_compressed(path: Path, start: bytes) -> None:
    for mark, kind in _COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(
                f"{path}: compressed with {kind}, so that members have no place to be read from; unpack it to a plain "
                ".tar"
            )


def _check_sum(header: bytes, place: int) -> None:
    try:
        expected = int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        raise _Damage(f"no header at byte {place}") from None
    if expected != sum(header) - sum(header[148:156]) + 8 * 32:
        raise _Damage(f"no header at byte {place}")


def _number(field: bytes, place: int) -> int:
    """A number in octal digits, or (first bit set) in base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        number = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise _Damage(f"no size in the header at byte {place}")
    return number


def _decimal(text: str, place: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _Damage(f"no size in the header at byte {place}")
    return int(text)


def _pax(data: bytes, place: int) -> dict[str, str]:
    """The records ``<length> <key>=<value>\\n`` of a pax header."""
    found: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start]:
        digits, space, _ = data[start : start + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) < 5:
            raise _Damage(f"no pax record at byte {place}")
        record = data[start + len(digits) + 1 : start + int(digits) - 1]
        key, equals, value = record.partition(b"=")
        if not equals:
            raise _Damage(f"no pax record at byte {place}")
        found[_text(key)] = _text(value)
        start += int(digits)
    return found


def _short_name(header: bytes) -> str:
    name = _text(header[:100].partition(b"\0")[0])
    prefix = _text(header[345:500].partition(b"\0")[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
