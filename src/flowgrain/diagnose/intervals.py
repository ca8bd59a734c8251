"""Means over query points with bootstrap intervals by picture, as plain JSON."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flowgrain.geometry.interference import bootstrap_mean

Interval = dict[str, Any]
"""``mean``, ``low`` and ``high``: numbers, or nested lists of them; None where there is none."""
DIGITS = 6
"""Significant digits of a number in JSON."""


def interval(values: Float[np.ndarray, "m *shape"], pictures: Sequence[str], resamples: int, seed: int) -> Interval:
    """Mean over points of each entry; NaN marks a point that does not have the entry.

    An entry that fewer than two pictures have gets a mean and no interval.
    """
    flat = values.reshape(len(values), -1)
    shape = values.shape[1:]
    there = np.isfinite(flat)
    mean, low, high = (np.full(flat.shape[1], np.nan) for _ in range(3))
    for columns in _alike(there):
        rows = np.flatnonzero(there[:, columns[0]])
        if not len(rows):
            continue
        own = [pictures[row] for row in rows.tolist()]
        part = flat[np.ix_(rows, columns)]
        if len(set(own)) < 2:
            mean[columns] = part.mean(axis=0)
            continue
        found = bootstrap_mean(part, own, resamples=resamples, seed=seed)
        mean[columns], low[columns], high[columns] = found.mean, found.low, found.high
    return {name: plain(part.reshape(shape)) for name, part in (("mean", mean), ("low", low), ("high", high))}


def _alike(there: np.ndarray) -> list[np.ndarray]:
    """Columns that have the same points, together."""
    if not there.shape[1]:
        return []
    _, group = np.unique(there.T, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return [np.flatnonzero(group == number) for number in range(group.max() + 1)]


def plain(values: Any) -> Any:
    """Numbers and arrays as JSON: lists of floats of :data:`DIGITS` digits, None for what is not finite."""
    if isinstance(values, np.ndarray):
        return plain(values.tolist())
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, dict):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, float):
        return float(f"{values:.{DIGITS}g}") if math.isfinite(values) else None
    return values
