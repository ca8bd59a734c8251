"""``run.json``: what a run is and how it stands, for people and programs that do not load it."""

import json
import os
import socket
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from flowgrain import __version__
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_text
from flowgrain.train.schedule import Progress
from flowgrain.train.stage import Stage
from flowgrain.train.state import RUN_NAME

RunStatus = Literal["running", "interrupted", "finished", "non-finite", "collapsed"]

PACKAGES = ("torch", "diffusers", "transformers", "peft")


def versions() -> dict[str, str]:
    """Versions of what computes a run."""
    return {"flowgrain": __version__, **{name: version(name) for name in PACKAGES}}


def read_run_file(run: Path) -> dict[str, Any]:
    """``run.json`` of a run; raises CheckpointError where this is no run folder or the file is damaged."""
    path = run / RUN_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{run}: no {RUN_NAME} here; give a folder written by 'flowgrain train'") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); --resume writes it anew") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged (not a map); --resume writes it anew")
    return values


def start_date(run: Path) -> str:
    """When the run was begun, ISO 8601 in UTC: the first session's time, also after a resume."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if not (run / RUN_NAME).exists():
        return now
    try:
        return str(read_run_file(run).get("started", now))
    except CheckpointError:
        return now  # damaged: it is written anew, with the only date there is


def write_run_file(stage: Stage, status: RunStatus, progress: Progress, updates_per_epoch: int, date: str) -> None:
    """Write ``run.json`` of a run."""
    recipe = stage.recipe
    levels: dict[str, int] = {}
    for item in stage.dataset.slices:
        levels[item.level] = levels.get(item.level, 0) + 1
    values = {
        "name": recipe.name,
        "status": status,
        "started": date,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "progress": asdict(progress),
        "budget": recipe.budget.model_dump(),
        "device": str(stage.device),
        "processes": stage.runtime.world,
        "precision": stage.precision,
        "trainable_parameters": sum(p.numel() for _, p in stage.parameters()),
        "roots": len({item.root for item in stage.dataset.slices}),
        "slices_by_level": levels,
        "updates_per_epoch": updates_per_epoch,
        "data_fingerprint": stage.dataset.fingerprint,
        "recipe_identity": recipe.identity(),
        "versions": versions(),
    }
    atomic_write_text(recipe.output / RUN_NAME, json.dumps(values, indent=2) + "\n")
