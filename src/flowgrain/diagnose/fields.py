"""Interference of the data fields at the states of a run (Semantic Granularity Alignment, Eqs. 3, 13-20; Fig. 2).

Group fields come from the run's own training latents. The model is asked at the same points, once with the empty
caption (the fields are those of the whole data set, which has no caption) and once with the caption of each point's own
slice: what training asks for, but not what the fields belong to, hence a heuristic. Residuals are in the form that the
model predicts, so that |residual|^2 by latent element is in the units of the loss that the run logs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.field_queries import (
    QueryBatch,
    batch_points,
    chunk_latents,
    default_levels,
    draw_points,
    share_queries,
)
from flowgrain.diagnose.field_records import CAPTIONS, EMPTY, PERFECT, Concentration, Records, State
from flowgrain.diagnose.field_results import InterferenceResult, summarise
from flowgrain.diagnose.groupings import LEVEL, Grouping, Groupings, check_spaces, make_groupings
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.geometry.group_fields import (
    GroupEstimate,
    NearestEstimate,
    estimate_group_fields,
    estimate_nearest,
)
from flowgrain.geometry.interference import interference_matrix, residuals


def measure_interference(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> InterferenceResult:
    """Interference matrices of every partition by noise level, for the run's points.

    Raises DataError for a data set of one slice.
    """
    spaces = opened.spaces
    check_spaces(spaces)
    groupings = make_groupings(opened.train.dataset, spaces, config)
    levels = config.levels or default_levels(opened.path)
    counts = share_queries(spaces, config.queries)
    compared = (*(grouping for grouping in groupings.found if grouping.meets), *groupings.controls.values())
    records = {grouping.name: Records() for grouping in compared}
    near, marginals = Concentration(config.nearest), 0.0
    total, done = len(levels) * sum(counts), 0
    for batch in _batches(opened, groupings, counts, levels, config):
        predictions = _predictions(opened, batch, config)
        first: Tensor | None = None
        for grouping in compared:
            fields = _decompose(opened, batch, grouping, config)
            if fields is None:
                continue
            if first is None:
                first = fields.marginal
                near.add(_nearest(opened, batch, grouping, config), batch.t)
            marginals = max(marginals, _relative(fields.marginal, first))
            _keep_data(records[grouping.name], fields, batch, opened)
            for state, prediction in {**predictions, (PERFECT, EMPTY): fields.marginal}.items():
                if state[1] == EMPTY or grouping.name == LEVEL:
                    _keep_state(records[grouping.name], state, prediction.double(), fields)
        done += len(batch.row)
        progress("interference by noise level", done, total)
    return summarise(opened, config, groupings, records, levels, counts, near, marginals)


def _nearest(opened: OpenedRun, batch: QueryBatch, grouping: Grouping, config: DiagnoseConfig) -> NearestEstimate:
    local = grouping.local(batch.space)
    assert local is not None
    x, t = batch.x.to(opened.device), batch.t.to(opened.device)
    chunk = chunk_latents(x[0].numel(), len(x), config)
    return estimate_nearest(batch.space.latents, local[0], opened.path, x, t, config.nearest, chunk=chunk)


def _batches(
    opened: OpenedRun, groupings: Groupings, counts: Sequence[int], levels: Sequence[float], config: DiagnoseConfig
) -> Iterator[QueryBatch]:
    groups = max((len(grouping.partition) for grouping in groupings.found if grouping.meets), default=2)
    for space, count in zip(opened.spaces, counts, strict=True):
        if count:
            dimension = torch.Size(space.shape).numel()
            most = batch_points(dimension, groups, len(CAPTIONS) * len(opened.points), config)
            yield from draw_points(space, opened.path, levels, count, most, config)


def _predictions(opened: OpenedRun, batch: QueryBatch, config: DiagnoseConfig) -> dict[State, Float[Tensor, "m d"]]:
    """What the model predicts at a batch's points, in every state."""
    found: dict[State, Tensor] = {}
    for point in opened.points:
        with opened.at(point):
            for captions in CAPTIONS:
                found[point.name, captions] = _predicted(opened, batch, captions, config.batch_size)
    return found


def _predicted(opened: OpenedRun, batch: QueryBatch, captions: str, size: int) -> Float[Tensor, "m d"]:
    rows = []
    for start in range(0, len(batch.row), size):
        part = slice(start, start + size)
        slices = batch.slices[part]
        given = [""] * len(slices) if captions == EMPTY else None
        inputs = opened.inputs(opened.train, slices, given, batch.mirrored[part])
        rows.append(opened.predict(batch.x[part], batch.t[part], inputs).flatten(1))
    return torch.cat(rows)


@dataclass(frozen=True, eq=False)
class _Decomposition:
    """The fields of one partition at a batch's points."""

    estimate: GroupEstimate
    alpha: Float[Tensor, "m g"]
    targets: Float[Tensor, "m g d"]
    marginal: Float[Tensor, "m d"]
    place: list[int]
    """Place of each of its groups among all groups of the partition."""
    groups: int


def _decompose(
    opened: OpenedRun, batch: QueryBatch, grouping: Grouping, config: DiagnoseConfig
) -> _Decomposition | None:
    """None where the batch's space has fewer than two of the groups."""
    local = grouping.local(batch.space) if grouping.meets else None
    if local is None:
        return None
    partition, place = local
    x, t = batch.x.to(opened.device), batch.t.to(opened.device)
    chunk = chunk_latents(x[0].numel(), len(x), config)
    estimate = estimate_group_fields(batch.space.latents, partition, opened.path, x, t, chunk=chunk)
    alpha, targets = estimate.alpha, estimate.targets
    marginal = torch.einsum("mg,mgd->md", alpha, targets)
    return _Decomposition(estimate, alpha, targets, marginal, place, len(grouping.partition))


def _keep_data(kept: Records, fields: _Decomposition, batch: QueryBatch, opened: OpenedRun) -> None:
    """Keep what does not depend on the model."""
    away = (fields.targets - fields.marginal[:, None]).square().mean(dim=2)
    alpha = torch.zeros(len(away), fields.groups, dtype=torch.float64)
    alpha[:, fields.place] = fields.alpha.cpu()
    present = torch.zeros(len(away), fields.groups, dtype=torch.bool)
    present[:, fields.place] = True
    kept.alpha.append(alpha)
    kept.present.append(present)
    kept.effective.append(fields.estimate.effective_samples.cpu())
    kept.spread.append((fields.alpha * away).sum(dim=1).cpu())
    kept.t.append(batch.t)
    slices = opened.train.dataset.slices
    kept.pictures += [slices[index].image_digest or slices[index].image for index in batch.slices]


def _keep_state(kept: Records, state: State, prediction: Float[Tensor, "m d"], fields: _Decomposition) -> None:
    """Keep Omega and the squared error of one state, both by latent element: the unit of the logged loss."""
    matrix = interference_matrix(residuals(prediction, fields.targets)) / prediction.shape[1]
    omega = torch.zeros(len(prediction), fields.groups, fields.groups, dtype=torch.float64)
    index = torch.tensor(fields.place)
    omega[:, index[:, None], index[None, :]] = matrix.cpu()
    kept.omega.setdefault(state, []).append(omega)
    kept.error.setdefault(state, []).append((prediction - fields.marginal).square().mean(dim=1).cpu())


def _relative(values: Tensor, reference: Tensor) -> float:
    return ((values - reference).norm() / reference.norm().clamp(min=1e-300)).item()
