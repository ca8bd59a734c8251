"""Where a run went: distances from the prior, regimes, the plane of its path, and how much its updates oscillate."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.intervals import interval, plain
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.diagnose.oscillation import checkpoint_oscillation, logged_oscillation
from flowgrain.diagnose.path_plane import PathVectors, measure_plane, standard_error
from flowgrain.diagnose.path_probe import Probe
from flowgrain.diagnose.regimes import weight_change
from flowgrain.errors import DataError
from flowgrain.geometry.regimes import RegimeRule, classify_regimes, gain_share


@dataclass(frozen=True)
class PathResult:
    """Already plain numbers."""

    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return self.values


def measure_path(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> PathResult:
    """The held-out loss by level and the distances from the prior at every point, then the plane.

    About 30 slices at 3 noise levels for each of 49 grid points and of the points. Without held-out pictures the loss
    is on training slices, which tells nothing about the domain: there are then no regimes.
    """
    probe = Probe(opened)
    points, losses = _measure_points(opened, config, probe, progress)
    plane, why = None, None
    try:
        plane = measure_plane(opened, probe, progress).as_json()
    except DataError as error:
        why = str(error)
    finally:
        opened.forget_loaded()
    logged = logged_oscillation(opened.log)
    return PathResult(
        plain(
            {
                "held_out": probe.held_out,
                "slices": len(probe.slices),
                "roots": len(set(probe.roots)),
                "noise_levels": list(probe.levels),
                "level_names": list(probe.named_levels),
                "points": points,
                "regimes": _regimes(points, losses, probe),
                "plane": plane,
                "why_no_plane": why,
                "oscillation": logged,
                "checkpoint_oscillation": None if logged else _between_checkpoints(opened),
            }
        )
    )


def _measure_points(
    opened: OpenedRun, config: DiagnoseConfig, probe: Probe, progress: Progress
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    rows: list[dict[str, Any]] = []
    losses: list[Tensor] = []
    prior: list[Tensor] = []
    for place, point in enumerate(opened.points):
        progress("points of the path", place, len(opened.points))
        with opened.at(point):
            found, predictions = probe.measure(keep=True)
            moved = None if point.checkpoint is None else weight_change(opened)
        losses.append(found)
        prior = prior or predictions
        names = {"all": probe.rows_of(None)} | {name: probe.rows_of(name) for name in probe.named_levels}
        by_level = {name: found[own].mean().item() for name, own in names.items()}
        gain = {
            name: interval(
                (found - losses[0])[own].mean(dim=1, keepdim=True).numpy(),
                [probe.roots[row] for row in own],
                config.resamples,
                config.seed,
            )
            for name, own in names.items()
        }
        rows.append(
            {
                "point": point.name,
                "update": point.update,
                "loss": by_level,
                "change": {name: {key: value[0] for key, value in ends.items()} for name, ends in gain.items()},
                "prediction_distance": probe.distances(predictions, prior).mean().item(),
                "weight_change": 0.0 if moved is None else moved.change,
                "weight_change_relative": 0.0 if moved is None else moved.relative,
                "kind": opened.recipe.adapter.kind,
            }
        )
    progress("points of the path", len(opened.points), len(opened.points))
    return rows, losses


def _regimes(points: list[dict[str, Any]], losses: list[Tensor], probe: Probe) -> dict[str, Any] | None:
    """The regime of each point by the rule of :mod:`flowgrain.geometry.regimes`, which is ours."""
    if not probe.held_out or len(points) < 2:
        return None
    distance = np.array([point["prediction_distance"] for point in points])
    loss = np.array([point["loss"]["all"] for point in points])
    best = int(np.argmin(loss))
    # twice the standard error of the difference between prior and best, paired by slice
    least = 0.0 if best == 0 else 2 * standard_error(losses[best] - losses[0], probe.roots)
    rule = RegimeRule(least_gain=least)
    return {
        "regime": list(classify_regimes(distance, loss, None, rule)),
        "gain_share": gain_share(distance, loss).tolist(),
        "rule": asdict(rule),
    }


def _between_checkpoints(opened: OpenedRun) -> dict[str, Any] | None:
    vectors = PathVectors(opened)
    if len(vectors.updates) < 3:
        return None
    found = checkpoint_oscillation(vectors, vectors.updates, opened.seed)
    opened.forget_loaded()
    return found
