"""A low-rank adapter as a file that diffusers, kohya's tools or ComfyUI load, at the strength that it was trained at.

What stays exact is said by :mod:`flowgrain.export.updates`. A and B are written in the dtype asked for; alphas and
DoRA's row lengths stay float32, since half precision is coarser near 1 than what a run changes them by.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from torch import Tensor

from flowgrain.adapters.adapter_file import described, read_header
from flowgrain.adapters.fitting import LayerUpdates, fitting_updates
from flowgrain.adapters.lora import DORA_VARIANT
from flowgrain.adapters.source import AdapterSource, LayerUpdate, read_adapter, read_recorded
from flowgrain.errors import CheckpointError
from flowgrain.export.layout import KOHYA_KEYS, Format, Module, Target, peft_magnitude
from flowgrain.export.updates import Columns, added, folded, under_one_another
from flowgrain.export.weights_file import (
    COLUMNS_KEY,
    IMPLEMENTATION_KEY,
    about_the_adapter,
    rounded,
    write_weights,
)
from flowgrain.families.base import Family

_MERGED = "use --to merged"
_IMPLEMENTATIONS = {"flux": "https://github.com/black-forest-labs/flux"}
_STABILITY = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's names of the code whose layer names a file has; as kohya's trainers write them."""


@dataclass(frozen=True)
class ExportedModule:
    """An entry of the file."""

    module: Module
    update: LayerUpdate
    columns: dict[str, Columns]
    """The layers' parts in it."""


@dataclass(frozen=True)
class Exported:
    """An adapter in a program's layout, ready to be written."""

    format: Format
    entries: tuple[ExportedModule, ...]
    header: dict[str, str]
    layers: int
    """Layers of ours that the entries hold."""

    @property
    def notes(self) -> list[str]:
        """What a user should know of these files."""
        if self.format.target == "kohya" and any(entry.update.magnitude is not None for entry in self.entries):
            return [
                "dora_scale is read as it was trained by LyCORIS alone: diffusers leaves it out, ComfyUI divides by "
                "other row lengths; for these use --to diffusers or --to merged"
            ]
        return []


def convert(family: Family, adapter: Path, target: Format) -> Exported:
    """The adapter in ``adapter`` (a file) in a format of :func:`flowgrain.export.layout.file_format`.

    ``family`` may be a skeleton: no weight is read. Raises CheckpointError for an adapter that cannot be read, does
    not fit the model, or is more than the format holds.
    """
    source = read_adapter(adapter)
    _refuse_dora(source, target)
    updates = _with_fused(family, source)
    modules = {(module.component, layer): module for module in target.modules for layer in module.layers}
    unnamed = sorted(f"{component}.{layer}" for component, layer in updates.keys() - modules.keys())
    if unnamed:
        raise CheckpointError(
            f"{source.file}: {target.target} files have no name for {len(unnamed)} of its layers ({unnamed[0]}); "
            f"{_MERGED}"
        )
    touched = {modules[key].name: modules[key] for key in updates}
    entries = tuple(_entry(source.file, module, updates) for module in target.modules if module.name in touched)
    if target.keys.alpha is None:
        entries = tuple(ExportedModule(entry.module, folded(entry.update), entry.columns) for entry in entries)
    return Exported(target, entries, _header(family, source, target, entries), len(updates))


def write_exported(exported: Exported, path: Path, dtype: torch.dtype) -> None:
    """Write the file, A and B in ``dtype``; raises CheckpointError where a value is beyond its range."""
    write_weights(path, tensors_of(exported, dtype), exported.header)


def tensors_of(exported: Exported, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the file by their keys."""
    keys, tensors = exported.format.keys, {}
    for entry in exported.entries:
        name, update = entry.module.name, entry.update
        tensors[name + keys.down] = rounded(name + keys.down, update.down, dtype)
        tensors[name + keys.up] = rounded(name + keys.up, update.up, dtype)
        if keys.alpha is not None:
            tensors[name + keys.alpha] = torch.tensor(update.alpha, dtype=torch.float32)
        if keys.magnitude is not None and update.magnitude is not None:
            ending = keys.magnitude if exported.format.target == "kohya" else peft_magnitude(entry.module.is_text)
            tensors[name + ending] = _magnitude(exported.format.target, update.magnitude, update.down.ndim)
    return tensors


def summary(exported: Exported) -> list[str]:
    """One line for each kind of module: our layers, the module, how many, and their ranks."""
    groups: dict[tuple[str, str], list[ExportedModule]] = {}
    for entry in exported.entries:
        layers = " + ".join(f"{entry.module.component}.{layer}" for layer in entry.columns)
        groups.setdefault((_without_numbers(layers), _without_numbers(entry.module.name)), []).append(entry)
    lines = []
    for (layers, name), entries in groups.items():
        ranks = sorted({entry.update.rank for entry in entries})
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        lines.append(f"{len(entries):4d} x  {layers}  ->  {name}  (rank {rank})")
    return lines


def _refuse_dora(source: AdapterSource, target: Format) -> None:
    if source.kind != "dora":
        return
    if target.keys.magnitude is None:
        raise CheckpointError(f"{source.file}: is a DoRA; {target.why_no_dora}; {_MERGED}")
    if source.fused:
        raise CheckpointError(
            f"{source.file}: is a DoRA on top of {source.fused[-1].path}, which no adapter file holds; {_MERGED}"
        )


def _with_fused(family: Family, source: AdapterSource) -> LayerUpdates:
    """An adapter's updates and those of the adapters under it: sums of low rank as long as all are plain."""
    updates = fitting_updates(family, source)
    for entry in source.fused:
        under = read_recorded(entry)
        if under.kind == "dora":
            raise CheckpointError(f"{source.file}: was trained on top of the DoRA {entry.path}; {_MERGED}")
        for key, update in fitting_updates(family, under).items():
            updates[key] = added(updates[key], update) if key in updates else update
    return updates


def _entry(file: Path, module: Module, updates: LayerUpdates) -> ExportedModule:
    parts: list[LayerUpdate | None] = []
    for rows in module.rows:
        update = updates.get((module.component, rows.layer))
        parts.append(None if update is None else _rows_of(update, rows.start, rows.stop))
    present = [part for part in parts if part is not None]
    if any(part.magnitude is not None for part in present) and len(present) < len(parts):
        absent = [rows.layer for rows, part in zip(module.rows, parts, strict=True) if part is None]
        raise CheckpointError(
            f"{file}: is a DoRA without {', '.join(absent)}, whose row lengths {module.name} needs too; adapt these "
            f"layers as well, use --to diffusers, or {_MERGED}"
        )
    joined, columns = under_one_another(parts, [rows.stop - rows.start for rows in module.rows])
    own = {rows.layer: found for rows, found in zip(module.rows, columns, strict=True) if found is not None}
    return ExportedModule(module, joined, own)


def _rows_of(update: LayerUpdate, start: int, stop: int) -> LayerUpdate:
    if (start, stop) == (0, update.up.shape[0]):
        return update
    magnitude = None if update.magnitude is None else update.magnitude[start:stop]
    return LayerUpdate(update.down, update.up[start:stop], magnitude, update.alpha)


def _magnitude(target: Target, lengths: Tensor, dimensions: int) -> Tensor:
    """Row lengths as a file's readers shape them: LyCORIS (out, 1) or (out, 1, 1, 1), peft (out) or (1, out, 1, 1)."""
    if target == "kohya":
        return lengths.view(-1, *[1] * (dimensions - 1))
    return lengths.view(1, -1, 1, 1) if dimensions == 4 else lengths


def _header(
    family: Family, source: AdapterSource, target: Format, entries: tuple[ExportedModule, ...]
) -> dict[str, str]:
    header = about_the_adapter(read_header(source.file))
    if target.target == "diffusers":
        return {**header, LORA_ADAPTER_METADATA_KEY: json.dumps(_peft_settings(family, entries), sort_keys=True)}
    if IMPLEMENTATION_KEY in header and target.keys.down == KOHYA_KEYS.down:
        header[IMPLEMENTATION_KEY] = _IMPLEMENTATIONS.get(family.name, _STABILITY)
    joined = {
        entry.module.name: {layer: asdict(columns) for layer, columns in entry.columns.items()}
        for entry in entries
        if len(entry.module.layers) > 1
    }
    return {**header, **({COLUMNS_KEY: json.dumps(joined, sort_keys=True)} if joined else {})}


def _peft_settings(family: Family, entries: tuple[ExportedModule, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for component in family.components():
        own = {entry.module.rows[0].layer: entry.update for entry in entries if entry.module.component == component}
        if own:
            settings |= peft_settings(component, own)
    return settings


def peft_settings(component: str, updates: dict[str, LayerUpdate]) -> dict[str, Any]:
    """A component's part of diffusers' header: the ranks and alphas of its layers."""
    ranks = {layer: update.rank for layer, update in updates.items()}
    alphas = {layer: update.alpha for layer, update in updates.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = LoraConfig(
        r=int(rank),
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (peft only divides it by the rank)
        rank_pattern={f"^{re.escape(layer)}": value for layer, value in ranks.items() if value != rank},
        target_modules=sorted(updates),
        use_dora=any(update.magnitude is not None for update in updates.values()),
    )
    config.alpha_pattern = {f"^{re.escape(layer)}": value for layer, value in alphas.items() if value != alpha}
    return described(component, config)


def dora_entries(updates: LayerUpdates) -> dict[str, str]:
    """Header entries that say which variant of DoRA a file holds, none for a LoRA."""
    return DORA_VARIANT if any(update.magnitude is not None for update in updates.values()) else {}


def _without_numbers(name: str) -> str:
    stacks = r"(?:blocks|encoder[._]layers|transformer\.layers|resnets|attentions)[._]"
    return re.sub(f"({stacks})\\d+", r"\1*", name)
