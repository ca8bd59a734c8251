"""The states of a run that are measured: the model without its adapter, and chosen checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowgrain.errors import CheckpointError
from flowgrain.sample.run_folder import Checkpoint, list_checkpoints
from flowgrain.train.objective import without_heads

TRAINABLE_NAME = "trainable.safetensors"
_PARAMETER = "parameter."


@dataclass(frozen=True)
class ModelPoint:
    """A state of the model."""

    update: int
    """Updates that it has seen; 0 without adapter."""
    checkpoint: Checkpoint | None
    """None: the model without adapter."""
    label: str = ""
    """A name of its own, where checkpoints of several runs are compared."""

    @property
    def name(self) -> str:
        """What figures and JSON call it."""
        if self.label:
            return self.label
        return "without adapter" if self.checkpoint is None else f"update {self.update}"


PRIOR = ModelPoint(0, None)
"""The model without adapter."""


def find_checkpoints(run: Path) -> tuple[Checkpoint, ...]:
    """All complete checkpoints of a run, oldest first; raises CheckpointError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"{run}: no recipe.yaml here; give a folder written by 'flowgrain train'")
    found = tuple(list_checkpoints(run))
    if not found:
        raise CheckpointError(
            f"{run}: no complete checkpoint; wait for the first one, or train with budget.checkpoints or save_every"
        )
    return found


def choose_points(
    checkpoints: Sequence[Checkpoint], updates: tuple[int, ...] | None, most: int
) -> tuple[ModelPoint, ...]:
    """The prior and the checkpoints after ``updates``; None: at most ``most``, evenly spaced, first and last included.

    Raises CheckpointError naming those that are there.
    """
    by_update = {checkpoint.update: checkpoint for checkpoint in checkpoints}
    if updates is not None:
        missing = [update for update in updates if update not in by_update]
        if missing:
            there = ", ".join(map(str, by_update))
            raise CheckpointError(f"no complete checkpoint after update {missing[0]}; there are: {there}")
        chosen = list(updates)
    else:
        chosen = _evenly(sorted(by_update), most)
    return (PRIOR, *(ModelPoint(update, by_update[update]) for update in chosen))


def _evenly(updates: list[int], most: int) -> list[int]:
    """The updates nearest to an even spacing, distinct, the last one always."""
    if len(updates) <= most:
        return updates
    if most == 1:
        return updates[-1:]
    places = {round(k * (len(updates) - 1) / (most - 1)) for k in range(most)}
    return [updates[place] for place in sorted(places)]


def has_trained(checkpoint: Checkpoint) -> bool:
    """Whether the parameters that the optimizer was at are still there, beside the moving average."""
    return (checkpoint.path / TRAINABLE_NAME).is_file()


def read_trained(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The parameters that the optimizer was at; raises CheckpointError where they were deleted or are damaged."""
    path = checkpoint.path / TRAINABLE_NAME
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: was deleted; only what pictures are drawn with (adapter/) is left") from None
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged ({reason}); choose another checkpoint") from None
    trained = {name.removeprefix(_PARAMETER): value for name, value in tensors.items() if name.startswith(_PARAMETER)}
    return without_heads(trained)
