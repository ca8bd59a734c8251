"""An adapter as part of the base model: an ordinary diffusers folder that holds all of it, DoRA and whole weights too.

The sum is computed in float32 for each layer and rounded once, to the dtype that the model was loaded in. Parts that
the adapter leaves alone are copied byte for byte where the base model is a folder.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowgrain.adapters.adapter_file import read_header
from flowgrain.adapters.base import FULL_NAME
from flowgrain.adapters.fusing import fuse
from flowgrain.adapters.source import init_digest, read_adapter
from flowgrain.errors import CheckpointError, ModelError
from flowgrain.export.source import ExportSource
from flowgrain.export.weights_file import about_the_adapter, writing
from flowgrain.families.base import Family
from flowgrain.families.embedded import resolve_model
from flowgrain.families.loading import load_component, quiet_libraries
from flowgrain.files import atomic_directory, atomic_write_text

INDEX_NAME, SCHEDULER = "model_index.json", "scheduler"
RECORD_NAME = "flowgrain.json"
"""Says what was merged into which model."""
_ONE_FILE = "1000GB"
"""Shard size: ComfyUI loads a model from one file."""
_SPARE = 64 * 2**20


@dataclass(frozen=True)
class MergePlan:
    """What a merged model's folder will hold."""

    source: ExportSource
    components: tuple[str, ...]
    """Parts that the adapter changes, which are saved anew."""
    copied: tuple[Path, ...]
    """Folders and files of the base model that are copied."""
    saved: tuple[str, ...]
    """Other parts, saved from memory: the base model is no folder here."""
    scheduler: bool
    """Whether the scheduler is written anew: the adapter changes what the model predicts."""
    needed: int
    """Bytes."""
    component_only: bool


def plan_merge(skeleton: Family, source: ExportSource, dtype: torch.dtype, *, component_only: bool) -> MergePlan:
    """What to write, from the model's configuration alone; raises CheckpointError for an adapter of another model."""
    components = _changed(source)
    missing = [name for name in components if name not in skeleton.components()]
    if missing:
        raise CheckpointError(
            f"{source.adapter}: changes {', '.join(missing)}, which the model has not; give its own model as --model"
        )
    size = sum(_bytes(skeleton.components()[name], dtype) for name in components)
    folder = Path(resolve_model(source.model.path))
    copied: tuple[Path, ...] = ()
    saved: tuple[str, ...] = ()
    if component_only:
        pass
    elif (folder / INDEX_NAME).is_file():
        copied = tuple(_parts_to_copy(folder, components))
        size += sum(file.stat().st_size for path in copied for file in _files(path))
    else:
        parts = {**skeleton.components(), **skeleton.encoders()}
        saved = tuple(name for name in parts if name not in components)
        size += sum(_bytes(parts[name], dtype) for name in saved)
    model = source.model
    changed = bool(copied) and (model.prediction is not None or model.zero_terminal_snr is not None)
    if changed:
        copied = tuple(path for path in copied if path.name != SCHEDULER)
    return MergePlan(source, components, copied, saved, changed, size, component_only)


def check_space(plan: MergePlan, out: Path) -> None:
    """Raise CheckpointError where the disk of ``out`` is too full."""
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < plan.needed + _SPARE:
        raise CheckpointError(
            f"{out}: the merged model takes {plan.needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free; choose "
            "another disk, --dtype bfloat16, or --component-only"
        )


def merge(family: Family, plan: MergePlan, out: Path) -> None:
    """Merge the adapter into the weights of ``family`` and write the folder; a crash leaves no partial one.

    ``family`` is the source's model (:func:`flowgrain.sample.session.load_model`).
    Raises CheckpointError for an adapter that does not fit or a disk that fails, ModelError for weights that the
    dtype cannot hold.
    """
    changed = _merged_components(family, plan)
    for name, module in changed.items():
        _refuse_overflow(name, module)
    with writing(out), atomic_directory(out) as temporary, quiet_libraries():
        if plan.saved:
            pipeline = family.pipeline()
            pipeline.register_modules(**changed)
            pipeline.save_pretrained(temporary, max_shard_size=_ONE_FILE)
        for name in () if plan.saved else changed:
            changed[name].save_pretrained(temporary / name, max_shard_size=_ONE_FILE)
        for path in plan.copied:
            _copy(path, temporary / path.name)
        if plan.scheduler:
            _write_scheduler(family.pipeline().scheduler, temporary)
        atomic_write_text(temporary / RECORD_NAME, json.dumps(_record(plan), indent=2, sort_keys=True) + "\n")


def _changed(source: ExportSource) -> tuple[str, ...]:
    if source.whole:
        marker = source.adapter / FULL_NAME
        try:
            return tuple(json.loads(marker.read_text(encoding="utf-8"))["components"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{marker}: damaged ({error}); restore it") from None
    found = read_adapter(source.adapter)
    under = [read_adapter(Path(entry.path), entry.alpha) for entry in found.fused]
    return tuple(dict.fromkeys(name for adapter in (*under, found) for name in adapter.components))


def _merged_components(family: Family, plan: MergePlan) -> dict[str, Any]:
    own = family.components()
    if not plan.source.whole:
        fuse(family, plan.source.adapter)
        return {name: own[name] for name in plan.components}
    try:
        return {name: load_component(plan.source.adapter / name, own[name]) for name in plan.components}
    except ModelError as error:
        raise CheckpointError(str(error)) from None


def _parts_to_copy(folder: Path, components: tuple[str, ...]) -> list[Path]:
    """The index and the parts that it names, less those that are saved anew."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / INDEX_NAME}: cannot be read as JSON ({error}); restore the file") from None
    parts = [folder / name for name in index if name not in components and (folder / name).is_dir()]
    return [folder / INDEX_NAME, *parts]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _copy(path: Path, target: Path) -> None:
    if path.is_file():
        shutil.copyfile(path, target)
    else:
        shutil.copytree(path, target, copy_function=shutil.copyfile)


def _write_scheduler(scheduler: Any, folder: Path) -> None:
    """Save a scheduler and name its class in the index."""
    scheduler.save_pretrained(folder / SCHEDULER)
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    index[SCHEDULER] = ["diffusers", type(scheduler).__name__]
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) * dtype.itemsize


def _refuse_overflow(name: str, module: nn.Module) -> None:
    for key, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name}.{key}: holds a value that {str(parameter.dtype).removeprefix('torch.')} cannot; use --dtype "
                "float32 or bfloat16"
            )


def _record(plan: MergePlan) -> dict[str, Any]:
    source = plan.source
    if source.whole:
        about = json.loads((source.adapter / FULL_NAME).read_text(encoding="utf-8")).get("metadata", {})
    else:
        about = about_the_adapter(read_header(source.adapter))
    return {
        "base_model": source.model.path,
        "adapter": source.name,
        "adapter_sha256": init_digest(source.adapter),
        "components": list(plan.components),
        "metadata": about,
    }
