"""Hugging Face data sets: pictures as rows of a table, read undecoded.

A name is ``hf:`` and then a folder that ``save_to_disk`` wrote, a folder of parquet files or a data set's id on the
hub; then ``:split`` or ``:config:split`` where there are several; then ``?image=...&caption=...&mask=...`` where the
columns cannot be told by their types and names. Parquet files are converted once by the ``datasets`` library into its
own cache (``HF_HOME``), which needs as much room again.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from flowgrain.data.collections.base import Collection, by_stem, stem_of
from flowgrain.data.images import EXTENSIONS, MASK_ENDINGS, read_bytes
from flowgrain.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

PREFIX = "hf:"
_CAPTION_COLUMNS = ("text", "caption", "prompt")
_COLUMN_KEYS = ("image", "caption", "mask")
_NAME = re.compile(r"(?P<split>[^/]+)/(?P<row>\d{6,})(?:-.*)?\.[^./]+", re.DOTALL)
_BATCH = 4096
_MAGIC = (
    (b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp"), (b"II*\0", ".tiff"),
    (b"MM\0*", ".tiff"),
)  # fmt: skip
_UNKNOWN = ".jpg"
"""Extension of bytes that are no picture: they are refused, with the reason, when they are decoded."""


@dataclass(frozen=True)
class _Columns:
    image: str
    caption: str | None
    mask: str | None


class HubDataset(Collection):
    """The rows of one split, called ``train/000123-fox.jpg``: row, file name and format of each picture."""

    def __init__(self, spec: str):
        """``spec`` begins with ``hf:``. Raises :class:`DataError` where it names nothing; opens nothing."""
        place, _, query = spec.removeprefix(PREFIX).partition("?")
        source, *parts = place.split(":")
        keys = dict(parse_qsl(query))
        unknown = sorted(keys.keys() - set(_COLUMN_KEYS))
        if not source or len(parts) > 2 or not all(parts) or unknown or (query and not keys):
            what = f"unknown key '{unknown[0]}'" if unknown else "not a name of a data set"
            raise DataError(
                f"{spec}: {what}; write hf:FOLDER or hf:user/name, then :split or :config:split, then "
                "?image=COLUMN&caption=COLUMN&mask=COLUMN, each where it is needed"
            )
        self._spec = spec
        self._source = source
        self._config = parts[0] if len(parts) == 2 else None
        self._split = parts[-1] if parts else None
        self._keys = keys
        self.title = PurePosixPath(source).name or source
        self.folder = Path(source) if Path(source).is_dir() else Path()

    def names(self) -> Sequence[str]:
        """See :class:`Collection`."""
        if not len(self._rows):
            raise DataError(f"{self._spec}: no row in it")
        split, names = self._split_name, []
        pictures = self._rows.select_columns([self._columns.image])
        for table in pictures.with_format("arrow").iter(_BATCH):
            for path, start in zip(*_paths_and_starts(table, self._columns.image), strict=True):
                stem, extension = _name_parts(path, start)
                names.append(f"{split}/{len(names):06}{'-' if stem else ''}{stem}{extension}")
        return sorted(names, key=by_stem)

    def read(self, name: str) -> bytes:
        """See :class:`Collection`: the bytes as they were put in, or those of the file that the row names."""
        mask = next((ending for ending in MASK_ENDINGS if name.endswith(ending)), None)
        column = self._columns.mask if mask else self._columns.image
        if column is None:
            raise DataError(f"{self.place(name)}: no such column")
        data = self._picture(name, column)
        if data is None:
            raise DataError(f"{self.place(name)}: the row has no picture in its column '{column}'")
        return data

    def beside(self, name: str, suffix: str) -> bytes | None:
        """See :class:`Collection`: the caption column is the ``.txt``, the mask column the ``.mask.png``."""
        if suffix == ".txt" and self._columns.caption is not None:
            text = self._value(name, self._columns.caption)
            return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None
        if suffix == MASK_ENDINGS[0] and self._columns.mask is not None:
            return self._picture(name, self._columns.mask)
        return None

    def has(self, name: str, suffix: str) -> bool:
        """See :class:`Collection`."""
        return self.beside(name, suffix) is not None

    def place(self, name: str, suffix: str | None = None) -> str:
        """See :class:`Collection`: ``hf:user/name: train/000123-fox.jpg``."""
        return f"{self._spec}: {name if suffix is None else stem_of(name) + suffix}"

    def stamp(self, name: str) -> str | None:
        """Lengths and times of the table's files, and the row; None for a table that is in no file."""
        files = self._files
        return f"{' '.join(f'{size} {time}' for size, time in files)} {name}" if files else None

    def changed(self, name: str) -> int:
        """See :class:`Collection`: the last change of the table's files."""
        return max((time for _, time in self._files), default=0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HubDataset) and other._spec == self._spec

    def __hash__(self) -> int:
        return hash(self._spec)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open table: each process opens it by itself."""
        opened = ("_rows", "_columns", "_by_column", "_files")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @cached_property
    def _rows(self) -> "Dataset":
        return _open(self._spec, self._source, self._config, self._split)

    @cached_property
    def _by_column(self) -> "dict[str, Dataset]":
        """The table of one column, undecoded."""
        return {}

    @cached_property
    def _files(self) -> tuple[tuple[int, int], ...]:
        """(length, modification time) of each file of the table; empty where one cannot be asked."""
        try:
            stats = [os.stat(entry["filename"]) for entry in self._rows.cache_files]
        except OSError:
            return ()
        return tuple((status.st_size, status.st_mtime_ns) for status in stats)

    @cached_property
    def _columns(self) -> _Columns:
        features = self._rows.features
        images = [key for key, feature in features.items() if _holds_pictures(feature)]
        strings = [key for key, feature in features.items() if _holds_text(feature)]
        for key, column in self._keys.items():
            known = strings if key == "caption" else images
            if column not in known:
                what = "texts" if key == "caption" else "pictures"
                raise DataError(f"{self._spec}: no column '{column}' of {what}; its columns are {', '.join(features)}")
        image = self._keys.get("image")
        if image is None:
            named = [key for key in images if key == "image"] or [key for key in images if key != "mask"]
            if len(named) != 1:
                raise DataError(
                    f"{self._spec}: {'no column' if not named else 'columns ' + ', '.join(named)} of pictures; "
                    f"its columns are {', '.join(features)}: name one with ?image=COLUMN"
                )
            [image] = named
        caption = self._keys.get("caption") or next((key for key in _CAPTION_COLUMNS if key in strings), None)
        mask = self._keys.get("mask") or ("mask" if "mask" in images and image != "mask" else None)
        return _Columns(image, caption, mask)

    @property
    def _split_name(self) -> str:
        return self._split or str(self._rows.split or "all")

    def _picture(self, name: str, column: str) -> bytes | None:
        value = self._value(name, column)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, dict):
            return None
        if isinstance(value.get("bytes"), bytes):
            return value["bytes"]
        return None if value.get("path") is None else read_bytes(Path(value["path"]))

    def _value(self, name: str, column: str) -> Any:
        match = _NAME.fullmatch(name)
        row = int(match["row"]) if match else len(self._rows)
        if row >= len(self._rows):
            raise DataError(f"{self.place(name)}: no such row; it has {len(self._rows)}")
        if column not in self._by_column:
            self._by_column[column] = self._rows.select_columns([column]).with_format("arrow")
        table: pyarrow.Table = self._by_column[column][row]
        return table.column(column)[0].as_py()


def _open(spec: str, source: str, config: str | None, split: str | None) -> "Dataset":
    """The table of one split. Raises :class:`DataError` for what cannot be opened or has several splits."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "datasets", f"reading '{spec}'") from None
    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(source)
        elif folder.is_dir() and not any(folder.rglob("*.parquet")):
            raise DataError(f"{spec}: neither a folder of save_to_disk nor one of parquet files")
        else:
            found = datasets.load_dataset(source, config)
    except DataError:
        raise
    except Exception as error:  # the library raises almost anything: its own errors, HTTP, OSError, Arrow's
        raise DataError(f"{spec}: cannot be opened ({' '.join(str(error).split())[:300]})") from error
    if isinstance(found, datasets.Dataset):
        own = str(found.split or "all")
        if split is not None and split != own:
            raise DataError(f"{spec}: no split '{split}'; it has one, {own}")
        return found
    if split is None and len(found) > 1:
        first = next(iter(found))
        raise DataError(f"{spec}: has the splits {', '.join(map(str, found))}; name one, as in hf:{source}:{first}")
    chosen = next(iter(found)) if split is None else split
    if chosen not in found:
        raise DataError(f"{spec}: no split '{chosen}'; it has {', '.join(map(str, found))}")
    return found[chosen]


def _holds_pictures(feature: Any) -> bool:
    """Whether a column is of pictures: by its type, or raw bytes with or without a file name."""
    from datasets import Image, Value

    if isinstance(feature, dict):
        names = {key: part.dtype for key, part in feature.items() if isinstance(part, Value)}
        return set(names) == {"bytes", "path"} and names["bytes"] in ("binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _holds_text(feature: Any) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _paths_and_starts(table: "pyarrow.Table", column: str) -> tuple[list[str | None], list[bytes | None]]:
    """The file name of each picture and, where one has no telling name, its first bytes."""
    import pyarrow

    values = table.column(column).combine_chunks()
    if not pyarrow.types.is_struct(values.type):
        return [None] * len(values), [_start(value) for value in values]
    paths = values.field("path").to_pylist()
    telling = (path is not None and PurePosixPath(path).suffix.lower() in EXTENSIONS for path in paths)
    return paths, [
        None if tells else _start(value) for tells, value in zip(telling, values.field("bytes"), strict=True)
    ]


def _start(value: "pyarrow.BinaryScalar") -> bytes | None:
    """The first bytes of a picture, without a copy of the others."""
    buffer = value.as_buffer()
    return None if buffer is None else buffer.slice(0, 16).to_pybytes()


def _name_parts(path: str | None, start: bytes | None) -> tuple[str, str]:
    """(stem, extension) of a picture's name: those of its file, the extension else from its first bytes."""
    file = (path or "").replace("\\", "/").rpartition("/")[2]
    stem, dot, _ = file.rpartition(".")
    stem = (stem if dot else file).strip(". ").replace("\0", "")
    suffix = PurePosixPath(file).suffix
    return stem, suffix if suffix.lower() in EXTENSIONS else _extension(start or b"")


def _extension(start: bytes) -> str:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        return ".avif"
    return next((extension for magic, extension in _MAGIC if start.startswith(magic)), _UNKNOWN)
