"""From target names to the linear layers they mean."""

import difflib
from fnmatch import fnmatchcase

from torch import nn

from flowgrain.errors import ConfigError


def find_targets(component: nn.Module, targets: list[str]) -> dict[str, nn.Linear]:
    """Linear layers that ``targets`` name, by full name, in module order.

    A target is a full name (``transformer_blocks.0.attn.to_q``), a dotted suffix of names (``attn.to_q``) or a
    pattern of full names with ``*``. Raises ConfigError for a target that names no linear layer, with the nearest
    name there is.
    """
    linears = {name: module for name, module in component.named_modules() if isinstance(module, nn.Linear)}
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in linears if _means(target, name)}
        if not matches:
            raise ConfigError(f"adapter.targets: '{target}' names no linear layer; {_nearest(target, linears)}")
        chosen |= matches
    return {name: module for name, module in linears.items() if name in chosen}


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}") or ("*" in target and fnmatchcase(name, target))


def _nearest(target: str, linears: dict[str, nn.Linear]) -> str:
    patterns = sorted({_pattern(name) for name in linears})
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
