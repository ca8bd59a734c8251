"""Held-out losses of a finished run's checkpoints, for runs that may not see the held-out pictures while they train."""

from pathlib import Path
from typing import Any

from flowgrain.sample.run_folder import list_checkpoints
from flowgrain.train.recipe import Recipe, ValidationConfig
from flowgrain.train.setup import prepare
from flowgrain.train.state import CheckpointInfo


def measured_afterwards(recipe: Recipe, held_out: Path, folder: Path) -> list[dict[str, Any]]:
    """Validation lines of the checkpoints at multiples of N1, as the run itself would have logged them.

    The weights are those of the adapter folder, the moving average, as in the validation of a run.
    """
    changed = {
        "data": recipe.data.model_copy(update={"holdout": None}),
        "validation": ValidationConfig(path=held_out, keep_best=False),
        "interference": None,
        "modulation": type(recipe.modulation)(),
    }
    session = prepare(recipe.model_copy(update=changed), lambda _what, _done, _total: None)
    if session.validator is None:
        raise RuntimeError("a recipe with validation.path measures nothing")
    session.adapter.train(False)
    lines = []
    for checkpoint in list_checkpoints(folder):
        if checkpoint.budget_fraction is None:
            continue
        session.adapter.load(checkpoint.adapter)
        progress = CheckpointInfo.read(checkpoint.path).progress
        values = session.validator.measure(session.autocast)
        lines.append({"slices": progress.slices, "budget_fraction": checkpoint.budget_fraction, **values})
    return lines
