"""An adapter file of kohya's tools, ComfyUI, diffusers and their like as an adapter of ours.

Every tensor is accounted for: what has no place in the model is an error that lists it, unless it may be ignored.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from torch import Tensor

from flowgrain.adapters.adapter_file import read_header, write_adapter_file
from flowgrain.adapters.base import some
from flowgrain.adapters.fitting import LayerUpdates, fitting_updates
from flowgrain.adapters.source import LayerUpdate, init_digest, read_adapter
from flowgrain.adapters.targets import adaptable_layers
from flowgrain.errors import CheckpointError
from flowgrain.export.adapter_export import dora_entries, peft_settings
from flowgrain.export.layout import Module, components_of, names_on_import, peft_magnitude
from flowgrain.export.updates import Columns, apart, untuckered
from flowgrain.export.weights_file import (
    COLUMNS_KEY,
    IMPLEMENTATION_KEY,
    WeightsFile,
    about_the_adapter,
    read_weights,
    writing,
)
from flowgrain.families.base import Family
from flowgrain.files import atomic_directory, atomic_write_text

IMPORTED_NAME = "imported.json"
"""Marks a folder of :func:`write_adapter`."""
_ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_magnitude_vector.weight": "lengths",
    ".lora_magnitude_vector": "lengths",
}
_OTHER_KINDS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".diff": "whole differences",
    ".w_norm": "norms",
    ".glora": "GLoRA",
}


@dataclass(frozen=True)
class Imported:
    """An adapter file in our terms."""

    file: str
    """Its name."""
    sha256: str
    updates: LayerUpdates
    header: dict[str, str]
    ignored: tuple[str, ...]
    """Tensors that were left out."""


def read_any(family: Family, path: Path, alpha: float | None = None, *, ignore_unknown: bool = False) -> Imported:
    """Read an adapter file of any known program for the model ``family``, which may be a skeleton.

    ``alpha`` is for layers whose alpha the file does not say. Raises CheckpointError for a file that cannot be read,
    does not fit the model, leaves alpha open, or holds something else than LoRA, LoCon and DoRA by output rows.
    """
    if LORA_ADAPTER_METADATA_KEY in read_header(path):
        source = read_adapter(path, alpha)
        if source.fused:
            raise CheckpointError(f"{path}: is an adapter of flowgrain on top of others; export it, or use it as it is")
        updates, header = fitting_updates(family, source), about_the_adapter(read_header(path))
        return Imported(path.name, source.sha256, updates, header, ())
    file = read_weights(path)
    names = names_on_import(family)
    modules, unknown = _by_module(file, names)
    if unknown and not ignore_unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} of {len(file.tensors)} tensors have no place in this model ({some(unknown)})"
            f"{_other_kind(unknown)}; give the model that the file belongs to, or leave them out with --ignore-unknown"
        )
    if not modules:
        raise CheckpointError(f"{path}: holds no LoRA, LoCon or DoRA of this model{_other_kind(unknown)}")
    columns, shapes = _columns(file), _shapes(family)
    updates: LayerUpdates = {}
    for name, parts in modules.items():
        module = names[name]
        for layer, update in _layers(path, name, module, parts, alpha, columns.get(name), shapes[module.component]):
            if (module.component, layer) in updates:
                raise CheckpointError(f"{path}: holds {module.component}.{layer} twice, once as {name}; remove one")
            updates[module.component, layer] = update
    _refuse_mixture(path, updates)
    return Imported(path.name, init_digest(path), updates, about_the_adapter(file.header), tuple(sorted(unknown)))


def write_adapter(family: Family, imported: Imported, folder: Path) -> None:
    """Write a checkpoint folder that ``adapter.init_from.path`` and ``flowgrain sample --checkpoint`` take.

    Its ``adapter`` folder is what diffusers loads. Tensors are float32.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for component in components_of(family):
        own = {layer: update for (name, layer), update in imported.updates.items() if name == component.name}
        for layer, update in own.items():
            prefix = f"{component.file_prefix}{layer}"
            tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = update.down, update.up
            if update.magnitude is not None:
                spatial = update.down.ndim == 4
                lengths = update.magnitude.view(1, -1, 1, 1) if spatial else update.magnitude
                tensors[prefix + peft_magnitude(component.is_text)] = lengths
        settings |= peft_settings(component.name, own) if own else {}
    header = {**imported.header, **dora_entries(imported.updates)}
    if IMPLEMENTATION_KEY in header:
        header[IMPLEMENTATION_KEY] = "diffusers"
    with writing(folder), atomic_directory(folder) as temporary:
        write_adapter_file(temporary / "adapter", {k: t.contiguous() for k, t in tensors.items()}, settings, (), header)
        record = {"file": imported.file, "sha256": imported.sha256, "left_out": list(imported.ignored)}
        atomic_write_text(temporary / IMPORTED_NAME, json.dumps(record, indent=2) + "\n")
        state = {"update": 0, "budget_fraction": None, "budget_fractions": []}
        atomic_write_text(temporary / "state.json", json.dumps(state) + "\n")
        atomic_write_text(temporary / "COMPLETE", "")


def _shapes(family: Family) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component -> layer -> shape of its weight."""
    return {
        component: {name: tuple(layer.weight.shape) for name, layer in adaptable_layers(module).items()}
        for component, module in family.components().items()
    }


def _by_module(file: WeightsFile, names: dict[str, Module]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Tensors by module and part, and the keys that are of no known module or part."""
    modules: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in file.tensors.items():
        ending = next((end for end in _ENDINGS if key.endswith(end) and key.removesuffix(end) in names), None)
        if ending is None:
            unknown.append(key)
        else:
            modules.setdefault(key.removesuffix(ending), {})[_ENDINGS[ending]] = tensor
    return modules, unknown


def _layers(
    path: Path,
    name: str,
    module: Module,
    parts: dict[str, Tensor],
    given: float | None,
    known: dict[str, Columns] | None,
    shapes: dict[str, tuple[int, ...]],
) -> Iterator[tuple[str, LayerUpdate]]:
    """The updates of the layers that a module holds."""
    if "down" not in parts or "up" not in parts:
        raise CheckpointError(f"{path}: {name} has {', '.join(sorted(parts))} alone, not both of its matrices")
    down, up = parts["down"].float(), parts["up"].float().flatten(1)
    if "mid" in parts:
        down = untuckered(down, parts["mid"].float())
    height = sum(rows.stop - rows.start for rows in module.rows)
    width = math.prod(shapes[module.layers[0]][1:])
    if down.flatten(1).shape != (up.shape[1], width) or up.shape[0] != height:
        raise CheckpointError(
            f"{path}: {name} is {up.shape[0]} x {down[0].numel()} of rank {down.shape[0]}, the model's weight is "
            f"{height} x {width}; give the model that the file belongs to"
        )
    alpha = _alpha(path, name, parts, given, down.shape[0])
    ups = _by_layer(module, up)
    magnitude = _lengths(path, name, parts, height)
    lengths = {} if magnitude is None else _by_layer(module, magnitude)
    for layer, (own_down, own_up, own_alpha) in apart(down.flatten(1), ups, alpha, known).items():
        shape, rank = shapes[layer], own_down.shape[0]
        matrices = own_down.reshape(rank, *shape[1:]), own_up.reshape(shape[0], rank, *[1] * (len(shape) - 2))
        yield layer, LayerUpdate(*matrices, lengths.get(layer), own_alpha)


def _by_layer(module: Module, rows: Tensor) -> dict[str, Tensor]:
    """A module's rows, each layer's together and in its own order."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    first = 0
    for part in module.rows:
        height = part.stop - part.start
        pieces.setdefault(part.layer, []).append((part.start, rows[first : first + height]))
        first += height
    return {
        layer: torch.cat([piece for _, piece in sorted(found, key=lambda piece: piece[0])])
        for layer, found in pieces.items()
    }


def _alpha(path: Path, name: str, parts: dict[str, Tensor], given: float | None, rank: int) -> float:
    if "alpha" in parts:
        # the shortest decimal that the file's number is the nearest to: 0.1, not 0.10000000149
        alpha = float(str(np.float32(parts["alpha"].float().item())))
    elif given is not None:
        alpha = given
    else:
        raise CheckpointError(
            f"{path}: does not say the alpha of {name}; some programs then take alpha = rank ({rank}), others the "
            "trainer's setting: give the value that it was trained with as --alpha"
        )
    if not (math.isfinite(alpha) and alpha > 0):
        raise CheckpointError(f"{path}: alpha of {name} is {alpha:g}, it must be positive; restore the file")
    return alpha


def _lengths(path: Path, name: str, parts: dict[str, Tensor], height: int) -> Tensor | None:
    """DoRA's lengths by output rows; LyCORIS can train them by input columns, which the arithmetic here has not.

    LyCORIS shapes rows (out, 1) and columns (1, in), so that a square weight leaves no doubt; peft's are all rows.
    """
    lengths = parts.get("lengths", parts.get("dora_scale"))
    if lengths is None:
        return None
    by_rows = "lengths" in parts or lengths.ndim == 1 or lengths.shape[0] == height
    if lengths.numel() != height or not by_rows:
        raise CheckpointError(
            f"{path}: dora_scale of {name} has shape {tuple(lengths.shape)}, not one length for each of {height} "
            "output rows, the only DoRA here; merge it with the program that trained it and train on the result"
        )
    return lengths.float().flatten()


def _columns(file: WeightsFile) -> dict[str, dict[str, Columns]]:
    """What the header of an exported file says of joined modules."""
    try:
        found: dict[str, Any] = json.loads(file.header.get(COLUMNS_KEY, "{}"))
        return {name: {layer: Columns(**part) for layer, part in parts.items()} for name, parts in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file.path}: its header's {COLUMNS_KEY} is damaged ({error}); restore the file"
        ) from None


def _refuse_mixture(path: Path, updates: LayerUpdates) -> None:
    with_lengths = [update.magnitude is not None for update in updates.values()]
    if any(with_lengths) and not all(with_lengths):
        plain = [f"{c}.{layer}" for (c, layer), update in updates.items() if update.magnitude is None]
        raise CheckpointError(
            f"{path}: {len(plain)} of {len(updates)} layers have no dora_scale ({some(plain)}); an adapter here is "
            "LoRA or DoRA as a whole"
        )


def _other_kind(unknown: list[str]) -> str:
    kinds = {kind for key in unknown for part, kind in _OTHER_KINDS.items() if part in key}
    return f": {', '.join(sorted(kinds))}, which are no LoRA" if kinds else ""
