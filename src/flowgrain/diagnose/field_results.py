"""From the records of query points to the numbers of the page: means with intervals by partition, state and level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.field_records import EMPTY, OWN, PERFECT, Concentration, Records, State
from flowgrain.diagnose.groupings import Grouping, Groupings
from flowgrain.diagnose.intervals import interval, plain
from flowgrain.diagnose.opened import OpenedRun
from flowgrain.diagnose.points import PRIOR
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.geometry.interference import (
    off_diagonal_weight,
    pair_terms,
    quadratic_form,
    residual_cosines,
    split,
)
from flowgrain.geometry.partitions import separation


@dataclass(frozen=True)
class InterferenceResult:
    """Everything about the interference of the data fields, as plain JSON."""

    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """See docs/diagnose.md for the fields."""
        return self.values


@dataclass(frozen=True, eq=False)
class _State:
    """Values of one state at all query points of a partition."""

    terms: Tensor
    cosines: Tensor
    """NaN where a group is not in the point's space."""
    mean_cosine: Tensor
    """Over the pairs of different groups that are there."""
    independent: Tensor
    correlation: Tensor
    loss: Tensor
    identity_error: float


def summarise(
    opened: OpenedRun,
    config: DiagnoseConfig,
    groupings: Groupings,
    records: dict[str, Records],
    levels: Sequence[float],
    counts: Sequence[int],
    near: Concentration,
    marginals: float,
) -> InterferenceResult:
    """The JSON of the section."""
    states = {name: _states(kept) for name, kept in records.items() if kept.t}
    shown = [*groupings.found, *list(groupings.controls.values())[:1]]
    measured = [_grouping(opened, config, grouping, groupings, records, states, levels) for grouping in shown]
    # of a perfect fit both sides are rounding, and nothing can be said relative to them
    errors = [found.identity_error for own in states.values() for state, found in own.items() if state[0] != PERFECT]
    spaces = opened.spaces
    values = {
        "quantity": predicted_quantity(opened),
        "levels": list(levels),
        "points": [point.name for point in opened.points],
        "updates": [point.update for point in opened.points],
        "perfect": PERFECT,
        "slices": len(opened.train.dataset),
        "slices_in_run": opened.slices_in_run,
        "latents": sum(map(len, spaces)),
        "mirrored": opened.train.dataset.config.flip,
        "shapes": [
            {"shape": list(space.shape), "latents": len(space), "queries": count}
            for space, count in zip(spaces, counts, strict=True)
        ],
        "queries": sum(counts),
        "pictures": max((len(set(kept.pictures)) for kept in records.values()), default=0),
        "caption_dropout": opened.recipe.data.caption_dropout,
        "nearest": near.nearest,
        "concentration": near.rows(),
        "checks": {"identity": max(errors, default=None), "marginal": marginals},
        "groupings": measured,
        "absent": groupings.absent,
    }
    return InterferenceResult(plain(values))


def predicted_quantity(opened: OpenedRun) -> str:
    """What the residuals are of, in words."""
    if not isinstance(opened.path, VariancePreserving):
        return "velocity"
    return {"epsilon": "noise", "v_prediction": "v", "sample": "clean latent"}[opened.path.prediction]


def _states(kept: Records) -> dict[State, _State]:
    alpha, present = torch.cat(kept.alpha), torch.cat(kept.present)
    both = present[:, :, None] & present[:, None, :]
    apart = both & ~torch.eye(alpha.shape[1], dtype=torch.bool)
    pairs = apart.sum(dim=(1, 2)).clamp(min=1)
    found = {}
    for state, parts in kept.omega.items():
        omega, error = torch.cat(parts), torch.cat(kept.error[state])
        halves, loss, cosines = split(alpha, omega), quadratic_form(alpha, omega), residual_cosines(omega)
        size = halves.independent + halves.correlation.abs()
        found[state] = _State(
            terms=pair_terms(alpha, omega),
            cosines=torch.where(both, cosines, torch.nan),
            mean_cosine=(cosines * apart).sum(dim=(1, 2)) / pairs,
            independent=halves.independent,
            correlation=halves.correlation,
            loss=loss,
            identity_error=((loss - error).abs() / size.clamp(min=1e-300)).max().item(),
        )
    return found


def _grouping(
    opened: OpenedRun,
    config: DiagnoseConfig,
    grouping: Grouping,
    groupings: Groupings,
    records: dict[str, Records],
    states: dict[str, dict[State, _State]],
    levels: Sequence[float],
) -> dict[str, Any]:
    partition = grouping.partition
    covered = sum(len(space) for space in opened.spaces if grouping.meets and grouping.local(space) is not None)
    values: dict[str, Any] = {
        "name": grouping.name,
        "control": grouping in groupings.controls.values(),
        "title": grouping.title,
        "groups": list(partition.names),
        "sizes": partition.sizes.tolist(),
        "covered": covered / sum(map(len, opened.spaces)),
        "separation": None if groupings.spectra is None else vars(separation(groupings.spectra, partition)),
        "profiles": [],
        "cells": [],
        "changes": [],
        "against_control": [],
    }
    own = states.get(grouping.name)
    if own is None:
        return values
    kept = records[grouping.name]
    at = _Levels(torch.cat(kept.t), kept.pictures, levels, config)
    values["profiles"] = _profiles(kept, at)
    values["cells"] = [cell for state, found in own.items() for cell in _cells(state, found, at)]
    last = opened.points[-1].name
    for captions in (EMPTY, OWN):
        if (last, captions) in own and last != PRIOR.name:
            values["changes"] += _changes(captions, own[PRIOR.name, captions], own[last, captions], at)
    control = groupings.controls.get(grouping.name)
    # where a space has few latents the control may have fewer of the groups there, and then other points
    if control is not None and records[control.name].pictures == kept.pictures:
        values["against_control"] = _against(own[last, EMPTY], states[control.name][last, EMPTY], at)
    return values


class _Levels:
    """Intervals over the query points of one noise level."""

    def __init__(self, t: Tensor, pictures: list[str], levels: Sequence[float], config: DiagnoseConfig):
        self.levels = levels
        self._config = config
        self._rows = {level: (t == level).nonzero().flatten() for level in levels}
        self._pictures = pictures

    def rows(self, level: float) -> Tensor:
        """Places of the level's points."""
        return self._rows[level]

    def interval(self, values: Tensor, level: float) -> dict[str, Any]:
        """Mean and interval of ``values`` (a row a point, of all levels) at a level."""
        rows = self._rows[level]
        pictures = [self._pictures[row] for row in rows.tolist()]
        return interval(values[rows].numpy().astype(np.float64), pictures, self._config.resamples, self._config.seed)


def _profiles(kept: Records, at: _Levels) -> list[dict[str, Any]]:
    """How sharp alpha is, by noise level: where the weight is 0 no cross term is in the loss."""
    alpha, effective, spread = torch.cat(kept.alpha), torch.cat(kept.effective), torch.cat(kept.spread)
    weight = off_diagonal_weight(alpha)
    return [
        {
            "t": level,
            "points": len(at.rows(level)),
            "effective_samples": effective[at.rows(level)].mean().item(),
            "cross_weight": at.interval(weight, level),
            "alpha": alpha[at.rows(level)].mean(dim=0).tolist(),
            "spread": spread[at.rows(level)].mean().item(),
        }
        for level in at.levels
        if len(at.rows(level))
    ]


def _cells(state: State, found: _State, at: _Levels) -> list[dict[str, Any]]:
    return [
        {
            "point": state[0],
            "captions": state[1],
            "t": level,
            "loss": at.interval(found.loss, level),
            "independent": at.interval(found.independent, level),
            "correlation": at.interval(found.correlation, level),
            "mean_cosine": at.interval(found.mean_cosine, level),
            "terms": at.interval(found.terms, level),
            "cosines": at.interval(found.cosines, level),
        }
        for level in at.levels
        if len(at.rows(level))
    ]


def _changes(captions: str, first: _State, last: _State, at: _Levels) -> list[dict[str, Any]]:
    """What training changed, at the same points: last minus first."""
    return [
        {
            "captions": captions,
            "t": level,
            "loss": at.interval(last.loss - first.loss, level),
            "independent": at.interval(last.independent - first.independent, level),
            "correlation": at.interval(last.correlation - first.correlation, level),
            "mean_cosine": at.interval(last.mean_cosine - first.mean_cosine, level),
        }
        for level in at.levels
        if len(at.rows(level))
    ]


def _against(own: _State, control: _State, at: _Levels) -> list[dict[str, Any]]:
    """A partition against the random one, at the same points and the newest state: partition minus control."""
    return [
        {
            "t": level,
            "mean_cosine": at.interval(own.mean_cosine - control.mean_cosine, level),
            "correlation": at.interval(own.correlation - control.correlation, level),
        }
        for level in at.levels
        if len(at.rows(level))
    ]
