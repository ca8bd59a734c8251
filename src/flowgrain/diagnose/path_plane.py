"""The plane of a run's checkpoints, and the held-out loss on it (Semantic Granularity Alignment, Figs. 3 and 6).

The two leading principal directions of the adapter's parameters along the path, about the last checkpoint (Li et al.
2018, section 7). Beside the shares that they explain stand those of a random walk of as many points, which mean
nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.adapters.full import FullAdapter
from flowgrain.adapters.lora import LowRankAdapter
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.diagnose.path_probe import Probe
from flowgrain.errors import DataError
from flowgrain.geometry.landscape import Plane, fit_plane, path_gram, plane_axes, random_walk_explained
from flowgrain.sample.run_folder import Checkpoint

GRID = 7
"""Points of a side of the grid: as many evaluations of the probe as its square."""
MARGIN = 0.3
POINTS = 24
"""Checkpoints at most, evenly spaced."""
MOST_BYTES = 8 << 30
"""Memory of the plane's float64 vectors (about 7 of the adapter's length); longer adapters get none."""


@dataclass(frozen=True, eq=False)
class PathPlane:
    """The plane, its path and the losses on it."""

    plane: Plane
    updates: tuple[int, ...]
    """Of the path's points; 0 for the start of training."""
    distance: tuple[float, ...]
    """Of each point from the plane."""
    extent: float
    """Distance between the two points farthest apart in the plane."""
    explained_about_mean: tuple[float, ...]
    random_walk: tuple[float, ...]
    x: Float[np.ndarray, " columns"]
    y: Float[np.ndarray, " rows"]
    loss: dict[str, Float[np.ndarray, "rows columns"]]
    """By level and of ``all`` slices."""
    error: Float[np.ndarray, "rows columns"]
    """Standard error of the difference of ``all`` to the last checkpoint's, over roots."""
    last_loss: dict[str, float]
    """By level and of ``all``, at the last checkpoint: what the grid is read against."""
    own_loss: tuple[float, ...]
    """Of ``all`` at each point's own weights."""
    plane_loss: tuple[float, ...]
    """At the same points' places in the plane."""

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "updates": list(self.updates),
            "coordinates": self.plane.coordinates.tolist(),
            "distance_from_plane": list(self.distance),
            "extent": self.extent,
            "explained": self.plane.explained.tolist(),
            "explained_about_mean": list(self.explained_about_mean),
            "random_walk_explained": list(self.random_walk),
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "loss": {name: grid.tolist() for name, grid in self.loss.items()},
            "standard_error": self.error.tolist(),
            "last_loss": self.last_loss,
            "own_loss": list(self.own_loss),
            "plane_loss": list(self.plane_loss),
        }


class PathVectors:
    """Flat adapter parameters of the path's points, read anew at each pass; the adapter holds the last one read."""

    def __init__(self, opened: OpenedRun):
        self._opened = opened
        self._checkpoints = _evenly(opened.checkpoints, POINTS)
        self._start = start_state(opened)

    @property
    def updates(self) -> tuple[int, ...]:
        """Of the points."""
        start = (0,) if self._start is not None else ()
        return (*start, *(checkpoint.update for checkpoint in self._checkpoints))

    def __call__(self) -> Iterator[Tensor]:
        """The vectors, float64 on the CPU, oldest first."""
        if self._start is not None:
            yield torch.cat([value.double().reshape(-1) for value in self._start])
        for checkpoint in self._checkpoints:
            self._opened.load(checkpoint)
            yield flat_parameters(self._opened)


def flat_parameters(opened: OpenedRun) -> Float[Tensor, " p"]:
    """The adapter's present parameters, float64 on the CPU."""
    return torch.cat([p.detach().cpu().double().reshape(-1) for _, p in opened.adapter.parameters()])


@torch.no_grad()
def set_parameters(opened: OpenedRun, vector: Float[Tensor, " p"]) -> None:
    """Put a vector of :func:`flat_parameters` into the adapter."""
    opened.forget_loaded()
    parameters = [parameter for _, parameter in opened.adapter.parameters()]
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def start_state(opened: OpenedRun) -> list[Tensor] | None:
    """The adapter as training began; None where it went on from another adapter or has several parts."""
    init = opened.recipe.adapter.init_from
    if init is not None and init.mode == "continue":
        return None
    adapter = opened.adapter
    if isinstance(adapter, LowRankAdapter):
        opened.forget_loaded()
        adapter.initialise(rng.stable_seed(opened.recipe.seed, "adapter"))
    elif not isinstance(adapter, FullAdapter):
        return None
    with adapter.enabled(isinstance(adapter, LowRankAdapter)):
        return [parameter.detach().to("cpu", copy=True) for _, parameter in adapter.parameters()]


def _evenly(checkpoints: Sequence[Checkpoint], most: int) -> list[Checkpoint]:
    if len(checkpoints) <= most:
        return list(checkpoints)
    return [checkpoints[round(k * (len(checkpoints) - 1) / (most - 1))] for k in range(most)]


def measure_plane(opened: OpenedRun, probe: Probe, progress: Progress) -> PathPlane:
    """Fit the plane and evaluate the probe on its grid.

    Raises :class:`DataError` for a path of fewer than two directions or an adapter that is too long.
    """
    size = sum(parameter.numel() for _, parameter in opened.adapter.parameters())
    if 8 * 7 * size > MOST_BYTES:
        raise DataError(f"a plane of {size} parameters would take {56 * size / 2**30:.0f} GiB")
    vectors = PathVectors(opened)
    plane = fit_plane(vectors, origin="last", block=2)
    distance, own = [], []
    for vector in vectors():
        # DoRA's start and checkpoints are set as they are, so that a point is measured at its own weights
        set_parameters(opened, vector)
        own.append(probe.losses())
        distance.append(plane.project(vector)[2])
    on_plane = []
    for x, y in plane.coordinates:
        set_parameters(opened, plane.point(float(x), float(y)))
        on_plane.append(probe.losses())
    x, y = grid_axes(plane)
    loss, error = _grid(opened, probe, plane, x, y, own[-1], progress)
    opened.forget_loaded()
    points = len(vectors.updates)
    spread = np.linalg.norm(plane.coordinates[:, None] - plane.coordinates[None], axis=2)
    return PathPlane(
        plane=plane,
        updates=vectors.updates,
        distance=tuple(distance),
        extent=float(spread.max()),
        explained_about_mean=_explained_about_mean(vectors),
        random_walk=tuple(random_walk_explained(points).tolist()),
        x=x,
        y=y,
        loss=loss,
        error=error,
        last_loss={name: own[-1][rows].mean().item() for name, rows in _named_rows(probe).items()},
        own_loss=tuple(value.mean().item() for value in own),
        plane_loss=tuple(value.mean().item() for value in on_plane),
    )


def _named_rows(probe: Probe) -> dict[str, list[int]]:
    return {"all": probe.rows_of(None)} | {name: probe.rows_of(name) for name in probe.named_levels}


def grid_axes(plane: Plane) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " rows"]]:
    """Axes that hold the path; the shorter is stretched to half the longer, since paths are nearly straight lines."""
    axes = plane_axes(plane, GRID, GRID, MARGIN)
    least = max(axis[-1] - axis[0] for axis in axes) / 2
    x, y = (_stretched(axis, least) for axis in axes)
    return x, y


def _stretched(axis: Float[np.ndarray, " n"], least: float) -> Float[np.ndarray, " n"]:
    width = axis[-1] - axis[0]
    more = max(least - width, 0.0) / 2
    return np.linspace(axis[0] - more, axis[-1] + more, len(axis))


def _grid(
    opened: OpenedRun, probe: Probe, plane: Plane, x: np.ndarray, y: np.ndarray, last: Tensor, progress: Progress
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rows = _named_rows(probe)
    loss = {name: np.zeros((len(y), len(x))) for name in rows}
    error = np.zeros((len(y), len(x)))
    for i, b in enumerate(y):
        progress("loss on the plane", i * len(x), len(x) * len(y))
        for j, a in enumerate(x):
            set_parameters(opened, plane.point(float(a), float(b)))
            found = probe.losses()
            for name, own in rows.items():
                loss[name][i, j] = found[own].mean().item()
            error[i, j] = standard_error(found - last, probe.roots)
    progress("loss on the plane", len(x) * len(y), len(x) * len(y))
    return loss, error


def standard_error(differences: Float[Tensor, "n t"], roots: Sequence[str]) -> float:
    """Of the mean over slices, roots being independent (a ratio estimate); NaN for one root."""
    rows = differences.mean(dim=1).numpy()
    names = sorted(set(roots))
    if len(names) < 2:
        return float("nan")
    mean, own = rows.mean(), np.array([names.index(root) for root in roots])
    sums = np.bincount(own, weights=rows - mean, minlength=len(names))
    return float(np.sqrt(len(names) / (len(names) - 1) * np.square(sums).sum()) / len(rows))


def _explained_about_mean(vectors: PathVectors) -> tuple[float, ...]:
    """Shares of the two leading directions about the path's mean, as those of a random walk are."""
    gram = path_gram(vectors, block=2)
    centring = np.eye(len(gram)) - 1 / len(gram)
    values = np.linalg.eigvalsh(centring @ gram @ centring)[::-1]
    return tuple((values[:2] / values.sum()).tolist())
