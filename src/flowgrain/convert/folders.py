"""Folders of pictures with settings of their own, as a recipe's ``data`` section; offsets of the time law."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Cited
from flowgrain.data.images import list_images
from flowgrain.errors import DataError
from flowgrain.granularity import GRANULARITIES, Granularity

_KOHYA_NAME = re.compile(r"\d+_.+")


@dataclass(frozen=True)
class Given:
    """A value with the option that it comes from."""

    value: Any
    cited: Cited
    difference: str = ""


@dataclass
class Folder:
    """One folder of the source."""

    path: Given
    name: str
    """Wanted name; made unique among the folders."""
    own: dict[str, Given] = field(default_factory=dict)
    """Keys of a source of the recipe."""
    shared: dict[str, Given] = field(default_factory=dict)
    """Keys of ``data``, one value for all folders."""
    offset: Given | None = None
    """Shift of logit t of its pictures, None for 0."""


def assign_granularities(shifts: Sequence[float | int]) -> dict[float | int, Granularity] | None:
    """A granularity for each distinct shift, noisiest first; None where there are more than three.

    One is macro, two are macro and micro, three are macro, meso and micro.
    """
    distinct = sorted(set(shifts), reverse=True)
    chosen: dict[int, tuple[Granularity, ...]] = {1: ("macro",), 2: ("macro", "micro"), 3: GRANULARITIES}
    return dict(zip(distinct, chosen[len(distinct)], strict=True)) if len(distinct) in chosen else None


def write_data(draft: Draft, folders: Sequence[Folder]) -> None:
    """Write ``data`` and, where folders have offsets, their granularities and ``time.granularity_shift``."""
    granularities = _write_offsets(draft, folders)
    names = _unique([folder.name for folder in folders])
    simple = (
        len(folders) == 1 and not granularities and not set(folders[0].own) - {"resolution", "buckets", "keep_tokens"}
    )
    for index, (folder, name) in enumerate(zip(folders, names, strict=True)):
        place = "data" if simple else f"data.sources.{index}"
        draft.convert(folder.path.cited, f"{place}.path", str(folder.path.value), folder.path.difference)
        if len(folders) > 1:
            draft.complete(f"{place}.name", name, "the folder's name, made unique")
        if not simple and _looks_like_kohya(Path(folder.path.value)):
            draft.complete(f"{place}.layout", "plain", "the number in the folder's name is not read there")
        for key, given in folder.own.items():
            draft.convert(given.cited, f"{place}.{key}", given.value, given.difference)
        if granularities and not folder.own.get("regularisation"):
            shift = folder.offset.value if folder.offset else 0.0
            draft.complete(f"{place}.granularity", granularities[shift], f"offset {shift:g}")
    _write_shared(draft, folders)


def count_pictures(folders: Sequence[Folder]) -> int | None:
    """Pictures an epoch, repeats counted; None where a folder cannot be read from here."""
    total = 0
    for folder in folders:
        try:
            pictures = len(list_images(Path(folder.path.value)))
        except (DataError, OSError, ValueError):
            return None
        total += pictures * (folder.own["repeats"].value if "repeats" in folder.own else 1)
    return total


def _write_offsets(draft: Draft, folders: Sequence[Folder]) -> Mapping[float | int, Granularity]:
    """Granularity by shift; empty where all shifts are 0 or there are too many."""
    trained = [folder for folder in folders if "regularisation" not in folder.own]
    shifts = [folder.offset.value if folder.offset else 0.0 for folder in trained]
    if not any(shifts):
        return {}
    granularities = assign_granularities(shifts)
    for folder in folders:
        if folder.offset is None:
            continue
        if granularities is None:
            draft.unsupported(
                folder.offset.cited,
                f"{len(set(shifts))} offsets, a recipe has one for each of macro, meso and micro: merge some, "
                "then set the folders' granularity and time.granularity_shift",
            )
        elif folder in trained:
            draft.same(
                folder.offset.cited,
                f"time.granularity_shift.{granularities[folder.offset.value]}",
                folder.offset.difference,
            )
        else:
            draft.unsupported(folder.offset.cited, "regularisation counts as macro, without an offset of its own")
    for shift, granularity in (granularities or {}).items():
        draft.complete(f"time.granularity_shift.{granularity}", shift, "offset of the folders that count as this")
    return granularities or {}


def _write_shared(draft: Draft, folders: Sequence[Folder]) -> None:
    for key in dict.fromkeys(key for folder in folders for key in folder.shared):
        given = [folder.shared[key] for folder in folders if key in folder.shared]
        values = [item.value for item in given]
        if len(given) == len(folders) and all(value == values[0] for value in values):
            for item in given:
                draft.convert(item.cited, f"data.{key}", item.value, item.difference)
            continue
        for item in given:
            draft.unsupported(
                item.cited, f"the folders differ in it and a recipe has one data.{key}: choose it by hand"
            )


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for wanted in names:
        name, number = re.sub(r"[/\\]", "-", wanted) or "folder", 2
        while name in found:
            name, number = f"{wanted}-{number}", number + 1
        found.append(name)
    return found


def _looks_like_kohya(path: Path) -> bool:
    try:
        return bool(_KOHYA_NAME.fullmatch(path.name)) or any(
            _KOHYA_NAME.fullmatch(child.name) and child.is_dir() for child in path.iterdir()
        )
    except (OSError, ValueError):
        return False
