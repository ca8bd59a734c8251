"""Decomposed data sets: the slices that a manifest lists, already at the size of their buckets.

They lie in a folder with ``manifest.jsonl``, as files or as members of tars in it, or in tar shards alone, where the
``.json`` member of each root is its part of the manifest. The folder is flowgrain's own, so its file index lies in it
(``.flowgrain/files.json``). A line or file that is wrong is an error and not left out: a root without one of its
slices would be another tuple.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flowgrain.data.collections import Collection, Folder, Item
from flowgrain.data.collections.tar_shards import TarShards, tar_prefix
from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.folder import index_location
from flowgrain.data.images import check_whole, sha1_of_bytes
from flowgrain.data.masks import mask_files
from flowgrain.data.records import MANIFEST_NAME, Mask, Slice, SliceRecord
from flowgrain.data.shard_files import RECORDS_NAME, decode_records
from flowgrain.data.sources import Found, Source
from flowgrain.errors import DataError
from flowgrain.granularity import granularity_index

INDEX_NAME = Path(".flowgrain") / "files.json"
_MEMBER = re.compile(r"([^!]*\.tar)!(.+)", re.DOTALL)
"""``path`` of a slice that is a member of a tar: the tar, relative to the folder, and the member's name."""


@dataclass(frozen=True)
class LocatedRecord:
    """A record, where it stands and the file of its slice."""

    where: str
    record: SliceRecord
    file: Item


def read_manifest(source: Source, pixel_multiple: int) -> Found:
    """The slices of a decomposed data set. Raises :class:`DataError` for a wrong line, a missing or damaged file."""
    lines = located_records(source.path, source.collection)
    _check(lines, pixel_multiple)
    alone = isinstance(source.collection, TarShards)
    index = FileIndex(index_location(source) if alone else source.path / INDEX_NAME)
    items = [line.file for line in lines]
    facts = index.facts(items, inspect_slice)
    masks = {} if source.data.mask == "none" else mask_files(items, index)
    index.save([*(item.name for item in items), *(mask.file.name for mask in masks.values())])
    found = Found()
    for line, known in zip(lines, facts, strict=True):
        record = line.record
        digest = _checked(line, known)
        mask = masks[line.file.name].fitted((record.width, record.height)) if line.file.name in masks else None
        item = _slice_of(source, line, digest, mask)
        found.slices.append(item)
        if not (record.caption or source.settings.caption):
            found.uncaptioned.add(item.slice_id)
    return found


def located_records(path: Path, collection: Collection) -> list[LocatedRecord]:
    """The records of a decomposed data set and their files, which are not looked at.

    Raises :class:`DataError` where there is none, and for a wrong line.
    """
    if isinstance(collection, TarShards):
        lines, place = list(_members(collection)), path
    else:
        lines, place = _located(path, list(_lines(path))), path / MANIFEST_NAME
    if not lines:
        raise DataError(f"{place}: no slice in it; decompose the data set again")
    return lines


def inspect_slice(item: Item) -> FileFacts:
    """Digest and size of a slice file. Raises :class:`DataError` where it is damaged or cut short."""
    data = item.read()
    width, height = check_whole(data, Path(item.place()))
    return FileFacts(sha1_of_bytes(data), width, height, None)


def wrong_size(file: Item, size: tuple[int, int], slice_id: str, bucket: tuple[int, int]) -> DataError:
    """The error of a slice file that is not of the size recorded for it."""
    return DataError(
        f"{file.place()}: {size[0]}x{size[1]} px, but slice '{slice_id}' is recorded as {bucket[0]}x{bucket[1]}; "
        "decompose the data set again"
    )


def _lines(folder: Path) -> Iterator[tuple[str, SliceRecord]]:
    """(place, record) of each line of a manifest; raises DataError for one that is wrong by itself."""
    manifest = folder / MANIFEST_NAME
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")  # not splitlines: a name may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        try:
            yield where, SliceRecord.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise DataError(f"{where}: {field + ': ' if field else ''}{problem['msg']}") from None


def _located(folder: Path, lines: list[tuple[str, SliceRecord]]) -> list[LocatedRecord]:
    """The file of each record: below the folder, or a member of a tar there."""
    named = [(where, record, _MEMBER.fullmatch(record.path) if "!" in record.path else None) for where, record in lines]
    missing = {match[1]: where for where, _, match in reversed(named) if match}
    tars = [folder / name for name in sorted(missing) if (folder / name).is_file()]
    files, shards = Folder(folder), TarShards(tars, folder, folder.resolve().name, prefixed=True)
    prefixes = {tar.relative_to(folder).as_posix(): tar_prefix(tar, folder) for tar in tars}
    found: list[LocatedRecord] = []
    for where, record, match in named:
        if match and match[1] in prefixes:
            item = Item(shards, f"{prefixes[match[1]]}/{match[2]}")
        else:
            item = Item(files, record.path)
        found.append(LocatedRecord(where, record, item))
    return found


def _members(shards: TarShards) -> Iterator[LocatedRecord]:
    """The records in the ``.json`` members of tar shards; raises DataError for one that is wrong by itself."""
    for place, reason in shards.problems():
        raise DataError(f"{place}: {reason}; restore it or decompose the data set again")
    for name in shards.members():
        if name.endswith(f".{RECORDS_NAME}"):
            where = shards.place(name)
            for record in decode_records(shards.read(name), where):
                yield LocatedRecord(where, record, Item(shards, shards.in_same_tar(name, record.path)))


def _check(lines: list[LocatedRecord], pixel_multiple: int) -> None:
    """Raises DataError for records that contradict each other, the model or their folder."""
    first: dict[str, str] = {}
    for line in lines:
        where, record = line.where, line.record
        if record.slice_id in first:
            raise DataError(
                f"{where}: slice_id '{record.slice_id}' was already used at {_shortly(first[record.slice_id])}"
            )
        first[record.slice_id] = where
        if record.width % pixel_multiple or record.height % pixel_multiple:
            raise DataError(
                f"{where}: slice '{record.slice_id}' is {record.width}x{record.height} px, but the model needs "
                f"multiples of {pixel_multiple}; decompose again with targets that are"
            )
        parts = record.path.replace("\\", "/").split("/")
        if not parts[0] or parts[0].endswith(":") or ".." in parts:
            raise DataError(f"{where}: path '{record.path}' must lie inside the data set's folder")


def _shortly(where: str) -> str:
    """``line 3`` of a manifest; a tar and its member."""
    manifest, _, number = where.rpartition(f"{MANIFEST_NAME}:")
    return f"line {number}" if manifest else where


def _checked(line: LocatedRecord, facts: FileFacts | DataError) -> str:
    """Digest of a slice file that is there, whole and of the size recorded."""
    record = line.record
    if isinstance(facts, DataError):
        if line.file.collection.stamp(line.file.name) is None:
            why = "".join(f" ({Path(place).name}: {reason})" for place, reason in line.file.collection.problems()[:1])
            raise DataError(
                f"{line.where}: file '{record.path}' is missing{why}; restore it or decompose again"
            ) from facts
        raise DataError(f"{facts}; restore it or decompose the data set again") from facts
    if (facts.width, facts.height) != (record.width, record.height):
        raise wrong_size(line.file, (facts.width, facts.height), record.slice_id, (record.width, record.height))
    return facts.digest


def _slice_of(source: Source, line: LocatedRecord, digest: str, mask: Mask | None) -> Slice:
    record = line.record
    x0, y0, x1, y1 = record.box
    native = (max(round(x1 - x0), 1), max(round(y1 - y0), 1))
    left, top, right = (
        round(max(cut, 0) * record.scale) for cut in (record.crop[0] - x0, record.crop[1] - y0, x1 - record.crop[2])
    )
    return Slice(
        slice_id=source.prefix + record.slice_id,
        root=source.prefix + record.root,
        image=source.prefix + record.image,
        level=record.level,
        granularity=granularity_index(record.granularity),
        file=line.file,
        caption=source.caption(record.caption),
        bucket=(record.width, record.height),
        crop=None,
        digest=digest,
        native=native,
        offset=(left, top),
        offset_mirrored=right,
        image_digest=record.image_sha1,
        source=source.name,
        weight=source.settings.weight,
        regularisation=source.settings.regularisation,
        mask=mask,
        keep_tokens=source.keep_tokens,
    )
