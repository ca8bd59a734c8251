"""The list of files that a data set was opened without."""

import json
from collections.abc import Sequence
from pathlib import Path

from flowgrain.files import atomic_write_text

Problem = tuple[Path, str]
"""A file left out and the reason."""

QUARANTINE_NAME = "quarantine.jsonl"


def write_quarantine(path: Path, problems: Sequence[Problem]) -> None:
    """Write one JSON object a line, ``{"file": ..., "reason": ...}``, atomically; an empty file where nothing is wrong.

    The files themselves are never touched. Raises OSError where ``path`` cannot be written.
    """
    lines = (json.dumps({"file": str(file), "reason": reason}, ensure_ascii=False) for file, reason in problems)
    atomic_write_text(path, "".join(f"{line}\n" for line in lines))


def describe_problems(problems: Sequence[Problem], shown: int = 3) -> str:
    """The first problems in one line, by file name."""
    return "; ".join(f"{file.name}: {reason}" for file, reason in problems[:shown])
