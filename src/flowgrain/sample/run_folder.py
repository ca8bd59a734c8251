"""What sampling reads of a run folder: its model and its complete checkpoints."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from flowgrain.adapters.base import FULL_NAME, WEIGHTS_NAME
from flowgrain.adapters.trained_path import trained_path
from flowgrain.errors import CheckpointError
from flowgrain.flow.variance_preserving import PredictionType


@dataclass(frozen=True)
class ModelChoice:
    """Which weights to load, and how."""

    path: str
    family: str | None
    dtype: str
    prediction: PredictionType | None = None
    """What it predicts where the run says so, None: as its scheduler says."""
    zero_terminal_snr: bool | None = None
    """The same of its last noise level."""
    config: str | None = None
    """What describes a single file, see model.config of recipes."""
    vae: str | None = None
    """Another autoencoder than the model's own, see model.vae of recipes."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    update: int
    budget_fractions: tuple[float, ...]
    """The multiples of N1 that it marks, none for one that only serves resuming or is the best."""
    budget_fraction: float | None
    """The multiple that it was chosen by, else the last that it marks."""

    @property
    def adapter(self) -> Path:
        """The folder that diffusers loads."""
        return self.path / "adapter"


def read_run(run: Path) -> tuple[str, ModelChoice]:
    """A run's name and model from its ``recipe.yaml``; raises CheckpointError when this is no run folder."""
    path = run / "recipe.yaml"
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = values["model"]
        given = {key: value for key, value in values.get("path", {}).items() if value != "model"}
        choice = ModelChoice(
            str(model["path"]),
            model["family"],
            str(model["dtype"]),
            config=model.get("config"),
            vae=model.get("vae"),
            **given,
        )
        return str(values["name"]), choice
    except FileNotFoundError:
        raise CheckpointError(f"{run}: no recipe.yaml here; give a folder written by 'flowgrain train'") from None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged ({reason}); restore it or use --model and --checkpoint") from None


def on_path_of(choice: ModelChoice, adapter: Path) -> ModelChoice:
    """A model chosen for an adapter of another run: it predicts what the adapter's header says, where it says so.

    Raises CheckpointError where the adapter cannot be read.
    """
    path = trained_path(adapter)
    return replace(choice, prediction=path.prediction, zero_terminal_snr=path.zero_terminal_snr)


def list_checkpoints(run: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first."""
    folders = [marker.parent for marker in (run / "checkpoints").glob("update-*/COMPLETE")]
    return sorted((open_checkpoint(folder) for folder in folders), key=lambda checkpoint: checkpoint.update)


def open_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint folder; raises CheckpointError when it is not there, unfinished or damaged."""
    if not (folder / "COMPLETE").exists():
        what = "unfinished checkpoint" if folder.is_dir() else "no such checkpoint folder"
        raise CheckpointError(f"{folder}: {what}; choose one with a COMPLETE file")
    if not any((folder / "adapter" / name).exists() for name in (WEIGHTS_NAME, FULL_NAME)):
        raise CheckpointError(f"{folder}: adapter/{WEIGHTS_NAME} is missing; choose another checkpoint")
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        mark = state["budget_fraction"]
        # flowgrain 0.1 wrote the last multiple alone
        marks = tuple(state.get("budget_fractions", [] if mark is None else [mark]))
        return Checkpoint(folder, int(state["update"]), marks, mark)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint state ({error}); choose another checkpoint") from None


def choose_checkpoint(run: Path, at: float | None) -> Checkpoint:
    """The last complete checkpoint, or the one at budget fraction ``at``; CheckpointError lists what there is.

    Of several with one fraction the last counts: a run that was made longer reaches its fractions anew.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise CheckpointError(f"{run}: no complete checkpoint yet; train first or wait for the first one")
    if at is None:
        return checkpoints[-1]
    for checkpoint in reversed(checkpoints):
        if any(math.isclose(mark, at, rel_tol=1e-9) for mark in checkpoint.budget_fractions):
            return replace(checkpoint, budget_fraction=at)
    marks = sorted({mark for checkpoint in checkpoints for mark in checkpoint.budget_fractions})
    there = ", ".join(f"{mark:g}" for mark in marks) or "none"
    raise CheckpointError(f"{run}: no checkpoint at budget fraction {at:g}; there are: {there}")


def best_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint of the lowest held-out loss; CheckpointError where the run names none."""
    path = run / "best.json"
    try:
        folder = run / str(json.loads(path.read_text(encoding="utf-8"))["checkpoint"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no best checkpoint; it is kept by runs with validation (and validation.keep_best) "
            "from the first measurement after update 0 on"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); choose a checkpoint folder") from None
    return open_checkpoint(folder)
