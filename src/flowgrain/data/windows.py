"""Which units (roots, or single slices) share a window, that is an optimizer step.

Windows are drawn from a shuffle; *classes* of units (roots of one level set) fill windows of their own first. With
columns of *shapes*, units of like shapes are put side by side before windows are cut, so that micro-batches, which
hold one shape, are fuller.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flowgrain.data.columns import place_in_run, ranks, run_starts

CHUNK_WINDOWS = 256
"""Windows whose units are sorted together by shape: more fills better, fewer mixes better (``docs/tuples.md``)."""

_COMPARED_INSTANCES = 4
"""Slices of one level that count when two roots are compared."""


@dataclass(frozen=True)
class Windows:
    """Which window each unit is in, and its place in the epoch's shuffled order."""

    of_unit: np.ndarray
    position: np.ndarray
    sizes: np.ndarray

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.sizes)

    @staticmethod
    def draw(
        classes: np.ndarray, batch_size: int, rng: np.random.Generator, shapes: Iterable[np.ndarray] = ()
    ) -> "Windows":
        """Full windows of one class each, then windows of the pooled remainders; shuffled, the short one last.

        Each of ``shapes`` is a column of codes, one a unit. Which units are pooled, and which end in the short
        window, is decided by the shuffle alone, so that no shape is always left over.
        """
        units = len(classes)
        shuffled = rng.permutation(units)
        position = np.empty(units, np.int64)
        position[shuffled] = np.arange(units)
        by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
        starts = run_starts(classes[by_class])
        lengths = np.diff(np.append(starts, units))
        place = place_in_run(starts, units)
        full = place < np.repeat(lengths // batch_size * batch_size, lengths)
        pooled = by_class[~full]
        pooled = pooled[np.argsort(position[pooled])]
        order = np.concatenate([by_class[full], pooled])
        full_windows, rest = divmod(units, batch_size)
        chunk = np.concatenate([place[full], np.arange(len(pooled))]) // (CHUNK_WINDOWS * batch_size)
        region = np.append(classes[by_class[full]], np.full(len(pooled), classes.max() + 1))
        kept = full_windows * batch_size
        order[:kept] = _sorted_by_shape(order[:kept], (region * (chunk.max() + 1) + chunk)[:kept], list(shapes), rng)
        number = rng.permutation(full_windows)
        if rest:
            number = np.append(number, full_windows)
        of_unit = np.empty(units, np.int64)
        of_unit[order] = number[np.arange(units) // batch_size]
        return Windows(of_unit, position, np.bincount(of_unit))


def level_sets(unit: np.ndarray, level: np.ndarray) -> np.ndarray:
    """A code of each unit's set of levels: equal codes, equal sets."""
    level = ranks(level)
    signature = np.zeros(int(unit.max()) + 1, np.int64)
    for code in range(int(level.max()) + 1):
        present = np.zeros_like(signature)
        present[unit[level == code]] = 1
        signature = ranks(2 * signature + present)
    return signature


def shape_columns(unit: np.ndarray, level: np.ndarray, bucket: np.ndarray) -> Iterator[np.ndarray]:
    """Buckets of each unit, a column for each level and each of its first few slices there; -1 where there is none."""
    level = ranks(level)
    rows = np.lexsort((bucket, level, unit))
    own, levels = unit[rows], level[rows]
    ordinal = place_in_run(run_starts(own * (int(level.max()) + 1) + levels), len(rows))
    for code in range(int(level.max()) + 1):
        for instance in range(_COMPARED_INSTANCES):
            chosen = (levels == code) & (ordinal == instance)
            if chosen.any():
                column = np.full(int(unit.max()) + 1, -1, np.int64)
                column[own[chosen]] = bucket[rows[chosen]]
                yield column


def _sorted_by_shape(
    order: np.ndarray, region: np.ndarray, shapes: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Units sorted by their shapes inside each region, those of equal shapes as they were.

    Which column counts first and which shapes are neighbours is drawn, so that few roots meet the same others in
    each epoch. The sort is reflected, as a Gray code is: where one column steps to its next value, the next column
    runs backwards, so that neighbours across the step still agree in it.
    """
    rank = ranks(region)
    for index in rng.permutation(len(shapes)) if len(order) else ():
        value = ranks(shapes[index][order])
        width = int(value.max()) + 1
        value = rng.permutation(width)[value]
        rank = ranks(rank * width + np.where(rank % 2, width - 1 - value, value))
    return order[np.argsort(rank, kind="stable")]
