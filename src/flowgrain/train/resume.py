"""Going on with a run: find its last complete checkpoint, check that it belongs, load it bit for bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from flowgrain.data.tuples import plan_hash
from flowgrain.errors import CheckpointError
from flowgrain.files import remove_leftovers
from flowgrain.train.recipe import Recipe
from flowgrain.train.schedule import Ema, Progress
from flowgrain.train.stage import AnyRecipe, Stage
from flowgrain.train.state import (
    CHECKPOINTS,
    RECIPE_NAME,
    RUN_NAME,
    CheckpointInfo,
    complete_checkpoints,
    read_tensors,
)


def starting_point(recipe: AnyRecipe, resume: bool) -> Path | None:
    """The checkpoint to start from, None for the beginning; refuses to write over another run."""
    found = complete_checkpoints(recipe.output)
    if resume:
        return found[-1] if found else None
    if found or (recipe.output / RUN_NAME).exists():
        raise CheckpointError(
            f"{recipe.output} already holds a run: add --resume to go on with it, or choose another output"
        )
    return None


def clean(run: Path) -> None:
    """Delete the temporary files of killed processes; the run must be locked."""
    for folder in (run, run / CHECKPOINTS, run / "previews"):
        remove_leftovers(folder)


def restore(stage: Stage, folder: Path) -> Progress:
    """Load a checkpoint into a prepared stage after checking that it belongs to it."""
    info = CheckpointInfo.read(folder)
    recipe = stage.recipe
    plan = plan_hash(stage.plan(info.progress.epoch))
    mine = {"recipe": recipe.identity(), "data set": stage.dataset.fingerprint, "plan": plan}
    theirs = {"recipe": info.recipe_identity, "data set": info.data_fingerprint, "plan": info.plan_hash}
    different = [name for name in mine if mine[name] != theirs[name]]
    if different:
        details = _recipe_changes(recipe) if "recipe" in different else ""
        raise CheckpointError(
            f"{folder}: cannot resume, the {' and the '.join(different)} changed since it was saved{details}; "
            "restore what it was, or start a new run in another output folder"
        )
    if info.precision != stage.precision:
        raise CheckpointError(
            f"{folder}: was trained in {info.precision}, this device would use {stage.precision}; "
            f"set precision={info.precision} to go on"
        )
    tensors, optimizer = read_tensors(folder)
    stage.load(folder, tensors, optimizer)
    return replace(info.progress)


def _recipe_changes(recipe: AnyRecipe) -> str:
    """What differs from the recipe beside the checkpoint, in words; empty where that cannot be read."""
    try:
        saved = yaml.safe_load((recipe.output / RECIPE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    old, new = dict(_leaves(saved)), dict(_leaves(recipe.model_dump(mode="json")))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    aside = {"output", "name", "device", "save_every", "previews", "log"}
    aside |= set() if isinstance(recipe, Recipe) and recipe.modulation.measured else {"interference"}
    changed = [key for key in changed if key.split(".")[0] not in aside]
    shown = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed[:4])
    text = f" ({shown}{', ...' if len(changed) > 4 else ''})" if changed else ""
    if any(key.startswith("budget.") for key in changed) and recipe.schedule.kind != "constant":
        text += (
            f". A {recipe.schedule.kind} schedule runs over the whole budget, so its end cannot be moved; only a run "
            "with a constant schedule can be made longer"
        )
    return text


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


@torch.no_grad()
def load_parameters(parameters: list[tuple[str, nn.Parameter]], folder: Path, tensors: dict[str, Tensor]) -> None:
    """Take over saved parameters; raises CheckpointError where they are not those that train."""
    expected = {f"parameter.{name}" for name, _ in parameters}
    found = {name for name in tensors if name.startswith("parameter.")}
    if expected != found:
        sample = sorted(expected ^ found)[0]
        raise CheckpointError(f"{folder}: holds other parameters than this recipe trains (for example {sample})")
    for name, parameter in parameters:
        parameter.copy_(tensors[f"parameter.{name}"])


def load_averages(ema: Ema | None, tensors: dict[str, Tensor]) -> None:
    """Take over saved moving averages, where there are any."""
    if ema is not None:
        ema.load({name.removeprefix("ema."): value for name, value in tensors.items()})
