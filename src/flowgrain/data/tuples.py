"""The update planner: which slices meet in one optimizer step, and with which weight.

A *window* of B roots is one update. All slices of a root fall in the same window, so that the granularities of an
image always meet in one step (Semantic Granularity Alignment, section 3.4). Inside the window slices are grouped by
bucket into micro-batches; fixed weights make the accumulated gradient that of the whole window (Eq. 6), whatever
the buckets and the micro-batch size. ``docs/tuples.md`` derives the weights.

The plan is a function of the table's columns, the configuration, the seed and the epoch. The rows of a table are in
the order of the slice ids and its codes are ranks of sorted names (``dataset.py`` sees to both), so the order in
which files or manifest lines are found does not matter.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.data.columns import place_in_run, ranks, run_starts
from flowgrain.data.records import MicroBatch, Update
from flowgrain.data.sharding import shard
from flowgrain.data.weights import Reduction, normalised_weights
from flowgrain.data.windows import Windows, level_sets, shape_columns
from flowgrain.errors import DataError
from flowgrain.granularity import GRANULARITIES
from flowgrain.rng import numpy_generator

__all__ = [
    "GranularityShares",
    "GranularityWeights",
    "SliceTable",
    "TupleConfig",
    "co_occurrence",
    "fill",
    "plan_epoch",
    "plan_hash",
    "shard",
]


@dataclass(frozen=True)
class SliceTable:
    """What the planner knows of the slices: one row a slice, in the order of the slice ids."""

    root: np.ndarray
    """int64 code of the root."""
    granularity: np.ndarray
    """int8 index, 0 = macro."""
    level: np.ndarray
    """int64 code of the level; several levels may share a granularity (head and eyes are both micro)."""
    bucket: np.ndarray
    """int64 code of the shape: slices of one code can share a micro-batch."""
    weight: np.ndarray | None = None
    """float64 factor (> 0) of each slice's loss, None: 1 for all. Like lambda it is not normalised away."""

    def __post_init__(self):
        columns = [self.root, self.granularity, self.level, self.bucket]
        columns += [] if self.weight is None else [self.weight]
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"columns of a slice table must have one length, got {sorted(lengths)}")
        if self.weight is not None and not (np.isfinite(self.weight) & (self.weight > 0)).all():
            raise ValueError("slice weights must be positive and finite")
        if len(self) and not 0 <= self.granularity.min() <= self.granularity.max() < len(GRANULARITIES):
            raise ValueError(f"granularity indices must lie in 0 to {len(GRANULARITIES) - 1}")

    def __len__(self) -> int:
        return len(self.root)

    def take(self, rows: np.ndarray) -> "SliceTable":
        """The table of some of its rows."""
        weight = None if self.weight is None else self.weight[rows]
        return SliceTable(self.root[rows], self.granularity[rows], self.level[rows], self.bucket[rows], weight)


class GranularityWeights(Config):
    """lambda of Eq. 6: one factor a granularity."""

    macro: float = Field(default=1.0, gt=0, description="factor of macro slices")
    meso: float = Field(default=1.0, gt=0, description="factor of meso slices")
    micro: float = Field(default=1.0, gt=0, description="factor of micro slices")

    def as_array(self) -> np.ndarray:
        """The factors by granularity index, float64."""
        return np.array([self.macro, self.meso, self.micro])


class GranularityShares(Config):
    """Which part of its slices a granularity shows in an epoch."""

    macro: float = Field(default=1.0, gt=0, le=1, description="share of the macro slices that an epoch visits")
    meso: float = Field(default=1.0, gt=0, le=1, description="share of the meso slices")
    micro: float = Field(default=1.0, gt=0, le=1, description="share of the micro slices")

    def as_array(self) -> np.ndarray:
        """The shares by granularity index, float64."""
        return np.array([self.macro, self.meso, self.micro])


class TupleConfig(Config):
    """How slices are grouped into updates and weighted."""

    grouping: Literal["root", "slice", "shuffled"] = Field(
        default="root",
        description="unit of an update: 'root' keeps the slices of a root together, 'slice' draws them alone; "
        "'shuffled' is the control: as 'root', with each level's slices dealt to other roots anew every epoch",
    )
    batch_size: int = Field(default=8, ge=1, description="units (roots or slices) an update, over all processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="most slices a forward pass; memory only, results do not change; null: batch_size",
    )
    reduction: Reduction = Field(
        default="root",
        description="mean over levels in a root then roots, over levels in an update, over slices; or Algorithm 2",
    )
    lambdas: GranularityWeights = Field(
        default_factory=GranularityWeights, description="lambda of each granularity in the loss of a root"
    )
    share: GranularityShares = Field(
        default_factory=GranularityShares,
        description="part of a granularity's slices that an epoch visits, the next part in the next epoch",
    )
    homogeneous: bool = Field(
        default=True,
        description="put roots that have the same levels in the same update where possible (grouping root)",
    )
    packing: Literal["random", "fill"] = Field(
        default="random",
        description="'random' draws the roots of an update, 'fill' prefers roots of like shapes: larger micro-batches",
    )
    drop_last: bool = Field(default=False, description="skip the smaller update that may end an epoch")

    @model_validator(mode="after")
    def _literal_needs_tuples(self) -> "TupleConfig":
        if self.reduction == "literal" and self.grouping == "slice":
            raise ValueError("reduction 'literal' sums the batches of a tuple and needs grouping 'root'")
        return self


def plan_epoch(table: SliceTable, config: TupleConfig, seed: int, epoch: int) -> list[Update]:
    """The updates of one epoch; every slice is in exactly one of them (but for ``share`` and ``drop_last``).

    Weights sum to 1 an update where all lambdas and slice weights are 1, except with reduction ``literal``. The last
    update may be smaller; its weights then count its own units. Raises :class:`DataError` where nothing is left to
    train on.
    """
    if not len(table):
        raise DataError("no slices to plan: the data set is empty")
    visited = _visited(table, config.share, seed, epoch)
    table = table.take(visited)
    unit = _units(table, config, seed, epoch)
    windows = _draw(table, config, unit, numpy_generator(seed, epoch, "plan"))
    rows = np.lexsort((windows.position[unit], table.bucket, windows.of_unit[unit]))
    if config.drop_last and windows.sizes[-1] < config.batch_size:
        rows = rows[windows.of_unit[unit[rows]] < windows.count - 1]
        if not len(rows):
            raise DataError(
                f"drop_last leaves no update: {len(windows.position)} units, batch_size {config.batch_size}; "
                "lower batch_size or set drop_last to false"
            )
    window = windows.of_unit[unit[rows]]
    starts = _micro_batch_starts(window, table.bucket[rows], config.micro_batch or config.batch_size)
    reduction = "slice" if config.grouping == "slice" else config.reduction
    weights = _factors(table, config, rows) * normalised_weights(
        reduction, window, unit[rows], table.level[rows], starts
    )
    return _assemble(visited[rows], weights, starts, window, windows.sizes, epoch)


def plan_hash(updates: Sequence[Update]) -> str:
    """Hexadecimal digest of a plan: which slices each update has, with which weights. A resumed run compares it.

    The cut into micro-batches is left out: it changes memory and rounding alone, and a run that met its memory's limit
    must be able to go on with a smaller one.
    """
    digest = hashlib.blake2b(digest_size=16)
    for update in updates:
        slices = np.concatenate([batch.slices for batch in update.micro_batches]).astype("<i8")
        weights = np.concatenate([batch.weights for batch in update.micro_batches]).astype("<f8")
        order = np.argsort(slices, kind="stable")
        digest.update(np.array([update.epoch, update.index, update.roots, len(slices)], dtype="<i8").tobytes())
        digest.update(slices[order].tobytes() + weights[order].tobytes())
    return digest.hexdigest()


def fill(updates: Sequence[Update], micro_batch: int) -> float:
    """Slices per micro-batch over ``micro_batch``, in (0, 1]: how much of the room of a forward pass is used.

    Raises ValueError without an update or for a micro-batch below 1.
    """
    if not updates or micro_batch < 1:
        raise ValueError(f"fill needs an update and a positive micro-batch, got {len(updates)} and {micro_batch}")
    passes = sum(len(update.micro_batches) for update in updates)
    return sum(update.slices for update in updates) / (passes * micro_batch)


def co_occurrence(updates: Sequence[Update], table: SliceTable) -> float:
    """Share of the roots with two or more slices whose slices all meet in one update; 1 where there is none such."""
    step = np.full(len(table), -1)
    for number, update in enumerate(updates):
        for batch in update.micro_batches:
            step[batch.slices] = number
    root = ranks(table.root)
    order = np.argsort(root, kind="stable")
    starts = run_starts(root[order])
    first, last = np.minimum.reduceat(step[order], starts), np.maximum.reduceat(step[order], starts)
    several = np.diff(np.append(starts, len(root))) > 1
    return float(np.mean(((first == last) & (first >= 0))[several])) if several.any() else 1.0


def _visited(table: SliceTable, share: GranularityShares, seed: int, epoch: int) -> np.ndarray:
    """The rows that an epoch visits: of every granularity the next part of one fixed order, round and round."""
    parts = []
    for index, part in enumerate(share.as_array()):
        rows = np.flatnonzero(table.granularity == index)
        count = min(len(rows), max(round(part * len(rows)), 1))
        if count < len(rows):
            order = numpy_generator(seed, index, "visits").permutation(rows)
            rows = order[(epoch * count + np.arange(count)) % len(rows)]
        parts.append(rows)
    return np.sort(np.concatenate(parts))


def _units(table: SliceTable, config: TupleConfig, seed: int, epoch: int) -> np.ndarray:
    """The unit of each slice: its root, itself, or a root's place in the dealt-out levels.

    Dealt units have the levels, counts and weights that the roots have; what their slices lose is the common picture.
    """
    if config.grouping == "slice":
        return np.arange(len(table))
    unit = ranks(table.root)
    if config.grouping == "shuffled":
        rng = numpy_generator(seed, epoch, "dealt levels")
        for level in np.unique(table.level):
            rows = np.flatnonzero(table.level == level)
            unit[rows] = unit[rng.permutation(rows)]
    return unit


def _draw(table: SliceTable, config: TupleConfig, unit: np.ndarray, rng: np.random.Generator) -> Windows:
    """The windows of an epoch, as the configuration groups and packs them."""
    by_root = config.grouping != "slice"
    if by_root and config.homogeneous:
        classes = level_sets(unit, table.level)
    else:
        classes = np.zeros(int(unit.max()) + 1, np.int64)
    if config.packing == "random":
        return Windows.draw(classes, config.batch_size, rng)
    shapes = shape_columns(unit, table.level, table.bucket) if by_root else [table.bucket]
    return Windows.draw(classes, config.batch_size, rng, shapes)


def _factors(table: SliceTable, config: TupleConfig, rows: np.ndarray) -> np.ndarray:
    """What multiplies the normalised weight of each row: lambda of its granularity, times its own weight."""
    factor = config.lambdas.as_array()[table.granularity[rows]]
    return factor if table.weight is None else factor * table.weight[rows]


def _micro_batch_starts(window: np.ndarray, bucket: np.ndarray, micro_batch: int) -> np.ndarray:
    """First row of each micro-batch: one window, one bucket, at most ``micro_batch`` rows."""
    runs = np.flatnonzero(np.append(True, (window[1:] != window[:-1]) | (bucket[1:] != bucket[:-1])))
    return np.flatnonzero(place_in_run(runs, len(window)) % micro_batch == 0)


def _assemble(
    rows: np.ndarray, weights: np.ndarray, starts: np.ndarray, window: np.ndarray, roots: np.ndarray, epoch: int
) -> list[Update]:
    bounds = np.append(starts, len(rows)).tolist()
    batches = [MicroBatch(rows[begin:end], weights[begin:end]) for begin, end in pairwise(bounds)]
    first = np.append(run_starts(window[starts]), len(starts)).tolist()
    return [
        Update(epoch, index, int(roots[index]), tuple(batches[begin:end]))
        for index, (begin, end) in enumerate(pairwise(first))
    ]
