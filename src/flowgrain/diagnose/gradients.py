"""How the gradients of the levels meet at the checkpoints of a run, over updates of the run's own plan.

At each checkpoint updates are measured as while training with ``interference.every``
(:mod:`flowgrain.train.interference`): one gradient for each (level, half of the roots), which sum to the update's
gradient. They are taken from the plan of the epoch after the newest checkpoint's, so that noise, times and company of
the slices are none that the run has seen, and they are the same at all checkpoints, so that these compare in pairs.
Gradients are in adapter space, at the weights that pictures are drawn with, of the run's own objective (time law,
weights and lambdas included).

What single slices say about kinds of batches is in :mod:`flowgrain.diagnose.gradients_batches`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

from flowgrain import rng
from flowgrain.data.records import Update
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.gradients_batches import BatchKinds, measure_batches
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.diagnose.points import ModelPoint
from flowgrain.geometry.gradients import InteractionLog, Interactions, InteractionSummary, block_draws
from flowgrain.geometry.noise_scale import NoiseScale, NoiseScaleLog
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.interference import Interference, split
from flowgrain.train.interference_config import InterferenceConfig
from flowgrain.train.interference_line import PartProducts, plain
from flowgrain.train.runtime import ALONE
from flowgrain.train.state import CheckpointInfo
from flowgrain.train.step import LevelMeans

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PooledCosine:
    """A ratio of means over updates, with a bootstrap interval; ends are NaN where it cannot be told."""

    value: float
    """NaN where an estimated squared norm is not positive."""
    low: float
    high: float
    undefined: float
    """Share of the resamples without a value; from 5 % on there is no interval."""


@dataclass(frozen=True, eq=False)
class PointGradients:
    """The levels' gradients at one checkpoint."""

    point: str
    update: int
    levels: tuple[str, ...]
    loss: dict[str, float]
    """Mean squared error by level over the slices of the updates."""
    mean_gram: Float[np.ndarray, "g g"]
    """Mean over updates of <g_a, g_b> = Delta_a' Theta Delta_b, as the updates have it."""
    mean_gram_unbiased: Float[np.ndarray, "g g"]
    """The same between halves without a common root: products of expected gradients."""
    summary: InteractionSummary
    """Of the updates' own gradients."""
    pooled: dict[tuple[str, str], PooledCosine]
    """From the unbiased products."""
    noise: dict[str, NoiseScale]
    """By level and of the whole ``update``, in units."""
    batches: BatchKinds | None
    """Of the first and the last checkpoint; None elsewhere, and where too few roots have several slices."""

    def as_json(self) -> dict[str, Any]:
        """Plain numbers; None is what cannot be told."""
        s = self.summary
        return plain(
            {
                "point": self.point,
                "update": self.update,
                "levels": list(self.levels),
                "loss_by_level": self.loss,
                "gram": self.mean_gram.tolist(),
                "gram_unbiased": self.mean_gram_unbiased.tolist(),
                "norm": {name: asdict(value) for name, value in s.norm.items()},
                "cosine": _pairs(s.cosine),
                "cosine_unbiased": _pairs(self.pooled),
                "interaction": _pairs(s.interaction),
                "conflict": {pair: _rate(found) for pair, found in _pairs(s.conflict).items()},
                "conflict_rate": _rate(asdict(s.conflict_rate)),
                "cross_share": asdict(s.cross_share),
                "noise": {name: asdict(value) for name, value in self.noise.items()},
                "batches": None if self.batches is None else self.batches.as_json(),
            }
        )


@dataclass(frozen=True, eq=False)
class GradientsResult:
    """The gradients of all measured checkpoints."""

    unit: str
    """What is independent in the run's updates: root or slice."""
    updates: int
    epoch: int
    """Whose plan the updates are from."""
    confidence: float
    points: tuple[PointGradients, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "unit": self.unit,
            "updates": self.updates,
            "epoch": self.epoch,
            "confidence": self.confidence,
            "points": [point.as_json() for point in self.points],
        }


def measure_gradients(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> GradientsResult:
    """The levels' gradients at every checkpoint among the points; the model without adapter has none.

    Costs ``config.updates`` updates of arithmetic a checkpoint; kinds of batches take up to 96 slices more at the first
    and the last one.
    """
    points = [point for point in opened.points if point.checkpoint is not None]
    epoch = CheckpointInfo.read(opened.checkpoints[-1].path).progress.epoch + 1
    updates = planned_updates(opened, epoch, config.updates)
    measured = []
    for place, point in enumerate(points):
        progress("gradients", place, len(points))
        with opened.at(point):
            found = _measure_point(opened, config, point, updates)
            if point in (points[0], points[-1]):
                found = replace(found, batches=measure_batches(opened, epoch))
            measured.append(found)
    progress("gradients", len(points), len(points))
    unit = "slice" if opened.recipe.tuples.grouping == "slice" else "root"
    return GradientsResult(unit, len(updates), epoch, CONFIDENCE, tuple(measured))


def planned_updates(opened: OpenedRun, epoch: int, count: int) -> list[Update]:
    """The first ``count`` updates of the plan from ``epoch`` on."""
    found: list[Update] = []
    while len(found) < count:
        found += opened.plan(epoch)
        epoch += 1
    return found[:count]


def level_products(opened: OpenedRun, updates: Sequence[Update]) -> list[tuple[PartProducts, LevelMeans]]:
    """Inner products of the (level, half) gradients of each update at the adapter's present weights."""
    measure = Interference(
        InterferenceConfig(oscillation=False),
        opened.recipe.tuples,
        opened.recipe.seed,
        opened.train.dataset,
        opened.train.builder,
        opened.objective,
        opened.autocast,
        ALONE,
    )
    slices = opened.train.dataset.slices
    return [measure.products(split(update, slices, opened.recipe.tuples, opened.recipe.seed)) for update in updates]


def _measure_point(
    opened: OpenedRun, config: DiagnoseConfig, point: ModelPoint, updates: Sequence[Update]
) -> PointGradients:
    measured = level_products(opened, updates)
    levels = [name for name in GRANULARITIES if any(name in products.levels for products, _ in measured)]
    whole, unbiased = InteractionLog(levels), InteractionLog(levels)
    noise = {name: NoiseScaleLog() for name in (*levels, "update")}
    known = dict.fromkeys(noise, False)
    for products, _ in measured:
        if not np.isfinite(products.gram).all():
            continue
        whole.add(products.whole())
        unbiased.add(products.unbiased())
        for name, norms in products.noise().items():
            if norms is not None:
                noise[name].add(norms)
                known[name] = True
    draws = rng.numpy_generator(config.seed, point.update, "gradients bootstrap")
    summary = whole.summary(draws, resamples=config.resamples, confidence=CONFIDENCE)
    return PointGradients(
        point=point.name,
        update=point.update,
        levels=tuple(levels),
        loss=LevelMeans.merged([means for _, means in measured]).loss,
        mean_gram=whole.mean_gram(),
        mean_gram_unbiased=unbiased.mean_gram(),
        summary=summary,
        pooled=pooled_cosines(unbiased, draws, config.resamples),
        noise={name: log.estimate(CONFIDENCE) for name, log in noise.items() if known[name]},
        batches=None,
    )


def pooled_cosines(
    log: InteractionLog, generator: np.random.Generator, resamples: int
) -> dict[tuple[str, str], PooledCosine]:
    """Cosines of the mean Gram matrix, resampled by update; widened by a t-quantile as intervals of the log are."""
    grams = log.grams()
    count = len(grams)
    draws = block_draws(count, 1, resamples, generator)
    # a level that an update lacks is left out of the means
    known = np.isfinite(grams)
    sums = np.where(known, grams, 0.0)[draws].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = sums / known[draws].sum(axis=1)
    values = Interactions(log.levels, log.mean_gram()).cosines
    found = {}
    for i, j in combinations(range(len(log.levels)), 2):
        square = replicates[:, i, i] * replicates[:, j, j]
        fits = (replicates[:, i, i] > 0) & (replicates[:, j, j] > 0)
        cosines = replicates[fits, i, j] / np.sqrt(square[fits])
        undefined = 1 - float(fits.mean())
        low = high = math.nan
        if count > 1 and undefined < 0.05 and math.isfinite(values[i, j]):
            low, high = _widened(float(values[i, j]), cosines, count)
        found[log.levels[i], log.levels[j]] = PooledCosine(float(values[i, j]), low, high, undefined)
    return found


def _widened(value: float, replicates: Float[np.ndarray, " r"], count: int) -> tuple[float, float]:
    """Percentile ends about ``value``, for the few units that were resampled."""
    tail = (1 - CONFIDENCE) / 2
    wider = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 1 - tail) / ndtri(1 - tail)
    low, high = value + wider * (np.quantile(replicates, [tail, 1 - tail]) - replicates.mean())
    # a cosine's interval; its estimate itself may leave [-1, 1]
    return max(float(low), min(value, -1.0)), min(float(high), max(value, 1.0))


def _rate(found: dict[str, Any]) -> dict[str, Any]:
    """The widened ends of a rate, cut to [0, 1]."""
    return {**found, "low": max(found["low"], 0.0), "high": min(found["high"], 1.0)}


def _pairs(values: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    return {f"{a}-{b}": asdict(value) for (a, b), value in values.items()}
