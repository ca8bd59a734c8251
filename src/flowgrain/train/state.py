"""Checkpoints: complete or not there.

A checkpoint is a folder ``checkpoints/update-000150`` with a ``COMPLETE`` marker. ``adapter/`` is what diffusers
loads (the moving average where there is one); ``trainable.safetensors``, ``optimizer.pt`` and ``state.json`` are
what a resumed run needs to go on bit for bit.
"""

import json
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_directory
from flowgrain.train.schedule import Progress

COMPLETE = "COMPLETE"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class CheckpointInfo:
    """The JSON part of a checkpoint."""

    progress: Progress
    budget_fraction: float | None
    """The multiple of N1 that this checkpoint marks, None for one that only serves resuming."""
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
            return CheckpointInfo(**{**values, "progress": Progress(**values["progress"])})
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
    save_adapter: Any,
) -> Path:
    """Write a checkpoint atomically; ``save_adapter(folder)`` fills its ``adapter`` folder."""
    path = checkpoint_path(run, info.progress.updates)
    with atomic_directory(path) as folder:
        save_adapter(folder / "adapter")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "trainable.safetensors")
        torch.save(optimizer, folder / "optimizer.pt")
        (folder / "state.json").write_text(info.to_json(), encoding="utf-8")
        (folder / COMPLETE).touch()
    return path


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


def prune_resume_points(run: Path, keep: Path) -> None:
    """Delete older checkpoints that mark no multiple of N1; they only served resuming."""
    for folder in complete_checkpoints(run):
        if folder != keep and CheckpointInfo.read(folder).budget_fraction is None:
            shutil.rmtree(folder)
