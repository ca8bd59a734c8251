"""Weights of the slices of a window: Eq. 6 of Semantic Granularity Alignment (spec c.2; ``docs/tuples.md``)."""

from dataclasses import replace
from typing import Literal

import numpy as np

from flowgrain.data.columns import distinct_pairs
from flowgrain.data.records import MicroBatch, Update

Reduction = Literal["root", "level", "slice", "literal"]


def normalised_weights(
    reduction: Reduction, window: np.ndarray, unit: np.ndarray, level: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Weight of each row, before lambda and slice weights; they sum to 1 a window but for ``literal``.

    ``window``, ``unit`` and ``level`` are codes of each row, ``starts`` the first row of each micro-batch.
    """
    if reduction == "slice":
        return 1 / np.bincount(window)[window]
    if reduction == "literal":
        lengths = np.diff(np.append(starts, len(window)))
        return 1 / np.repeat(lengths, lengths)
    if reduction == "level":
        return 1 / _level_shares(window, level)
    units_in_window = np.bincount(distinct_pairs(window, unit)[0])[window]
    return 1 / (units_in_window * _level_shares(unit, level))


def _level_shares(group: np.ndarray, level: np.ndarray) -> np.ndarray:
    """K_g * n_gk of each row: levels present in its group times the rows of its own level there."""
    groups, counts, pair = distinct_pairs(group, level)
    return np.bincount(groups)[group] * counts[pair]


def refactored(update: Update, factors: np.ndarray) -> Update:
    """The update with the weight of each slice times its factor (float64, by slice index); the sum stays.

    The plan is a function of data, seed and epoch; this is how what a run measures enters beside it.
    """
    total = sum(float(batch.weights.sum()) for batch in update.micro_batches)
    raised = [batch.weights * factors[batch.slices] for batch in update.micro_batches]
    scale = total / sum(float(weights.sum()) for weights in raised)
    batches = [MicroBatch(b.slices, weights * scale) for b, weights in zip(update.micro_batches, raised, strict=True)]
    return replace(update, micro_batches=tuple(batches))
