"""Measures, every so many updates, how the levels' gradients meet in that update.

One gradient for each (granularity, half) of the update, at the parameters that the update starts from: every slice runs
forward and backward once more, with the noise, time, flip, caption and weight that it has in the update. The parts
therefore sum to the update's gradient, and what they cost is about one update. The halves split the update's units
(roots; slices where they are drawn alone) at random, by identity. ``docs/interference.md`` says what the numbers mean.

Nothing that trains is touched: gradients are taken out of ``.grad`` before the update begins, adapter dropout draws
from a generator of its own, and no parameter is written.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowgrain import rng
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import MicroBatch, Slice, Update
from flowgrain.data.tuples import TupleConfig, shard
from flowgrain.errors import NonFiniteError
from flowgrain.geometry.gradients import gradient_gram
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.batches import BatchBuilder
from flowgrain.train.interference_config import InterferenceConfig
from flowgrain.train.interference_line import PartProducts, by_pair, interaction_log, interaction_values, plain
from flowgrain.train.interference_steps import StepSketches
from flowgrain.train.objective import Objective
from flowgrain.train.runtime import Runtime
from flowgrain.train.step import LevelMeans, accumulate

POOLED = 20
"""Measurements that the pooled cosine of a line is taken over, the line's own included."""

HALVES = (0, 1)


@dataclass(frozen=True)
class Part:
    """The slices of one granularity in one half of an update."""

    level: str
    half: int
    update: Update
    """Its slices in micro-batches, with their weights in the whole update."""
    weight: float
    units: frozenset[str]

    @property
    def name(self) -> str:
        """A name of its own among the update's parts."""
        return f"{self.level}.{self.half}"


def halves(units: Iterable[str], seed: int, epoch: int) -> dict[str, int]:
    """The half of each unit, drawn from its identity; the first has one more where their number is odd."""
    ordered = sorted(set(units), key=lambda unit: (rng.stable_seed(seed, epoch, unit, "interference half"), unit))
    return {unit: int(2 * place >= len(ordered) + len(ordered) % 2) for place, unit in enumerate(ordered)}


def split(update: Update, slices: Sequence[Slice], tuples: TupleConfig, seed: int) -> list[Part]:
    """The (granularity, half) parts of an update that have slices, coarse to fine."""
    rows = [(int(i), float(w)) for m in update.micro_batches for i, w in zip(m.slices, m.weights, strict=True)]
    unit = {i: slices[i].slice_id if tuples.grouping == "slice" else slices[i].root for i, _ in rows}
    half_of = halves(unit.values(), seed, update.epoch)
    parts = []
    for index, level in enumerate(GRANULARITIES):
        for half in HALVES:
            own = [(i, w) for i, w in rows if slices[i].granularity == index and half_of[unit[i]] == half]
            if own:
                batches = tuple(_micro_batches(own, slices, tuples.micro_batch or tuples.batch_size))
                units = frozenset(unit[i] for i, _ in own)
                part = Update(update.epoch, update.index, len(units), batches)
                parts.append(Part(level, half, part, sum(w for _, w in own), units))
    return parts


def _micro_batches(rows: list[tuple[int, float]], slices: Sequence[Slice], most: int) -> Iterable[MicroBatch]:
    """Rows of one shape together, ``most`` at a time: never more than the update's own micro-batches have."""
    by_bucket: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for row in rows:
        by_bucket.setdefault(slices[row[0]].bucket, []).append(row)
    for group in by_bucket.values():
        for start in range(0, len(group), most):
            chosen = group[start : start + most]
            yield MicroBatch(np.array([i for i, _ in chosen]), np.array([w for _, w in chosen]))


class Interference:
    """The measurements of one run; :meth:`before` and :meth:`after` stand around every update."""

    def __init__(
        self,
        config: InterferenceConfig,
        tuples: TupleConfig,
        seed: int,
        dataset: SliceDataset,
        builder: BatchBuilder,
        objective: Objective,
        autocast: Callable[[], torch.autocast],
        runtime: Runtime,
    ):
        self._every = config.every
        self._tuples = tuples
        self._seed = seed
        self._dataset = dataset
        self._builder = builder
        self._objective = objective
        self._autocast = autocast
        self._runtime = runtime
        self._line: dict[str, Any] | None = None
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=POOLED)
        watches_steps = config.oscillation and runtime.is_main  # all processes take the same steps
        self._steps = StepSketches(objective.parameters(), config.every) if watches_steps else None

    def before(self, update: Update, number: int) -> None:
        """Measure the whole ``update``, the ``number``-th of the run, where it is due; all processes come here."""
        self._line = self._measured(update) if number % self._every == 0 else None
        if self._steps is not None:
            self._steps.before(number)

    def after(self, number: int) -> dict[str, Any] | None:
        """What the log says of update ``number``, now done; None where it was not measured."""
        if self._steps is not None:
            self._steps.after(number)
        if self._line is None:
            return None
        self._recent.append({"kind": "interference", **self._line})
        pooled = interaction_log(list(self._recent), unbiased=True).pooled()
        cosines = {"cosine_pooled": by_pair(pooled.levels, pooled.cosines), "measurements_pooled": len(self._recent)}
        steps = {} if self._steps is None else {"oscillation": self._steps.measures(number)}
        return plain({**self._line, **cosines, **steps})

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, for a resumed run to log what the uninterrupted one does."""
        return self._steps.tensors() if self._steps is not None else {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what a checkpoint kept."""
        if self._steps is not None:
            self._steps.load(tensors)

    def remember(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Pool on from the measurements that the log already has."""
        self._recent.extend(line for line in lines if line["kind"] == "interference")

    def _measured(self, update: Update) -> dict[str, Any]:
        started = time.perf_counter()
        parts = split(update, self._dataset.slices, self._tuples, self._seed)
        products, means = self.products(parts)
        return {
            "epoch": update.epoch,
            "slices_in_update": update.slices,
            "loss_by_level": means.loss,
            **interaction_values(products),
            "measure_seconds": round(time.perf_counter() - started, 4),
        }

    def products(self, parts: Sequence[Part]) -> tuple[PartProducts, LevelMeans]:
        """Inner products of the parts' gradients, NaN where one is not finite, and the levels' mean losses."""
        levels = tuple(level for level in GRANULARITIES if any(part.level == level for part in parts))
        place = {(part.level, part.half): k for k, part in enumerate(parts)}
        gram, means = self._gram(parts)
        whole = np.zeros((len(levels), 2, len(levels), 2))
        weight, units = np.zeros((len(levels), 2)), np.zeros((len(levels), 2), dtype=np.int64)
        cells = [(a, h, place[level, h]) for a, level in enumerate(levels) for h in HALVES if (level, h) in place]
        for a, h, k in cells:
            weight[a, h], units[a, h] = parts[k].weight, len(parts[k].units)
            for b, other, m in cells:
                whole[a, h, b, other] = gram[k, m]
        first, second = (
            len(frozenset().union(*(part.units for part in parts if part.half == half))) for half in HALVES
        )
        return PartProducts(levels, whole, weight, units, (first, second)), means

    def _gram(self, parts: Sequence[Part]) -> tuple[np.ndarray, LevelMeans]:
        try:
            with rng.seeded(self._seed, parts[0].update.epoch, parts[0].update.index, "interference dropout"):
                taken = [self.gradient(part) for part in parts]
        except NonFiniteError:
            # the update meets it too and stops the run with its report; with dropout it may not, and the run goes on
            return np.full((len(parts), len(parts)), np.nan), LevelMeans()
        gradients = {part.name: gradient for part, (gradient, _) in zip(parts, taken, strict=True)}
        shares = self._runtime.gather([means for _, means in taken])
        return gradient_gram(gradients), LevelMeans.merged([means for share in shares for means in share])

    def gradient(self, part: Part) -> tuple[list[Tensor | None], LevelMeans]:
        """The gradient of one part, summed over processes, and its mean losses in this one; ``.grad`` is left empty."""
        parameters = self._objective.parameters()
        own = shard(part.update, self._runtime.rank, self._runtime.world)
        batches = (self._builder.build(micro, part.update.epoch) for micro in own.micro_batches)
        try:
            _, means = accumulate(self._objective, batches, self._autocast, self._runtime)
            self._runtime.sum_gradients(parameters)
            return [parameter.grad for _, parameter in parameters], means
        finally:
            for _, parameter in parameters:
                parameter.grad = None
