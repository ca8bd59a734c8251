"""Writing files so that a crash never leaves a half-written one: temporary name, sync, rename.

An OSError of these functions carries the file's name, which the operating system leaves out of a failed write.
"""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; on any failure (full disk, kill) the old file stays as it was."""
    with _successor(path, keep_same=False) as stream:
        stream.write(data)


def atomic_writer(path: Path) -> AbstractContextManager[BinaryIO]:
    """A stream into what becomes ``path`` at the end of the block, synced, unless it holds the same bytes already.

    On any failure the old file stays as it was.
    """
    return _successor(path, keep_same=True)


@contextmanager
def _successor(path: Path, keep_same: bool) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if keep_same and path.exists() and filecmp.cmp(path, temporary, shallow=False):
            os.unlink(temporary)
            return
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        _name(error, path)
        raise


def replace_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a killed process leaves the old file or the new one, a power cut perhaps neither.

    For files that are written by the hundred and of which :func:`sync_files` is told before anything relies on them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path)
        raise


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files and their folders' entries are on the disk."""
    folders = set()
    for path in paths:
        _sync(path)
        folders.add(path.parent)
    for folder in folders:
        _sync(folder)


def atomic_write_text(path: Path, text: str) -> None:
    """:func:`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill; on success it is synced and renamed to ``path``, replacing it.

    A crash leaves hidden ``.NAME.*.tmp`` folders behind (:func:`remove_leftovers`), never a partial ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield temporary
        for item in temporary.rglob("*"):
            _sync(item)
        _sync(temporary)
        os.chmod(temporary, 0o755)
        aside = _move_aside(path) if path.exists() else None
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, path)
        raise
    if aside is not None:
        shutil.rmtree(aside)


def remove_directory(path: Path) -> None:
    """Delete a folder so that it is whole or not there, also where the process dies halfway."""
    shutil.rmtree(_move_aside(path))


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left of the functions above in ``folder``; nobody may be writing there."""
    for item in folder.glob(".*.tmp"):
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)


def _move_aside(path: Path) -> Path:
    """Rename a folder to a fresh hidden name and return it; a rename cannot replace a folder that is not empty."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    os.replace(path, aside)
    return aside


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(error: BaseException, path: Path) -> None:
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
