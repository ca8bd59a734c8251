"""A few held-out slices at a few noise levels, fixed once: the loss of any state of the model for few forward passes.

Noise and posterior draws are those of validation (:mod:`flowgrain.train.validation`), so that the numbers are its own
on these slices and levels.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.data.records import Slice
from flowgrain.diagnose.opened import OpenedRun, Part
from flowgrain.families.base import Conditioning, ConditionInputs
from flowgrain.flow.paths import PathSample, grouped_mse
from flowgrain.geometry.regimes import prediction_distance
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.validation import NOISE_LEVELS

LEVELS = (2, 5, 8)
"""Places in validation's noise levels: t = .25, .55, .85."""
ROOTS = 8
"""Roots at most; of each one slice a level."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Slices of one shape at one noise level."""

    rows: tuple[int, ...]
    """Places among the probe's slices."""
    level: int
    """Place among the probe's levels."""
    sample: PathSample
    inputs: ConditionInputs
    conditioning: Conditioning | None
    """None where text encoders train: made anew at every state."""


class Probe:
    """Losses and predictions of the model's present state on fixed inputs."""

    def __init__(self, opened: OpenedRun):
        part = opened.held_out if opened.held_out is not None else opened.train
        self.held_out = opened.held_out is not None
        self._opened = opened
        self.slices = choose_probe(part.dataset.slices, opened.seed)
        self.levels = tuple(NOISE_LEVELS[place] for place in LEVELS)
        self.roots = tuple(part.dataset.slices[index].root for index in self.slices)
        self.granularity = tuple(GRANULARITIES[part.dataset.slices[index].granularity] for index in self.slices)
        self._groups = self._prepare(part)

    def rows_of(self, level: str | None) -> list[int]:
        """Places of the slices of a level, None: of all."""
        return [row for row, name in enumerate(self.granularity) if level is None or name == level]

    @property
    def named_levels(self) -> tuple[str, ...]:
        """The levels that have slices, coarse to fine."""
        return tuple(name for name in GRANULARITIES if name in self.granularity)

    def losses(self) -> Float[Tensor, "n t"]:
        """Unweighted squared error of each slice at each level."""
        return self.measure()[0]

    @torch.no_grad()
    def measure(self, keep: bool = False) -> tuple[Float[Tensor, "n t"], list[Tensor]]:
        """(:meth:`losses`, the predictions of each group of inputs on the CPU for :meth:`distances` where asked)."""
        found = torch.zeros(len(self.slices), len(self.levels), dtype=torch.float64)
        kept = []
        for group in self._groups:
            prediction = self._predict(group)
            found[list(group.rows), group.level] = grouped_mse(prediction, group.sample).double().cpu()
            if keep:
                kept.append(prediction.float().cpu())
        return found, kept

    def distances(self, adapted: Sequence[Tensor], prior: Sequence[Tensor]) -> Float[Tensor, "n t"]:
        """Mean squared difference of two states' predictions, by slice and level."""
        found = torch.zeros(len(self.slices), len(self.levels), dtype=torch.float64)
        for group, one, other in zip(self._groups, adapted, prior, strict=True):
            found[list(group.rows), group.level] = prediction_distance(one, other)
        return found

    def _predict(self, group: _Group) -> Tensor:
        opened = self._opened
        with opened.autocast():
            conditioning = group.conditioning or opened.family.condition(group.inputs)
            return opened.family.predict(group.sample.x_t, group.sample.times, conditioning).prediction

    def _prepare(self, part: Part) -> list[_Group]:
        by_bucket: dict[Any, list[int]] = defaultdict(list)
        for row, index in enumerate(self.slices):
            by_bucket[part.dataset.slices[index].bucket].append(row)
        size = self._opened.config.batch_size
        chunks = [rows[start : start + size] for rows in by_bucket.values() for start in range(0, len(rows), size)]
        return [group for rows in chunks for group in self._groups_of(part, rows)]

    @torch.no_grad()
    def _groups_of(self, part: Part, rows: Sequence[int]) -> list[_Group]:
        opened, indices = self._opened, [self.slices[row] for row in rows]
        names = [part.dataset.slices[index].slice_id for index in indices]
        x0 = torch.cat([self._clean(part, index) for index in indices]).to(opened.device)
        inputs = opened.inputs(part, indices)
        conditioning = None
        if not opened.recipe.trains_text:
            with opened.autocast():
                conditioning = opened.family.condition(inputs)
        groups = []
        for place, level in enumerate(LEVELS):
            noise = torch.stack([rng.normal(tuple(x0.shape[1:]), "validation", name, level, "noise") for name in names])
            t = torch.full((len(names),), NOISE_LEVELS[level], device=opened.device, dtype=torch.float64)
            sample = opened.path(x0, noise.to(opened.device), t)
            groups.append(_Group(tuple(rows), place, sample, inputs, conditioning))
        return groups

    def _clean(self, part: Part, index: int) -> Tensor:
        posterior = part.posteriors.get(index, False)
        name = part.dataset.slices[index].slice_id
        noise = rng.normal(tuple(posterior.mean.shape[1:]), "validation", name, "posterior")
        return self._opened.family.latents(posterior, noise[None]).float()


def choose_probe(slices: Sequence[Slice], seed: int) -> tuple[int, ...]:
    """One slice a level of up to ``ROOTS`` roots, those with the most levels first; drawn by identity."""
    best: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
    for index, item in enumerate(slices):
        draw = (rng.stable_seed(seed, item.slice_id, "probe slice"), index)
        best[item.root][item.granularity] = min(draw, best[item.root].get(item.granularity, draw))
    ordered = sorted(best, key=lambda root: (-len(best[root]), rng.stable_seed(seed, root, "probe root"), root))
    return tuple(index for root in ordered[:ROOTS] for _, (_, index) in sorted(best[root].items()))
