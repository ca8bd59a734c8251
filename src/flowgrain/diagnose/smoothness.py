"""How smooth the target field of the run's own data is, against the number of slices, and of whole pictures alone.

Semantic Granularity Alignment, E.6.3, expects that more data "tends to reduce the Lipschitz constant" of the target
field. That is not a theorem (:mod:`flowgrain.geometry.smoothness`); here it is measured on the run's latents: the
operator norm of the exact Jacobian of the empirical field, at points made of pictures that are not among the data, for
1, 2, 4, ... latents, each several times with other latents and other noise. It says nothing about the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from flowgrain import rng
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.field_queries import default_levels
from flowgrain.diagnose.intervals import plain
from flowgrain.diagnose.latents import LatentReader, LatentSpace
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.diagnose.sections import NotMeasurable
from flowgrain.geometry.smoothness import smoothness_by_count
from flowgrain.granularity import GRANULARITIES

POINTS = 8
"""Points of a draw at a noise level."""
DRAWS = 8
"""Draws of latents, points and noise: intervals are over them."""
LARGEST = 1024
"""Latents at most."""
LEVELS = 4
WHOLE, ALL = "whole pictures", "all slices"


@dataclass(frozen=True)
class SmoothnessResult:
    """Already plain numbers."""

    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return self.values


@dataclass(frozen=True, eq=False)
class _Pool:
    """Latents of one kind and the points' pictures, of one shape."""

    data: Float[Tensor, "n d"]
    roots: tuple[str, ...]


def measure_smoothness(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> SmoothnessResult:
    """Over the largest space of latents; macro slices count as whole pictures where there are other levels too.

    Cost: ``DRAWS`` times the noise levels times at most 100 products of ``POINTS`` x ``LARGEST`` x d. Raises
    NotMeasurable for fewer than 4 roots of one size.
    """
    space = opened.spaces[0]
    slices = opened.train.dataset.slices
    pool, points, source = _pools(opened, space)
    coarse = min(slices[index].granularity for index in space.index)
    finer = any(slices[index].granularity != coarse for index in space.index)
    kinds = {ALL: list(range(len(pool.data)))}
    if finer:
        rows = _rows(opened, space)
        kinds[WHOLE] = [at for at, row in enumerate(rows) if slices[space.index[row]].granularity == coarse]
    levels = _spread(config.levels or default_levels(opened.path))
    curves: dict[str, list[dict[str, Any]]] = {}
    total, done = len(kinds) * len(levels), 0
    for name, members in kinds.items():
        curves[name] = []
        for level in levels:
            progress("smoothness", done, total)
            curves[name].append({"t": level, "counts": _curve(opened, pool, members, points, level)})
            done += 1
    progress("smoothness", done, total)
    return SmoothnessResult(
        plain(
            {
                "shape": list(space.shape),
                "points": min(POINTS, len(points.data)),
                "points_from": source,
                "draws": DRAWS,
                "identity_norm": [{"t": level, "norm": _identity(opened, level)} for level in levels],
                "curves": curves,
            }
        )
    )


def _rows(opened: OpenedRun, space: LatentSpace) -> list[int]:
    """Rows of the space that are not mirror images, as many of each level as memory allows, drawn by identity.

    At most ``LARGEST``, and half of ``config.memory_mib`` for all.
    """
    slices = opened.train.dataset.slices
    each = 4 * math.prod(space.shape) * len(GRANULARITIES)
    most = min(LARGEST, max(16, opened.config.memory_mib * 2**20 // 2 // each))
    own = [row for row, mirrored in enumerate(space.mirrored) if not mirrored]
    own.sort(key=lambda row: (rng.stable_seed(opened.seed, slices[space.index[row]].slice_id, "smoothness"), row))
    kept: list[int] = []
    for level in sorted({slices[space.index[row]].granularity for row in own}):
        kept += [row for row in own if slices[space.index[row]].granularity == level][:most]
    return kept


def _pools(opened: OpenedRun, space: LatentSpace) -> tuple[_Pool, _Pool, str]:
    """(training latents, latents that points are made of, where the second come from)."""
    slices = opened.train.dataset.slices
    rows = _rows(opened, space)
    data = _Pool(
        torch.cat([space.latents.read(row, row + 1) for row in rows]).flatten(1),
        tuple(slices[space.index[row]].root for row in rows),
    )
    if len(set(data.roots)) < 4:
        raise NotMeasurable(f"{len(set(data.roots))} roots have slices of one size: at least 4 are needed")
    coarse = min(slices[index].granularity for index in space.index)
    held = _held_out(opened, space.shape, coarse)
    if held is not None:
        return data, held, "held-out whole pictures"
    places = [at for at, row in enumerate(rows) if slices[space.index[row]].granularity == coarse]
    return data, _Pool(data.data[places], tuple(data.roots[at] for at in places)), "training pictures left out"


def _held_out(opened: OpenedRun, shape: tuple[int, ...], coarse: int) -> _Pool | None:
    """Held-out latents of the coarsest level and of this shape; None where there are fewer than ``POINTS``."""
    part = opened.held_out
    if part is None:
        return None
    reader = LatentReader(part.dataset, part.posteriors, opened.family, opened.seed, 0)
    found: list[Tensor] = []
    roots: list[str] = []
    scale = opened.family.capabilities.latent_scale
    for index, item in enumerate(part.dataset.slices):
        cells = (item.bucket[1] // scale, item.bucket[0] // scale)
        if item.granularity == coarse and cells == tuple(shape[1:]):
            found.append(reader.latent(index, False).flatten()[None])
            roots.append(item.root)
    return _Pool(torch.cat(found), tuple(roots)) if len(found) >= POINTS else None


def _curve(opened: OpenedRun, pool: _Pool, members: Sequence[int], points: _Pool, level: float) -> list[dict[str, Any]]:
    """Norms for 1, 2, 4, ... latents and all, means over the draws."""
    norms: dict[int, list[float]] = {}
    near: dict[int, list[float]] = {}
    for draw in range(DRAWS):
        chosen = rng.numpy_generator(opened.seed, draw, "smoothness points").permutation(len(points.data))[:POINTS]
        asked = {points.roots[place] for place in chosen}
        # a point's own picture among the data would be its nearest neighbour by far
        kept = [at for at in members if pool.roots[at] not in asked]
        counts = _counts(min(len(kept), LARGEST))
        generator = rng.generator(opened.seed, draw, f"{level:g}", "smoothness draw")
        found = smoothness_by_count(pool.data[kept], points.data[chosen], opened.path, level, counts, generator)
        for count, value, neighbours in zip(counts, found.norms, found.neighbours, strict=True):
            norms.setdefault(count, []).append(value.log().mean().exp().item())
            near.setdefault(count, []).append(neighbours.mean().item())
    return [
        {"count": count, **_ends(norms[count]), "neighbours": float(np.mean(near[count]))}
        for count in sorted(norms)
        if len(norms[count]) == DRAWS
    ]


def _counts(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _ends(values: Sequence[float]) -> dict[str, float]:
    """Mean and t interval over independent draws of the logarithm: norms are positive and spread by factors."""
    logs = np.log(np.maximum(values, 1e-300))
    half = float(student.ppf(0.975, len(logs) - 1)) * logs.std(ddof=1) / math.sqrt(len(logs))
    mean = float(logs.mean())
    return {"mean": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def _identity(opened: OpenedRun, level: float) -> float:
    """|sigma' / sigma|: the norm of the field of a single point, the least that few data give."""
    c = opened.path.coefficients(torch.tensor([level], dtype=torch.float64))
    return abs((c.d_sigma / c.sigma).item())


def _spread(levels: Sequence[float]) -> list[float]:
    places = {round(k * (len(levels) - 1) / (LEVELS - 1)) for k in range(LEVELS)}
    return [levels[place] for place in sorted(places)]
