"""Decomposed data sets: the slices that ``manifest.jsonl`` lists, already at the size of their buckets.

The folder is flowgrain's own, so its file index lies in it (``.flowgrain/files.json``). A line or file that is wrong
is an error and not left out: a root without one of its slices would be another tuple.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.images import check_whole, read_bytes, sha1_of_bytes
from flowgrain.data.masks import find_mask, fitting_mask, inspect_mask
from flowgrain.data.records import MANIFEST_NAME, Mask, Slice, SliceRecord
from flowgrain.data.sources import Found, Source
from flowgrain.errors import DataError
from flowgrain.granularity import granularity_index

INDEX_NAME = Path(".flowgrain") / "files.json"


def read_manifest(source: Source, pixel_multiple: int) -> Found:
    """The slices of a decomposed folder. Raises :class:`DataError` for a wrong line or a missing or damaged file."""
    lines = list(_records(source.path, pixel_multiple))
    if not lines:
        raise DataError(f"{source.path / MANIFEST_NAME}: no slice in it; decompose the data set again")
    names = [record.path for _, record in lines]
    index = FileIndex(source.path / INDEX_NAME)
    facts = index.facts(source.path, names, inspect_slice)
    found_masks = {} if source.data.mask == "none" else {name: find_mask(source.path, name) for name in names}
    mask_names = {name: mask for name, mask in found_masks.items() if mask is not None}
    mask_facts = index.facts(source.path, list(mask_names.values()), inspect_mask)
    index.save([*names, *mask_names.values()])
    known_masks = dict(zip(mask_names, mask_facts, strict=True))
    found = Found()
    for (number, record), known in zip(lines, facts, strict=True):
        digest = _checked(source.path, number, record, known)
        mask = None
        if record.path in known_masks:
            file = source.path / mask_names[record.path]
            mask = fitting_mask(file, known_masks[record.path], (record.width, record.height))
        item = _slice_of(source, record, digest, mask)
        found.slices.append(item)
        if not (record.caption or source.settings.caption):
            found.uncaptioned.add(item.slice_id)
    return found


def inspect_slice(path: Path) -> FileFacts:
    """Digest and size of a slice file. Raises :class:`DataError` where it is damaged or cut short."""
    data = read_bytes(path)
    width, height = check_whole(data, path)
    return FileFacts(sha1_of_bytes(data), width, height, None)


def wrong_size(path: Path, size: tuple[int, int], slice_id: str, bucket: Sequence[int]) -> DataError:
    """The error of a slice file that is not of the size recorded for it."""
    return DataError(
        f"{path}: {size[0]}x{size[1]} px, but slice '{slice_id}' is recorded as {bucket[0]}x{bucket[1]}; "
        "decompose the data set again"
    )


def _checked(folder: Path, number: int, record: SliceRecord, facts: FileFacts | DataError) -> str:
    """Digest of a slice file that is there, whole and of the size recorded."""
    if isinstance(facts, DataError):
        if not (folder / record.path).exists():
            where = f"{folder / MANIFEST_NAME}:{number}"
            raise DataError(f"{where}: file '{record.path}' is missing; restore it or decompose again") from facts
        raise DataError(f"{facts}; restore it or decompose the data set again") from facts
    if (facts.width, facts.height) != (record.width, record.height):
        size = (facts.width, facts.height)
        raise wrong_size(folder / record.path, size, record.slice_id, (record.width, record.height))
    return facts.digest


def _records(folder: Path, pixel_multiple: int) -> Iterator[tuple[int, SliceRecord]]:
    """(line number, record) of each line; raises DataError for one that is wrong by itself."""
    manifest = folder / MANIFEST_NAME
    first_line: dict[str, int] = {}
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")  # not splitlines: a name may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        try:
            record = SliceRecord.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise DataError(f"{where}: {field + ': ' if field else ''}{problem['msg']}") from None
        if record.slice_id in first_line:
            raise DataError(
                f"{where}: slice_id '{record.slice_id}' was already used at line {first_line[record.slice_id]}"
            )
        first_line[record.slice_id] = number
        if record.width % pixel_multiple or record.height % pixel_multiple:
            raise DataError(
                f"{where}: slice '{record.slice_id}' is {record.width}x{record.height} px, but the model needs "
                f"multiples of {pixel_multiple}; decompose again with targets that are"
            )
        parts = record.path.replace("\\", "/").split("/")
        if not parts[0] or parts[0].endswith(":") or ".." in parts:
            raise DataError(f"{where}: path '{record.path}' must lie inside the data set's folder")
        yield number, record


def _slice_of(source: Source, record: SliceRecord, digest: str, mask: Mask | None) -> Slice:
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
        path=source.path / record.path,
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
