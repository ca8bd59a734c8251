"""What a finished data set says about its source images: the slices and rejected boxes of one after another.

Both files are read line by line; of the rejects only the places of their lines are kept in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from flowgrain.data.records import MANIFEST_NAME, REJECTS_NAME, SliceRecord
from flowgrain.errors import DataError
from flowgrain.slices.cutting import RejectRecord

RecordT = TypeVar("RecordT", SliceRecord, RejectRecord)


@dataclass(frozen=True)
class Sliced:
    """What became of one source image."""

    image: str
    records: tuple[SliceRecord, ...]
    rejects: tuple[RejectRecord, ...] = field(default=())
    """Its rejected boxes; an image that was rejected as a whole has none."""

    @property
    def sha1(self) -> str | None:
        """SHA-1 of the image that was cut, None where no slice recorded it."""
        return self.records[0].image_sha1 if self.records else None


def sliced_images(dataset: Path, rejects: bool = False) -> Iterator[Sliced]:
    """Every source image of a data set in the order of its manifest, then those of which all boxes were rejected.

    Raises :class:`DataError` where the folder is no data set or a line in it is wrong.
    """
    manifest = dataset / MANIFEST_NAME
    if not manifest.is_file():
        raise DataError(f"{dataset}: holds no {MANIFEST_NAME}; give the folder that decompose wrote")
    return _sliced(manifest, _Rejects(dataset / REJECTS_NAME, rejects))


def _sliced(manifest: Path, refused: "_Rejects") -> Iterator[Sliced]:
    for image, records in groupby(_records(manifest, SliceRecord), key=lambda record: record.image):
        yield Sliced(image, tuple(records), refused.take(image))
    for image in refused.left():
        yield Sliced(image, (), refused.take(image))


class _Rejects:
    """The rejected boxes of an image at a time, found again by where their lines begin."""

    def __init__(self, path: Path, wanted: bool):
        self._path = path
        self._starts: dict[str, list[int]] = {}
        if not wanted or not path.is_file():
            return
        at = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (record := _parse(line, RejectRecord, path, number)).box is not None:
                    self._starts.setdefault(record.image, []).append(at)
                at += len(line)

    def take(self, image: str) -> tuple[RejectRecord, ...]:
        starts = self._starts.pop(image, [])
        if not starts:
            return ()
        with self._path.open("rb") as stream:
            found = []
            for start in starts:
                stream.seek(start)
                found.append(RejectRecord.model_validate_json(stream.readline()))
        return tuple(found)

    def left(self) -> list[str]:
        return list(self._starts)


def _records(path: Path, schema: type[RecordT]) -> Iterator[RecordT]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse(line, schema, path, number)


def _parse(line: bytes, schema: type[RecordT], path: Path, number: int) -> RecordT:
    try:
        record = schema.model_validate_json(line)
        if ".." in record.image.split("/") or record.image.startswith("/"):
            raise DataError(f"{path}:{number}: image: '{record.image}' is no name inside a collection")
        return record
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{path}:{number}: {key + ': ' if key else ''}{problem['msg']}") from None
