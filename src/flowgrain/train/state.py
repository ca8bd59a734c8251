"""Checkpoints: complete or not there.

A checkpoint is a folder ``checkpoints/update-000150`` with a ``COMPLETE`` marker. ``adapter/`` (``vae/`` of an
autoencoder) is what diffusers loads (the moving average where there is one); ``trainable.safetensors``,
``optimizer.pt`` and ``state.json`` are what a resumed run needs to go on bit for bit.
"""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_directory, atomic_write_bytes, atomic_write_text, remove_directory
from flowgrain.train.schedule import Progress

RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"
COMPLETE = "COMPLETE"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class CheckpointInfo:
    """The JSON part of a checkpoint."""

    progress: Progress
    budget_fraction: float | None
    """The (last) multiple of N1 that this checkpoint marks, None for one that only serves resuming."""
    budget_fractions: tuple[float, ...]
    """All multiples that its update reached: more than one where a single update crosses several."""
    recipe_identity: str
    data_fingerprint: str
    plan_hash: str
    """Hash of the running epoch's plan."""
    precision: str

    def to_json(self) -> str:
        """Indented JSON, with the update number on top for readers."""
        return json.dumps({"update": self.progress.updates, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def read(folder: Path) -> "CheckpointInfo":
        """Read ``state.json`` of a checkpoint folder; raises CheckpointError when it is damaged."""
        path = folder / "state.json"
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            values.pop("update")
            mark = values["budget_fraction"]
            marks = values.get("budget_fractions", [] if mark is None else [mark])  # left out by flowgrain 0.1
            progress = Progress(**values["progress"])
            return CheckpointInfo(**{**values, "progress": progress, "budget_fractions": tuple(marks)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged checkpoint state ({error}); resume from an earlier one") from None


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders of a run, oldest first."""
    return sorted(marker.parent for marker in (run / CHECKPOINTS).glob(f"update-*/{COMPLETE}"))


def checkpoint_path(run: Path, update: int) -> Path:
    """Folder of the checkpoint after ``update`` updates."""
    return run / CHECKPOINTS / f"update-{update:06d}"


def write_checkpoint(
    run: Path,
    info: CheckpointInfo,
    tensors: dict[str, Tensor],
    optimizer: dict[str, Any],
    save_artefact: Callable[[Path], None],
) -> Path:
    """Write a checkpoint atomically; ``save_artefact(folder)`` adds what other programs load to its folder.

    Everything is written by Python: an OSError of a full disk then stays one, with the file's name.
    """
    path = checkpoint_path(run, info.progress.updates)
    with atomic_directory(path) as folder:
        save_artefact(folder)
        atomic_write_bytes(
            folder / "trainable.safetensors", serialize({name: value.contiguous() for name, value in tensors.items()})
        )
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        atomic_write_bytes(folder / "optimizer.pt", buffer.getvalue())
        atomic_write_text(folder / "state.json", info.to_json())
        atomic_write_bytes(folder / COMPLETE, b"")
    return path


def checkpoint_bytes(tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> int:
    """About what a checkpoint takes on disk: what other programs load, resumable tensors and optimizer state."""
    artefact = sum(value.nbytes for name, value in tensors.items() if name.startswith("parameter."))
    return artefact + sum(value.nbytes for value in tensors.values()) + _state_bytes(optimizer)


def _state_bytes(value: Any) -> int:
    """Bytes of all tensors in nested maps and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict | list | tuple):
        return sum(map(_state_bytes, value.values() if isinstance(value, dict) else value))
    return 0


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trainable tensors and optimizer state of a checkpoint; raises CheckpointError when a file is damaged."""
    try:
        tensors = load_file(folder / "trainable.safetensors")
        optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: damaged checkpoint ({reason}); delete it to resume from an earlier one"
        ) from None
    return tensors, optimizer


def prune_resume_points(run: Path, keep: set[int]) -> None:
    """Delete checkpoints that mark no multiple of N1, but for those after the updates in ``keep``.

    One whose state cannot be read is left alone: it may be a marked one.
    """
    kept = {checkpoint_path(run, update) for update in keep}
    for folder in complete_checkpoints(run):
        if folder in kept:
            continue
        try:
            marked = bool(CheckpointInfo.read(folder).budget_fractions)
        except CheckpointError:
            continue
        if not marked:
            remove_directory(folder)
