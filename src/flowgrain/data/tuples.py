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
from flowgrain.data.records import MicroBatch, Update
from flowgrain.errors import DataError
from flowgrain.granularity import GRANULARITIES
from flowgrain.rng import numpy_generator


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

    def __post_init__(self):
        lengths = {len(self.root), len(self.granularity), len(self.level), len(self.bucket)}
        if len(lengths) != 1:
            raise ValueError(f"columns of a slice table must have one length, got {sorted(lengths)}")
        if len(self) and not 0 <= self.granularity.min() <= self.granularity.max() < len(GRANULARITIES):
            raise ValueError(f"granularity indices must lie in 0 to {len(GRANULARITIES) - 1}")

    def __len__(self) -> int:
        return len(self.root)


class GranularityWeights(Config):
    """lambda of Eq. 6: one factor a granularity."""

    macro: float = Field(default=1.0, gt=0, description="factor of macro slices")
    meso: float = Field(default=1.0, gt=0, description="factor of meso slices")
    micro: float = Field(default=1.0, gt=0, description="factor of micro slices")

    def as_array(self) -> np.ndarray:
        """The factors by granularity index, float64."""
        return np.array([self.macro, self.meso, self.micro])


class TupleConfig(Config):
    """How slices are grouped into updates and weighted."""

    grouping: Literal["root", "slice"] = Field(
        default="root",
        description="unit of an update: 'root' keeps the slices of a root together, 'slice' draws them alone",
    )
    batch_size: int = Field(default=8, ge=1, description="units (roots or slices) an update, over all processes")
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="most slices a forward pass; memory only, results do not change; null: batch_size",
    )
    reduction: Literal["root", "level", "slice", "literal"] = Field(
        default="root",
        description="mean over levels in a root then roots, over levels in an update, over slices; or Algorithm 2",
    )
    lambdas: GranularityWeights = Field(
        default_factory=GranularityWeights, description="lambda of each granularity in the loss of a root"
    )
    homogeneous: bool = Field(
        default=True,
        description="put roots that have the same levels in the same update where possible (grouping root)",
    )
    drop_last: bool = Field(default=False, description="skip the smaller update that may end an epoch")

    @model_validator(mode="after")
    def _literal_needs_tuples(self) -> "TupleConfig":
        if self.reduction == "literal" and self.grouping == "slice":
            raise ValueError("reduction 'literal' sums the batches of a tuple and needs grouping 'root'")
        return self


def plan_epoch(table: SliceTable, config: TupleConfig, seed: int, epoch: int) -> list[Update]:
    """The updates of one epoch; every slice is in exactly one of them (but for ``drop_last``).

    Weights sum to 1 an update where all lambdas are 1, except with reduction ``literal``. The last update may be
    smaller; its weights then count its own units. Raises :class:`DataError` where nothing is left to train on.
    """
    if not len(table):
        raise DataError("no slices to plan: the data set is empty")
    rng = numpy_generator(seed, epoch, "plan")
    if config.grouping == "root":
        unit = _compact(table.root)
        signature = _signatures(unit, table.level) if config.homogeneous else np.zeros(int(unit.max()) + 1, np.int64)
    else:
        unit = np.arange(len(table))
        signature = np.zeros(len(table), np.int64)
    windows = _Windows.draw(signature, config.batch_size, rng)
    rows = np.lexsort((windows.position[unit], table.bucket, windows.of_unit[unit]))
    if config.drop_last and len(signature) % config.batch_size:
        rows = rows[windows.of_unit[unit[rows]] < windows.count - 1]
        if not len(rows):
            raise DataError(
                f"drop_last leaves no update: {len(signature)} units, batch_size {config.batch_size}; "
                "lower batch_size or set drop_last to false"
            )
    window = windows.of_unit[unit[rows]]
    starts = _micro_batch_starts(window, table.bucket[rows], config.micro_batch or config.batch_size)
    weights = _weights(table, config, rows, unit, window, starts)
    return _assemble(rows, weights, starts, window, windows.sizes, epoch)


def shard(update: Update, rank: int, world: int) -> Update:
    """The part of an update that process ``rank`` of ``world`` runs, with the weights of the whole.

    Micro-batches larger than an even share are cut, then dealt largest first to the process with fewest slices.
    Every process gets the same number: those short of it repeat a slice with weight 0, since collective operations
    must meet. The sum of gradients over processes is the gradient of the update.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0 to world - 1, got rank {rank} of world {world}")
    if world == 1:
        return update
    total = sum(len(batch.slices) for batch in update.micro_batches)
    share = -(-total // world)
    pieces = [
        MicroBatch(batch.slices[start : start + share], batch.weights[start : start + share])
        for batch in update.micro_batches
        for start in range(0, len(batch.slices), share)
    ]
    parts: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for index in sorted(range(len(pieces)), key=lambda i: -len(pieces[i].slices)):
        poorest = loads.index(min(loads))
        parts[poorest].append(index)
        loads[poorest] += len(pieces[index].slices)
    own = tuple(pieces[index] for index in sorted(parts[rank]))
    idle = MicroBatch((own[0] if own else pieces[0]).slices[:1], np.zeros(1))
    padding = max(len(part) for part in parts) - len(own)
    return Update(update.epoch, update.index, update.roots, own + (idle,) * padding)


def plan_hash(updates: Sequence[Update]) -> str:
    """Hexadecimal digest of a plan: order, micro-batches, slices and weights. A resumed run compares it."""
    digest = hashlib.blake2b(digest_size=16)
    for update in updates:
        shape = [update.epoch, update.index, update.roots, *(len(batch.slices) for batch in update.micro_batches)]
        digest.update(np.array([len(shape), *shape], dtype="<i8").tobytes())
        digest.update(np.concatenate([batch.slices for batch in update.micro_batches]).astype("<i8").tobytes())
        digest.update(np.concatenate([batch.weights for batch in update.micro_batches]).astype("<f8").tobytes())
    return digest.hexdigest()


def co_occurrence(updates: Sequence[Update], table: SliceTable) -> float:
    """Share of the roots with two or more slices whose slices all meet in one update; 1 where there is none such."""
    step = np.full(len(table), -1)
    for number, update in enumerate(updates):
        for batch in update.micro_batches:
            step[batch.slices] = number
    root = _compact(table.root)
    order = np.argsort(root, kind="stable")
    starts = _run_starts(root[order])
    first, last = np.minimum.reduceat(step[order], starts), np.maximum.reduceat(step[order], starts)
    several = np.diff(np.append(starts, len(root))) > 1
    return float(np.mean(((first == last) & (first >= 0))[several])) if several.any() else 1.0


@dataclass(frozen=True)
class _Windows:
    """Which window each unit is in, and its place in the epoch's shuffled order."""

    of_unit: np.ndarray
    position: np.ndarray
    sizes: np.ndarray

    @property
    def count(self) -> int:
        return len(self.sizes)

    @staticmethod
    def draw(signature: np.ndarray, batch_size: int, rng: np.random.Generator) -> "_Windows":
        """Full windows of one signature each, then windows of the pooled remainders; shuffled, the short one last."""
        units = len(signature)
        shuffled = rng.permutation(units)
        position = np.empty(units, np.int64)
        position[shuffled] = np.arange(units)
        by_class = shuffled[np.argsort(signature[shuffled], kind="stable")]
        starts = _run_starts(signature[by_class])
        lengths = np.diff(np.append(starts, units))
        place = np.arange(units) - np.repeat(starts, lengths)
        full = place < np.repeat(lengths // batch_size * batch_size, lengths)
        pooled = by_class[~full]
        pooled = pooled[np.argsort(position[pooled])]
        order = np.concatenate([by_class[full], pooled])
        full_windows, rest = divmod(units, batch_size)
        number = rng.permutation(full_windows)
        if rest:
            number = np.append(number, full_windows)
        of_unit = np.empty(units, np.int64)
        of_unit[order] = number[np.arange(units) // batch_size]
        return _Windows(of_unit, position, np.bincount(of_unit))


def _compact(codes: np.ndarray) -> np.ndarray:
    """Codes replaced by their ranks, 0 to n - 1."""
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _run_starts(values: np.ndarray) -> np.ndarray:
    """Index of the first entry of each run of equal values."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1]))


def _signatures(unit: np.ndarray, level: np.ndarray) -> np.ndarray:
    """A code of each unit's set of levels: equal codes, equal sets."""
    level = _compact(level)
    signature = np.zeros(int(unit.max()) + 1, np.int64)
    for code in range(int(level.max()) + 1):
        present = np.zeros_like(signature)
        present[unit[level == code]] = 1
        signature = _compact(2 * signature + present)
    return signature


def _micro_batch_starts(window: np.ndarray, bucket: np.ndarray, micro_batch: int) -> np.ndarray:
    """First row of each micro-batch: one window, one bucket, at most ``micro_batch`` rows."""
    changes = np.append(True, (window[1:] != window[:-1]) | (bucket[1:] != bucket[:-1]))
    runs = np.flatnonzero(changes)
    place = np.arange(len(window)) - np.repeat(runs, np.diff(np.append(runs, len(window))))
    return np.flatnonzero(place % micro_batch == 0)


def _weights(
    table: SliceTable, config: TupleConfig, rows: np.ndarray, unit: np.ndarray, window: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Weight of each row's loss in its window's objective (spec c.2; Eq. 6)."""
    factor = config.lambdas.as_array()[table.granularity[rows]]
    group, level = unit[rows], table.level[rows]
    if config.grouping == "slice" or config.reduction == "slice":
        return factor / np.bincount(window)[window]
    if config.reduction == "literal":
        lengths = np.diff(np.append(starts, len(rows)))
        return factor / np.repeat(lengths, lengths)
    if config.reduction == "level":
        return factor / _level_shares(window, level)
    roots_in_window = np.bincount(_distinct(window, group)[0])[window]
    return factor / (roots_in_window * _level_shares(group, level))


def _level_shares(group: np.ndarray, level: np.ndarray) -> np.ndarray:
    """K_g * n_gk of each row: levels present in its group times the rows of its own level there."""
    groups, counts, pair = _distinct(group, level)
    return np.bincount(groups)[group] * counts[pair]


def _distinct(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs: the first entry of each, its number of rows, and each row's pair."""
    second = _compact(second)
    width = int(second.max()) + 1
    pairs, inverse, counts = np.unique(first * width + second, return_inverse=True, return_counts=True)
    return pairs // width, counts, inverse.reshape(-1)


def _assemble(
    rows: np.ndarray, weights: np.ndarray, starts: np.ndarray, window: np.ndarray, roots: np.ndarray, epoch: int
) -> list[Update]:
    bounds = np.append(starts, len(rows)).tolist()
    batches = [MicroBatch(rows[begin:end], weights[begin:end]) for begin, end in pairwise(bounds)]
    first = np.append(_run_starts(window[starts]), len(starts)).tolist()
    return [
        Update(epoch, index, int(roots[index]), tuple(batches[begin:end]))
        for index, (begin, end) in enumerate(pairwise(first))
    ]
