"""The local neural tangent kernel of a run's real model, in adapter space, at a few fixed inputs.

Semantic Granularity Alignment, Eqs. 4, 44 and 45. Two bounded looks at Theta = J J':

* the *level matrix* Delta_a' Theta Delta_b at single query points x, one forward and g backward passes each, with the
  residuals Delta_a = v - u^a of the group fields that the data's own latents give. Beside it the data interference
  Omega = <Delta_a, Delta_b> of the same residuals: how often the two have one sign is what the paper leaves open (E.5);
* the *spectrum* of Theta over a small batch, one input of each level, by Lanczos with products J (J' w): no matrix.

The model is asked without a caption, as the equations name none, and without autocast. The level matrix speaks of the
loss only where the weights alpha of the groups are soft: ``weighted`` holds the means with alpha_a alpha_b.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.field_queries import batch_points, default_levels, draw_points
from flowgrain.diagnose.groupings import LEVEL, Grouping
from flowgrain.diagnose.intervals import interval, plain
from flowgrain.diagnose.kernel_model import adapter_function, differentiable, level_products
from flowgrain.diagnose.latents import LatentSpace
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.diagnose.points import ModelPoint
from flowgrain.diagnose.sections import NotMeasurable
from flowgrain.geometry.group_fields import estimate_group_fields
from flowgrain.geometry.interference import interference_matrix, residual_cosines
from flowgrain.geometry.kernel import (
    condition_number,
    cosine_matrix,
    diagonal_dominance,
    kernel_trace,
    leading_spectrum,
)
from flowgrain.geometry.partitions import Partition
from flowgrain.granularity import GRANULARITIES

QUERIES = 8
"""Latents that are noised to each level: a query costs as much as a slice of training, and two backward passes more."""
LEVELS = 4
"""Noise levels at most, of those of the diagnosis."""
EIGENVALUES = 6
PER_LEVEL = 1
"""Inputs of each level in the batch of the spectrum."""
SPECTRUM_LEVEL = 0.7
"""The noise level of the spectrum is the one of the diagnosis that is nearest to it."""
PROBES = 8
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Queries:
    """Points of one space with the group fields of the levels."""

    space: LatentSpace
    levels: tuple[str, ...]
    rows: tuple[int, ...]
    """Training slice of each point."""
    x: Float[Tensor, "m c h w"]
    t: Float[Tensor, " m"]
    targets: Float[Tensor, "m g d"]
    """Group fields in what the model predicts."""
    alpha: Float[Tensor, "m g"]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class KernelResult:
    """The kernel at the first and the last measured checkpoint, already plain numbers."""

    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return self.values


def measure_kernel(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> KernelResult:
    """At the first and the last checkpoint among the points.

    About 48 queries of a forward and g backward passes, and some 30 to 60 kernel products over g inputs a checkpoint.
    Raises NotMeasurable where no two levels have latents of one shape, so that their fields never meet.
    """
    points = [point for point in opened.points if point.checkpoint is not None]
    chosen = points if len(points) < 2 else [points[0], points[-1]]
    queries = draw_level_queries(opened, config)
    measured = []
    for place, point in enumerate(chosen):
        progress("kernel", place, len(chosen))
        with opened.at(point), differentiable(opened):
            levels = _level_matrices(opened, config, queries)
            spectrum = _spectrum(opened, config, queries, point)
        measured.append({"point": point.name, "update": point.update, "levels": levels, **spectrum})
    progress("kernel", len(chosen), len(chosen))
    cells = math.prod(queries.space.shape)
    return KernelResult(
        plain(
            {
                "level_names": list(queries.levels),
                "shape": list(queries.space.shape),
                "output_size": cells,
                "latents": len(queries.space),
                "queries_by_level": len(queries.rows) // len(set(queries.t.tolist())),
                "parameters": sum(p.numel() for _, p in opened.adapter.parameters()),
                "points": measured,
            }
        )
    )


def draw_level_queries(opened: OpenedRun, config: DiagnoseConfig) -> Queries:
    """Points in the largest space that holds two levels or more, with the fields of its levels."""
    slices = opened.train.dataset.slices
    codes = torch.tensor([item.granularity for item in slices])
    present = sorted({int(code) for code in codes})
    if len(present) < 2:
        raise NotMeasurable(f"all slices are {GRANULARITIES[present[0]]}: there are no two levels to compare")
    labels = torch.tensor([present.index(int(code)) for code in codes])
    grouping = Grouping(LEVEL, "levels", Partition(labels, tuple(GRANULARITIES[code] for code in present)))
    found = [(space, grouping.local(space)) for space in opened.spaces]
    space, local = next(((space, local) for space, local in found if local is not None), (None, None))
    if space is None or local is None:
        raise NotMeasurable("no two levels have slices of one size: densities of different sizes cannot be compared")
    levels = _spread(config.levels or default_levels(opened.path), LEVELS)
    most = batch_points(math.prod(space.shape), len(local[0]), 1, config) // len(levels)
    count = max(1, min(QUERIES, len(space), most))
    batch = next(draw_points(space, opened.path, levels, count, count * len(levels), config))
    estimate = estimate_group_fields(space.latents, local[0], opened.path, batch.x, batch.t, chunk=256)
    return Queries(
        space=space,
        levels=tuple(local[0].names),
        rows=tuple(batch.slices),
        x=batch.x,
        t=batch.t,
        targets=estimate.targets,
        alpha=estimate.alpha,
        pictures=tuple(slices[index].root for index in batch.slices),
    )


def _spread(levels: Sequence[float], most: int) -> list[float]:
    places = {round(k * (len(levels) - 1) / (most - 1)) for k in range(most)}
    return [levels[place] for place in sorted(places)]


@dataclass(frozen=True, eq=False)
class Matrices:
    """Both matrices at every query, float64."""

    omega: Float[Tensor, "m g g"]
    theta: Float[Tensor, "m g g"]


def query_matrices(opened: OpenedRun, queries: Queries) -> Matrices:
    """Omega and Delta_a' Theta Delta_b at every query, at the adapter's present weights."""
    omega, theta = [], []
    for place, row in enumerate(queries.rows):
        predict, parameters = adapter_function(opened, queries.x[place, None], queries.t[place, None], [""], [row])
        with torch.no_grad():
            velocity = predict(parameters).double().flatten(1).cpu()
        residual = velocity[:, None] - queries.targets[place, None].cpu()
        omega.append(interference_matrix(residual)[0])
        shaped = residual[0].view(-1, 1, *queries.space.shape).float()
        theta.append(level_products(predict, parameters, shaped.to(opened.device)))
    return Matrices(torch.stack(omega), torch.stack(theta))


def _level_matrices(opened: OpenedRun, config: DiagnoseConfig, queries: Queries) -> list[dict[str, Any]]:
    found = query_matrices(opened, queries)
    rows = []
    for level in sorted(set(queries.t.tolist())):
        own = (queries.t == level).nonzero().flatten()
        pictures = [queries.pictures[int(place)] for place in own]
        omega, theta, alpha = found.omega[own], found.theta[own], queries.alpha[own].cpu()

        def spread(values: Tensor, names: Sequence[str] = tuple(pictures)) -> dict[str, Any]:
            return interval(values.double().numpy(), names, config.resamples, config.seed)

        agreement = (torch.sign(omega) == torch.sign(theta)).double()
        mean = theta.mean(dim=0)
        square = omega.diagonal(dim1=1, dim2=2)
        i, j = torch.triu_indices(len(mean), len(mean), offset=1)
        rows.append(
            {
                "t": level,
                "queries": len(own),
                "alpha": alpha.mean(dim=0).tolist(),
                "theta": mean.tolist(),
                "theta_cosine": spread(torch.stack([cosine_matrix(one) for one in theta])),
                "omega_cosine": spread(residual_cosines(omega)),
                "weighted": (alpha[:, :, None] * theta * alpha[:, None, :]).mean(dim=0).tolist(),
                "sign_agreement": spread(agreement),
                "sign_agreement_all": spread(agreement[:, i, j].mean(dim=1, keepdim=True)),
                "negative_theta": spread((theta < 0).double()),
                "negative_omega": spread((omega < 0).double()),
                "rayleigh": spread(theta.diagonal(dim1=1, dim2=2) / square),
                "dominance": diagonal_dominance(mean).tolist(),
                "condition": condition_number(mean),
                "condition_angles": condition_number(cosine_matrix(mean)),
            }
        )
    return rows


def _spectrum(opened: OpenedRun, config: DiagnoseConfig, queries: Queries, point: ModelPoint) -> dict[str, Any]:
    """The leading eigenvalues over one input of each level, and how much of each input's training residual they see."""
    if opened.recipe.memory.quantize != "none":
        return {"spectrum": None, "why": "quantised layers have no forward-mode derivatives"}
    rows, levels = _spectrum_rows(opened, queries)
    wanted = min(set(queries.t.tolist()), key=lambda level: abs(level - SPECTRUM_LEVEL))
    t = torch.full((len(rows),), wanted, dtype=torch.float64)
    place = {index: at for at, index in reversed(list(enumerate(queries.space.index)))}
    clean = torch.cat([queries.space.latents.read(place[row], place[row] + 1) for row in rows])
    names = [opened.train.dataset.slices[row].slice_id for row in rows]
    noise = torch.stack([rng.normal(queries.space.shape, config.seed, name, "kernel noise") for name in names])
    sample = opened.path(clean.to(opened.device), noise.to(opened.device), t.to(opened.device))
    predict, parameters = adapter_function(opened, sample.x_t, t, [""] * len(rows), rows)
    with torch.no_grad():
        output = predict(parameters)
    count = min(EIGENVALUES, output.numel() - 1)
    generator = rng.numpy_generator(config.seed, point.update, "kernel start")
    found = leading_spectrum(predict, parameters, output, count, tolerance=_TOLERANCE, generator=generator)
    trace = kernel_trace(predict, parameters, output, PROBES, rng.generator(config.seed, point.update, "kernel probes"))
    error = (output - sample.target).double().flatten(1).cpu().numpy()
    rows_out = []
    for index, level in enumerate(levels):
        lone = np.zeros_like(error)
        lone[index] = error[index]
        flat = lone.reshape(-1) / max(np.linalg.norm(lone), 1e-300)
        seen = found.vectors.T @ flat
        rows_out.append(
            {"level": level, "share_in_leading": float(seen @ seen), "error": float(error[index] @ error[index])}
        )
    return {
        "spectrum": {
            "t": wanted,
            "inputs": rows_out,
            "size": output.numel(),
            "values": found.values.tolist(),
            "residuals": (found.residuals / found.values[0]).tolist(),
            "asked": count,
            "products": found.products,
            "trace": trace.trace,
            "trace_error": trace.standard_error,
            "effective_rank": trace.trace / float(found.values[0]),
            "chance_share": count / output.numel(),
        }
    }


def _spectrum_rows(opened: OpenedRun, queries: Queries) -> tuple[list[int], list[str]]:
    """``PER_LEVEL`` training slices of the space for each level, drawn by identity."""
    slices = opened.train.dataset.slices
    rows, names = [], []
    for level in queries.levels:
        own = {index for index in queries.space.index if GRANULARITIES[slices[index].granularity] == level}
        ordered = sorted(own, key=lambda index: rng.stable_seed(opened.seed, slices[index].slice_id, "kernel input"))
        rows += ordered[:PER_LEVEL]
        names += [level] * len(ordered[:PER_LEVEL])
    return rows, names
