"""The data-set folder of a decomposition: slice files, one record a chunk of images, the manifest over all.

A chunk's files are written first and made durable, then its record, in one piece. What a killed process had begun is
in a journal beside the record, so that whoever does the chunk again knows which files may lie around. Only files that
a record or a journal lists are ever deleted; everything else in the folder belongs to the user. Several processes and
machines may work on one folder: they write the same bytes to the same names.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import Field, ValidationError

from flowgrain.config import Config
from flowgrain.data.images import MASK_ENDINGS
from flowgrain.data.records import MANIFEST_NAME, MANIFEST_VERSION, REJECTS_NAME, SliceRecord
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text, atomic_writer
from flowgrain.slices.cutting import RejectRecord

DATASET_NAME = "dataset.json"
STATE = ".decompose"
"""Folder in the data set that holds what decompose remembers."""
SOURCE_NAME = "source.json"
_JOURNAL = ".journal"
_STALE = ".stale"
IMAGE, FILE = "image", "file"
Entry = tuple[str, str]
"""(IMAGE, name) or (FILE, path in the data set)."""


class SliceFacts(Config):
    """What is measured of a slice's pixels while they are at hand."""

    phash: str = Field(description="perceptual hash, 64 bits in hexadecimal")
    sharpness: float = Field(description="standard deviation of the Laplacian of the grey values, 0 to 255")


class Part(Config):
    """What one source image gave."""

    name: str = Field(description="source file as text, relative to the source folder")
    stamp: str | None = Field(description="what the file system said of the file when it was read")
    sha1: str = Field(description="SHA-1 of the file, empty where it cannot be read")
    size: tuple[int, int] | None = Field(default=None, description="upright width and height, where it was decoded")
    key: str = Field(description="hash of everything that decides the slices")
    files: dict[str, int] = Field(description="files by path in the data set, with their size in bytes")
    records: tuple[SliceRecord, ...] = ()
    rejects: tuple[RejectRecord, ...] = ()
    facts: tuple[SliceFacts, ...] = Field(default=(), description="of each slice, in the order of the records")


class Store:
    """A data-set folder that decompositions own."""

    def __init__(self, folder: Path):
        """Open or start a data set. Raises :class:`DataError` for a folder that holds something else."""
        self.folder = folder
        self.state = folder / STATE
        self._chunks = self.state / "chunks"
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file; give a folder for the data set")
        if not self.state.is_dir() and folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: not empty and no data set of decompose; give a new or empty folder")
        if self.state.is_dir() and not self._chunks.is_dir() and any(self.state.glob("*.json")):
            raise DataError(f"{folder}: made by an older version of decompose; decompose into a new folder")
        try:
            self._chunks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made or written to ({error.strerror}); choose another") from None

    def chunk(self, chunk: str) -> dict[str, Part]:
        """The parts of a chunk by image, empty where it was not finished. Raises :class:`DataError` if damaged."""
        path = self._record(chunk)
        if not path.exists():
            return {}
        try:
            parts = [Part.model_validate_json(line) for line in path.read_bytes().splitlines()]
        except (ValidationError, UnicodeDecodeError):
            raise DataError(f"{path}: damaged, or of another version; decompose into a new folder") from None
        return {part.name: part for part in parts}

    def is_complete(self, part: Part, key: str) -> bool:
        """True if the part was made under ``key`` and all its files are there in their size."""
        return part.key == key and all(self._size(file) == size for file, size in part.files.items())

    def begin(self, chunk: str) -> "Journal":
        """Take a chunk up: its old record no longer counts, its files are remembered until :meth:`commit`."""
        journal = self.journal(chunk)
        past = self.chunk(chunk).values()
        journal.announce(
            *((IMAGE, part.name) for part in past), *((FILE, file) for part in past for file in part.files)
        )
        self._record(chunk).unlink(missing_ok=True)
        return journal

    def journal(self, chunk: str) -> "Journal":
        """Where this process announces files of a chunk that was taken up."""
        return Journal(self._chunks / f"{chunk}.{socket.gethostname()}-{os.getpid()}{_JOURNAL}")

    def commit(self, chunk: str, parts: Sequence[Part]) -> None:
        """Write the record of a chunk, whose files are on the disk. What else was begun is left to :meth:`clean`."""
        stale = self._listed(chunk, _JOURNAL, _STALE) - _entries(parts)
        if stale:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in sorted(stale))
            atomic_write_text(self._chunks / f"{chunk}{_STALE}", lines)
        atomic_write_text(self._record(chunk), "".join(f"{part.model_dump_json()}\n" for part in parts))
        journals = list(self._chunks.glob(f"{chunk}.*{_JOURNAL}"))
        if len(journals) > 1:  # others began the chunk and died
            self._clear_unfinished(name for kind, name in self._listed(chunk, _JOURNAL) if kind == FILE)
        for path in journals:
            path.unlink(missing_ok=True)

    def _listed(self, chunk: str, *endings: str) -> set[Entry]:
        """What the journals or the stale list of a chunk name."""
        found: set[Entry] = set()
        for path in (path for ending in endings for path in self._chunks.glob(f"{chunk}*{ending}")):
            with suppress(FileNotFoundError):  # another machine has just finished the chunk
                for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                    kind, name = json.loads(line)
                    found.add((kind, name))
        return found

    def _delete(self, files: Iterable[str]) -> None:
        """Delete files of the data set, and folders that this leaves empty."""
        for file in files:
            path = self.folder / file
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.folder:
                    break
                try:
                    parent.rmdir()
                except OSError:  # not empty, or gone already
                    break

    def _clear_unfinished(self, files: Iterable[str]) -> None:
        """Delete what a killed process had written of files under their temporary names."""
        by_folder: dict[Path, set[str]] = {}
        for file in files:
            path = self.folder / file
            by_folder.setdefault(path.parent, set()).add(path.name)
        for folder, names in by_folder.items():
            for path in folder.glob(".*.tmp"):
                if path.name[1:].removesuffix(".tmp").rpartition(".")[0] in names:
                    path.unlink(missing_ok=True)

    def parts(self, chunks: Iterable[str]) -> Iterator[Part]:
        """The parts of finished chunks, one after another."""
        for chunk in chunks:
            yield from self.chunk(chunk).values()

    def clean(self, chunks: Sequence[str]) -> int:
        """Delete files that belong to no image any more, and forget chunks that are none; ``chunks`` are all finished.

        Only now, since an image may have moved from one chunk to another and its files with it. Returns how many
        images the data set had before and has no more.
        """
        wanted = set(chunks)
        there = [path for path in self._chunks.iterdir() if not path.name.startswith(".")]
        # a journal of a finished chunk was left by who died just after the record was written
        untidy = [path for path in there if path.suffix in (_STALE, _JOURNAL) or _chunk_of(path) not in wanted]
        if not untidy:
            return 0
        stale: set[Entry] = set()
        for chunk in {_chunk_of(path) for path in untidy}:
            stale |= self._listed(chunk, _JOURNAL, _STALE)
            if chunk not in wanted:
                stale |= _entries(self.chunk(chunk).values())
        self._clear_unfinished(name for kind, name in stale if kind == FILE)
        for part in self.parts(chunks):
            stale -= _entries([part])
        self._delete(sorted(name for kind, name in stale if kind == FILE))
        for path in untidy:
            path.unlink(missing_ok=True)
        return sum(kind == IMAGE for kind, _ in stale)

    def write_manifest(self, parts: Iterable[Part], more: Iterable[RejectRecord]) -> str:
        """Write manifest and rejects (only what changed), a part at a time; returns the manifest's SHA-1.

        ``more`` are rejects of what is no image.
        """
        digest = hashlib.sha1()
        with (
            atomic_writer(self.folder / MANIFEST_NAME) as manifest,
            atomic_writer(self.folder / REJECTS_NAME) as rejects,
        ):
            for part in parts:
                lines = "".join(_line(record) for record in part.records).encode()
                digest.update(lines)
                manifest.write(lines)
                rejects.write("".join(_line(reject) for reject in part.rejects).encode())
            rejects.write("".join(_line(reject) for reject in more).encode())
        return digest.hexdigest()

    def write_about(self, fingerprint: str, about: dict[str, object]) -> None:
        """Write ``dataset.json``."""
        document = {
            "kind": "flowgrain slices",
            "manifest_version": MANIFEST_VERSION,
            "fingerprint": fingerprint,
            **about,
        }
        with atomic_writer(self.folder / DATASET_NAME) as stream:
            stream.write((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())

    def remember_source(self, location: str) -> None:
        """Note where the pictures were, for commands that look at them again."""
        with atomic_writer(self.state / SOURCE_NAME) as stream:
            stream.write((json.dumps({"location": location}) + "\n").encode())

    def _record(self, chunk: str) -> Path:
        return self._chunks / f"{chunk}.jsonl"

    def _size(self, file: str) -> int:
        try:
            return os.stat(self.folder / file).st_size
        except OSError:
            return -1


class Journal:
    """Announces files before they are written, so that a killed process leaves no file unaccounted for."""

    def __init__(self, path: Path):
        self._path = path
        self._announced: set[Entry] = set()

    def announce(self, *entries: Entry) -> None:
        """Note that files are about to be written, or that images are about to be done again."""
        new = [entry for entry in entries if entry not in self._announced]
        if new:
            self._announced.update(new)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write("".join(f"{json.dumps(entry)}\n" for entry in new))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the operating system says against writing a data set in the block, as a :class:`DataError`."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise DataError(f"{what}; finished chunks are kept, run the same command to go on") from error


def _entries(parts: Iterable[Part]) -> set[Entry]:
    return {(IMAGE, p.name) for p in parts} | {(FILE, file) for p in parts for file in p.files}


def _chunk_of(path: Path) -> str:
    """The chunk whose record, journal or list a file is."""
    return path.name.partition(".")[0]


def read_source(folder: Path) -> str | None:
    """Where a data set's pictures were when it was made, None where that is not known."""
    try:
        return str(json.loads((folder / STATE / SOURCE_NAME).read_text(encoding="utf-8"))["location"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mask_path(path: str) -> str:
    """Where the mask of a slice file lies, as ``data.mask: file`` looks for it."""
    return path.rpartition(".")[0] + MASK_ENDINGS[0]


def _line(record: Config) -> str:
    return record.model_dump_json() + "\n"
