"""From target names to the layers they mean: linear ones and two-dimensional convolutions."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from flowgrain.errors import ConfigError

ValueT = TypeVar("ValueT", int, float)
Layer = nn.Linear | nn.Conv2d
"""What an adapter can be put on."""


def is_spatial(layer: nn.Module) -> bool:
    """Whether a layer is a convolution larger than 1x1; a 1x1 one is a linear layer at every place."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def sides(layer: Layer) -> tuple[int, int]:
    """Rows and columns of a layer's weight as a matrix: output features, input features times kernel places."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features  # a quantised weight has another shape
    return layer.weight.shape[0], layer.weight[0].numel()


def adaptable_layers(component: nn.Module) -> dict[str, Layer]:
    """All layers of a component that an adapter can be put on, by full name, in module order."""
    return {name: module for name, module in component.named_modules() if isinstance(module, Layer)}


def find_targets(
    component: nn.Module, targets: list[str], exclude: list[str] | None = None, key: str = "adapter.targets"
) -> dict[str, Layer]:
    """Layers that ``targets`` name and ``exclude`` does not, by full name, in module order.

    An entry is a full name (``transformer_blocks.0.attn.to_q``), a dotted suffix of names (``attn.to_q``) or a
    pattern of full names with ``*``; ``key`` is the config's name. Raises ConfigError for a target that names no
    linear layer or convolution, with the nearest name there is, and for an exclusion that takes nothing out of the
    targets or leaves none.
    """
    layers = adaptable_layers(component)
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in layers if _means(target, name)}
        if not matches:
            raise ConfigError(f"{key}: '{target}' names no linear layer or convolution; {_nearest(target, layers)}")
        chosen |= matches
    excluded: set[str] = set()
    for entry in exclude or []:
        excluded |= _among(entry, chosen, "adapter.exclude")
    if excluded == chosen:
        raise ConfigError(
            f"adapter.exclude: takes out all {len(chosen)} layers of adapter.targets; leave some or name other targets"
        )
    return {name: module for name, module in layers.items() if name in chosen - excluded}


def values_by_layer(key: str, patterns: dict[str, ValueT], layers: Iterable[str]) -> dict[str, ValueT]:
    """The layers that ``patterns`` name (as in :func:`find_targets`) with their values; ``key`` is the config's name.

    Raises ConfigError for a pattern that names none of the layers, and for two that give one layer different values.
    """
    names, values, origins = set(layers), {}, {}
    for pattern, value in patterns.items():
        for name in sorted(_among(pattern, names, key)):
            if values.get(name, value) != value:
                raise ConfigError(
                    f"{key}: {name} gets {values[name]} from '{origins[name]}' and {value} from '{pattern}'; "
                    "let one pattern name it"
                )
            values[name], origins[name] = value, pattern
    return values


def also_matched(component: nn.Module, chosen: Iterable[str]) -> list[str]:
    """Modules outside ``chosen`` that peft would take for targets: it reads every name as a suffix too."""
    names = set(chosen)
    others = [name for name, _ in component.named_modules() if name not in names]
    suffixes = {name: {name[index + 1 :] for index, char in enumerate(name) if char == "."} for name in others}
    return sorted(name for name in others if suffixes[name] & names)


def _among(pattern: str, names: set[str], key: str) -> set[str]:
    matches = {name for name in names if _means(pattern, name)}
    if not matches:
        raise ConfigError(f"{key}: '{pattern}' names none of the adapter's layers; {_nearest(pattern, names)}")
    return matches


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or ("*" in target and fnmatchcase(name, target))


def _nearest(target: str, layers: Iterable[str]) -> str:
    patterns = sorted({_pattern(name) for name in layers})
    suffixes = sorted(
        {".".join(parts[start:]) for name in patterns for parts in [name.split(".")] for start in range(len(parts))}
    )
    close = difflib.get_close_matches(target, suffixes, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(patterns)}"


def _pattern(name: str) -> str:
    """A layer's name with the number of its block as ``*``: the first number, later ones belong to the layer."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return name if first is None else ".".join((*parts[:first], "*", *parts[first + 1 :]))
