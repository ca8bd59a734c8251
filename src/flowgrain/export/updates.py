"""Arithmetic on low-rank updates: one under another, added, and apart again.

Programs that keep q, k and v in one weight want one update for it. Updates of rank r under one another are one of
rank 3r: its A holds theirs one under another, its B is block-diagonal. Where their A is the same, rank r does.

    [B1 A1]   [B1   ] [A1]              [B1 A]   [B1]
    [B2 A2] = [   B2] [A2]              [B2 A] = [B2] A

All of this is exact where the updates share alpha / rank; elsewhere B is multiplied by the quotient, in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.adapters.source import LayerUpdate


@dataclass(frozen=True)
class Columns:
    """A layer's part of a joined update: columns of its B, which are rows of its A."""

    first: int
    rank: int
    alpha: float
    """The layer's own."""


def scale_of(update: LayerUpdate) -> float:
    """s = alpha / rank."""
    return update.alpha / update.rank


def under_one_another(
    parts: Sequence[LayerUpdate | None], rows: Sequence[int]
) -> tuple[LayerUpdate, list[Columns | None]]:
    """The update of several layers' weights one under another, and each layer's columns in it.

    ``rows`` are the layers' output features; a layer without an update (None) gets zeros. All are linear, and all
    have row lengths (DoRA) or none has.
    """
    if len(parts) == 1 and parts[0] is not None:
        return parts[0], [Columns(0, parts[0].rank, parts[0].alpha)]
    present = [part for part in parts if part is not None]
    first = present[0]
    shared = all(part.rank == first.rank and torch.equal(part.down, first.down) for part in present)
    rank = first.rank if shared else sum(part.rank for part in present)
    up = torch.zeros(sum(rows), rank)
    columns: list[Columns | None] = []
    row, column = 0, 0
    for part, height in zip(parts, rows, strict=True):
        if part is None:
            columns.append(None)
        else:
            up[row : row + height, column : column + part.rank] = part.up * (scale_of(part) / scale_of(first))
            columns.append(Columns(column, part.rank, part.alpha))
            column += 0 if shared else part.rank
        row += height
    down = first.down if shared else torch.cat([part.down for part in present])
    lengths = [part.magnitude for part in present if part.magnitude is not None]
    return LayerUpdate(down, up, torch.cat(lengths) if lengths else None, first.alpha * rank / first.rank), columns


def added(first: LayerUpdate, second: LayerUpdate) -> LayerUpdate:
    """The sum of two plain (LoRA) updates of one layer, of the sum of their ranks."""
    rank = first.rank + second.rank
    up = torch.cat([first.up, second.up * (scale_of(second) / scale_of(first))], dim=1)
    return LayerUpdate(torch.cat([first.down, second.down]), up, None, first.alpha * rank / first.rank)


def folded(update: LayerUpdate) -> LayerUpdate:
    """The same update with s in B and alpha = rank, which is what readers take that know of no alpha.

    Exact where s is a power of two, else rounded to float32.
    """
    if update.alpha == update.rank:
        return update
    return LayerUpdate(update.down, update.up * scale_of(update), update.magnitude, float(update.rank))


def apart(
    down: Float[Tensor, "r n"],
    ups: dict[str, Float[Tensor, "out r"]],
    alpha: float,
    known: dict[str, Columns] | None = None,
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and alpha of each layer in a joined update; ``ups`` are the layers' rows of its B, in their order.

    ``known`` says which columns belong to which layer; it counts only where the other columns are zero. Without it
    equal blocks on the diagonal are taken apart, and anything else is left at the full rank, less the layers that are
    not changed at all.
    """
    if len(ups) == 1:
        return {layer: (down, up, alpha) for layer, up in ups.items()}
    rank = down.shape[0]
    if known is not None and _zero_elsewhere(ups, known):
        found: dict[str, tuple[Tensor, Tensor, float]] = {}
        for layer, part in known.items():
            take = slice(part.first, part.first + part.rank)
            found[layer] = (down[take], ups[layer][:, take] * ((alpha / rank) / (part.alpha / part.rank)), part.alpha)
        return found
    if rank % len(ups) == 0:
        width = rank // len(ups)
        blocks = {layer: Columns(index * width, width, alpha / len(ups)) for index, layer in enumerate(ups)}
        if _zero_elsewhere(ups, blocks):
            return apart(down, ups, alpha, blocks)
    changed = {layer: up for layer, up in ups.items() if up.any()} or ups
    return {layer: (down, up, alpha) for layer, up in changed.items()}


def untuckered(down: Float[Tensor, "r n 1 1"], mid: Float[Tensor, "r r k k"]) -> Float[Tensor, "r n k k"]:
    """The A of a convolution that a file keeps in two: a 1x1 one, then one over the places (LyCORIS' tucker)."""
    return torch.einsum("mrhw,rn->mnhw", mid, down.flatten(1))


def _zero_elsewhere(ups: dict[str, Tensor], columns: dict[str, Columns]) -> bool:
    """Whether every layer's B is zero outside its own columns, and that of a layer without columns altogether."""
    rank = next(iter(ups.values())).shape[1]
    ends = [(part.first, part.first + part.rank) for part in columns.values()]
    if not columns.keys() <= ups.keys() or any(first < 0 or not first < end <= rank for first, end in ends):
        return False
    for layer, up in ups.items():
        rest = up.clone()
        if layer in columns:
            part = columns[layer]
            rest[:, part.first : part.first + part.rank] = 0
        if rest.any():
            return False
    return True
