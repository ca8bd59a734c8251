"""What a finished data set remembers of itself: its settings, its chunks, and rejects that belong to no image."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowgrain.data.collections.base import by_stem
from flowgrain.data.records import REJECTS_NAME
from flowgrain.errors import DataError
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.store import DATASET_NAME, STATE
from flowgrain.slices.work import UNLISTED


def read_about(folder: Path) -> tuple[dict[str, Any], DecomposeConfig]:
    """``dataset.json`` and the configuration in it. Raises :class:`DataError` where it is none."""
    path = folder / DATASET_NAME
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return about, DecomposeConfig.model_validate(about["config"])
    except OSError:
        raise DataError(f"{folder}: no finished data set of decompose here ({DATASET_NAME} is missing)") from None
    except (ValueError, KeyError, TypeError, ValidationError):
        raise DataError(f"{path}: damaged, or of another version; run decompose again") from None


def is_data_set(folder: Path) -> bool:
    """Whether a folder holds a finished data set of decompose."""
    return (folder / DATASET_NAME).is_file() and (folder / STATE).is_dir()


def finished_chunks(folder: Path) -> list[str]:
    """The chunks of a data set that have records, in the order of their images."""
    found = []
    for path in (folder / STATE / "chunks").glob("*.jsonl"):
        with path.open("rb") as stream:
            line = stream.readline()
        try:
            name = str(json.loads(line)["name"]) if line.strip() else ""
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: damaged, or of another version; decompose into a new folder") from None
        found.append((by_stem(name), path.stem))
    return [chunk for _, chunk in sorted(found)]


def unlisted(folder: Path) -> Iterator[RejectRecord]:
    """Rejects of what is no image, such as members after the damage of a tar: they stand in the rejects alone."""
    mark = f'"code":"{UNLISTED}"'.encode()
    path = folder / REJECTS_NAME
    if path.is_file():
        with path.open("rb") as stream:
            yield from (RejectRecord.model_validate_json(line) for line in stream if mark in line)
