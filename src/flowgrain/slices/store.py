"""The data-set folder of a decomposition: slice files, one part a source image, and the manifest over all parts.

Every write is journalled, so a run that is killed anywhere and started again ends in the same folder as one that was
not: the part of an image first lists the files that may exist (no key), then the files are written, then the part
gets its key. Only files listed in a part are ever deleted; everything else in the folder belongs to the user.
"""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from pydantic import Field, ValidationError

from flowgrain.config import Config
from flowgrain.data.images import MASK_ENDINGS
from flowgrain.data.records import MANIFEST_NAME, MANIFEST_VERSION, REJECTS_NAME, SliceRecord
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_bytes, atomic_write_text
from flowgrain.slices.cutting import RejectRecord, RenderedSlice

DATASET_NAME = "dataset.json"
_PARTS = ".decompose"
_ENCODING = {
    "png": ("PNG", {"compress_level": 6}),
    "webp": ("WEBP", {"lossless": True, "quality": 60, "method": 4}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


class Part(Config):
    """What one source image gave. ``key`` is empty while its files are being written."""

    name: str = Field(description="source file, relative to the source folder")
    key: str = Field(description="hash of everything that decides the slices")
    files: dict[str, int] = Field(description="slice files by path in the data set, with their size in bytes")
    records: tuple[SliceRecord, ...] = ()
    rejects: tuple[RejectRecord, ...] = ()


class Store:
    """A data-set folder that a decomposition owns."""

    def __init__(self, folder: Path):
        """Open or start a data set. Raises :class:`DataError` for a folder that holds something else."""
        self.folder = folder
        self._parts = folder / _PARTS
        self._claimed: set[str] = set()
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder}: is a file; give a folder for the data set")
        if not self._parts.is_dir():
            if folder.exists() and any(folder.iterdir()):
                raise DataError(f"{folder}: not empty and no data set of decompose; give a new or empty folder")
            self._parts.mkdir(parents=True)

    def part(self, name: str) -> Part | None:
        """The part of a source image, or None. Raises :class:`DataError` for a damaged one."""
        path = self._path(name)
        return _read_part(path) if path.exists() else None

    def is_complete(self, part: Part, key: str) -> bool:
        """True if the part was made under ``key`` and all its files are there in their size."""
        return part.key == key and all(self._size(file) == size for file, size in part.files.items())

    def claim(self, part: Part) -> None:
        """Protect a part's files from deletion in this run.

        Two images may change places: of two files with one stem and the same bytes only the first is cut, and which
        is first depends on what else is in the folder.
        """
        self._claimed |= part.files.keys()

    def write(self, name: str, key: str, slices: Iterable[RenderedSlice], rejects: Iterable[RejectRecord]) -> Part:
        """Replace the part of an image and its files; what the old part had and the new one has not is deleted."""
        records, contents = [], {}
        for item in slices:
            records.append(item.record)
            contents[item.record.path] = _encode(item.image, item.record.path)
            if item.mask is not None:
                path = mask_path(item.record.path)
                contents[path] = _encode(item.mask, path)
        files = {path: len(data) for path, data in contents.items()}
        old = self.part(name)
        stale = {} if old is None else old.files
        if files or stale:
            self._save(Part(name=name, key="", files={**stale, **files}))
        self._delete(stale.keys() - files.keys())
        for path, data in contents.items():
            atomic_write_bytes(self.folder / path, data)
        part = Part(name=name, key=key, files=files, records=tuple(records), rejects=tuple(rejects))
        self._save(part)
        return part

    def keep_only(self, names: Iterable[str]) -> int:
        """Remove the parts and files of images that are not among ``names``; returns how many images went."""
        wanted = {self._path(name) for name in names}
        gone = sorted(path for path in self._parts.glob("*.json") if path not in wanted)
        for path in gone:
            self._delete(_read_part(path).files)
            path.unlink()
        return len(gone)

    def finish(self, parts: Iterable[Part], about: dict[str, object]) -> str:
        """Write manifest, rejects and ``dataset.json`` (only what changed); returns the manifest's SHA-1."""
        lines: list[str] = []
        rejects: list[str] = []
        for part in parts:
            lines += [_line(record) for record in part.records]
            rejects += [_line(reject) for reject in part.rejects]
        fingerprint = hashlib.sha1("".join(lines).encode()).hexdigest()
        document = {
            "kind": "flowgrain slices",
            "manifest_version": MANIFEST_VERSION,
            "fingerprint": fingerprint,
            **about,
        }
        self._update(REJECTS_NAME, "".join(rejects))
        self._update(MANIFEST_NAME, "".join(lines))
        self._update(DATASET_NAME, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return fingerprint

    def _update(self, name: str, text: str) -> None:
        path = self.folder / name
        if not path.exists() or path.read_bytes() != text.encode():
            atomic_write_text(path, text)

    def _save(self, part: Part) -> None:
        atomic_write_text(self._path(part.name), part.model_dump_json())

    def _path(self, name: str) -> Path:
        return self._parts / f"{hashlib.sha1(name.encode()).hexdigest()}.json"

    def _size(self, file: str) -> int:
        path = self.folder / file
        return path.stat().st_size if path.is_file() else -1

    def _delete(self, files: Iterable[str]) -> None:
        for file in files:
            if file in self._claimed:
                continue
            path = self.folder / file
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.folder or not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()


def mask_path(path: str) -> str:
    """Where the mask of a slice file lies, as ``data.mask: file`` looks for it."""
    return path.rpartition(".")[0] + MASK_ENDINGS[0]


def _read_part(path: Path) -> Part:
    try:
        return Part.model_validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(f"{path}: damaged, or of another version; decompose into a new folder") from None


def _encode(image: Image.Image, path: str) -> bytes:
    kind, options = _ENCODING[path.rpartition(".")[2]]
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _line(record: Config) -> str:
    return record.model_dump_json() + "\n"
