"""``diagnose.json``: what was measured of a run, section by section, so that a stopped diagnosis goes on.

A section's digest knows its settings, the recipe and the measured checkpoints; where it differs the section is measured
again. The page is made from this file alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.points import ModelPoint
from flowgrain.errors import ConfigError
from flowgrain.files import atomic_write_text

JSON_NAME, PAGE_NAME = "diagnose.json", "diagnose.html"
FORMAT = 1
"""Raised whenever the same run would give other numbers, or numbers of another form."""
_ASIDE = {"memory_mib", "batch_size", "checkpoints", "max_checkpoints"}
"""Settings that change nothing, or that the digest knows by the checkpoints that they chose."""


@dataclass(frozen=True)
class Record:
    """One section of the file: its values, or why there are none."""

    digest: str
    seconds: float
    values: dict[str, Any] | None
    reason: str | None
    """Why the run cannot answer, None where it did."""

    def as_json(self) -> dict[str, Any]:
        """The file's entry."""
        return {"digest": self.digest, "seconds": round(self.seconds, 2), "values": self.values, "reason": self.reason}


def section_digest(
    name: str, config: DiagnoseConfig, run: Path, points: Sequence[ModelPoint], overrides: Sequence[str], log: bool
) -> str:
    """What decides a section's numbers; ``log`` where it reads the log of the run, which grows."""
    settings = config.model_dump(mode="json", exclude=_ASIDE)
    parts: list[Any] = [FORMAT, name, settings, sorted(overrides)]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16)
    digest.update((run / "recipe.yaml").read_bytes())
    for point in points:
        if point.checkpoint is not None:
            digest.update(point.checkpoint.path.name.encode())
            digest.update((point.checkpoint.path / "state.json").read_bytes())
    metrics = run / "metrics.jsonl"
    if log and metrics.exists():
        digest.update(str(metrics.stat().st_size).encode())
    return digest.hexdigest()


def read_document(out: Path) -> dict[str, Any] | None:
    """The file's contents, None where there is none; raises ConfigError where it is damaged or of another version."""
    path = out / JSON_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        written = document["format"]
        if missing := sorted({"sections", "run", "config"} - document.keys()):
            raise ValueError(f"it has no {missing[0]}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a readable diagnosis ({error}); add --fresh to measure anew") from None
    if written != FORMAT:
        raise ConfigError(f"{path}: written in format {written}, this version reads {FORMAT}; add --fresh")
    return document


def write_document(out: Path, document: dict[str, Any]) -> None:
    """Write the file, whole or not at all; numbers that are no JSON are an error of the section that made them."""
    atomic_write_text(out / JSON_NAME, json.dumps(document, indent=1, allow_nan=False) + "\n")
