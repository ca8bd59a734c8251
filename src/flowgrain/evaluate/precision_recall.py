"""Precision and recall (Kynkaanniemi et al. 2019, Eq. 1 and 2), density and coverage (Naeem et al. 2020, Eq. 3 and 4).

Each set is covered by balls: around every row one that reaches to its k-th nearest other row.

    precision   share of the generated pictures that lie in a ball of the references         k = 3
    recall      share of the references that lie in a ball of the generated pictures         k = 3
    density     mean number of reference balls that hold a generated picture, divided by k   k = 5
    coverage    share of the references whose ball holds a generated picture                 k = 5

As in ADM's evaluator a row is not its own neighbour and the border belongs to the ball; distances are float64 here,
float16 there. They are made block by block, so that memory does not grow with the number of pairs. Recall rises with
the number of generated pictures, so arms are compared at equal numbers only.

Leaving out a prompt takes its balls away, and the radii of the others are left as they are: leaving them to grow would
give back a part of what recall loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import JACKKNIFE, FeatureSet, Metric, Statistic, check_finite, row_blocks

SAME = 1e-12
"""Squared distances below this share of the squared norms are rounding: the rows are one."""
NOBODY = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Overlap:
    """How two sets lie in each other's balls. A ball belongs to the cluster of the row that it is drawn around."""

    k: int
    held: Int[np.ndarray, " n"]
    """Number of reference balls that hold each generated row."""
    recalled: Int[np.ndarray, "2 m"]
    """Least and greatest cluster of the generated balls that hold each reference; NOBODY and -1 if none does."""
    covered: Int[np.ndarray, "2 m"]
    """The same of the generated rows that lie in each reference's ball."""

    @property
    def precision(self) -> float:
        """In [0, 1]."""
        return float((self.held > 0).mean())

    @property
    def recall(self) -> float:
        """In [0, 1]."""
        return float((self.recalled[1] >= 0).mean())

    @property
    def density(self) -> float:
        """At least 0; 1 is expected of two samples of one distribution, and it may exceed 1."""
        return float(self.held.mean() / self.k)

    @property
    def coverage(self) -> float:
        """In [0, 1]."""
        return float((self.covered[1] >= 0).mean())


def overlap(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    k: int,
    clusters: Int[np.ndarray, " n"] | None = None,
    block: int = 4096,
) -> Overlap:
    """Balls of the generated rows ``x`` and the references ``y``; ``clusters`` numbers the rows of ``x`` from 0.

    Raises :class:`ConfigError` for k below 1, :class:`~flowgrain.errors.DataError` for fewer than k + 1 rows.
    """
    if k < 1:
        raise ConfigError(f"nearest neighbour number {k}: must be at least 1; 3 for precision and recall")
    for rows, name in ((x, "generated"), (y, "references")):
        check_finite(rows, name, at_least=k + 1)
    clusters = np.zeros(len(x), dtype=np.int64) if clusters is None else clusters
    reach_x, reach_y = nearest_distances(x, k, block), nearest_distances(y, k, block)
    held = np.zeros(len(x), dtype=np.int64)
    recalled, covered = (np.tile([[NOBODY], [-1]], len(y)) for _ in range(2))
    for rows in row_blocks(len(x), block):
        for columns in row_blocks(len(y), block):
            squared = squared_distances(x[rows], y[columns])
            around_references = squared <= reach_y[columns]
            held[rows] += around_references.sum(axis=1)
            _note(covered[:, columns], around_references, clusters[rows])
            _note(recalled[:, columns], squared <= reach_x[rows, None], clusters[rows])
    return Overlap(k, held, recalled, covered)


def precision_recall(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int = 3) -> tuple[float, float]:
    """Precision and recall of the generated rows ``x`` against the references ``y``."""
    found = overlap(x, y, k)
    return found.precision, found.recall


def density_coverage(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int = 5) -> tuple[float, float]:
    """Density and coverage of the generated rows ``x`` against the references ``y``."""
    found = overlap(x, y, k)
    return found.density, found.coverage


def nearest_distances(x: Float[np.ndarray, "n d"], k: int, block: int = 4096) -> Float[np.ndarray, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    reach = np.empty(len(x))
    for rows in row_blocks(len(x), block):
        nearest = np.empty((rows.stop - rows.start, 0))
        for columns in row_blocks(len(x), block):
            squared = squared_distances(x[rows], x[columns])
            if columns == rows:
                np.fill_diagonal(squared, np.inf)
            nearest = np.concatenate([nearest, squared], axis=1)
            if nearest.shape[1] > k:
                nearest = np.partition(nearest, k - 1, axis=1)[:, :k]
        reach[rows] = nearest.max(axis=1)
    return reach


def squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """Squared Euclidean distances in float64; exactly 0 where rows differ by no more than rounding."""
    origin = y.mean(axis=0, dtype=np.float64)  # near the data, so that little cancels
    x, y = x - origin, y - origin
    norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    squared = norms - 2 * (x @ y.T)
    squared[squared <= SAME * norms] = 0.0
    return squared


def _note(ends: Int[np.ndarray, "2 m"], held: np.ndarray, clusters: Int[np.ndarray, " n"]) -> None:
    """Widen the least and greatest cluster of each column by the rows that hold it."""
    least = np.where(held, clusters[:, None], NOBODY).min(axis=0)
    greatest = np.where(held, clusters[:, None], -1).max(axis=0)
    np.minimum(ends[0], least, out=ends[0])
    np.maximum(ends[1], greatest, out=ends[1])


_SHARED: WeakKeyDictionary[FeatureSet, dict[int, tuple[np.ndarray, Overlap]]] = WeakKeyDictionary()
"""Overlaps of the arms at hand by k, with the clusters they are for: the metrics below read one and the same."""


class ManifoldMetric(Metric):
    """Precision, recall, density or coverage of the generated pictures against the reference pool."""

    higher_is_better = True
    needs_own_reference = False
    small_sample = 10_000
    small_sample_note = (
        "precision, recall, density and coverage depend on these numbers; compare arms at equal ones only, not with "
        "published values, and read the kernel distance"
    )
    interval = JACKKNIFE

    def __init__(self, kind: Literal["precision", "recall", "density", "coverage"], k: int | None = None):
        self.kind = kind
        self.k = k if k is not None else 3 if kind in ("precision", "recall") else 5
        self.title = f"{kind} (k = {self.k})"
        self.bounds = (0.0, float("inf") if kind == "density" else 1.0)

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        return lambda rows: self._value(overlap(features.generated[rows], features.pool, self.k))

    def left_out(
        self, features: FeatureSet, clusters: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[float, Float[np.ndarray, " g"]]:
        """See :meth:`Metric.left_out`; the radii of the other rows stay as they are."""
        sizes = np.array([len(rows) for rows in clusters])
        numbers = np.empty(len(features.generated), dtype=np.int64)
        numbers[np.concatenate(clusters)] = np.repeat(np.arange(len(clusters)), sizes)
        found = self._shared_overlap(features, numbers)
        value = self._value(found)
        if self.kind in ("precision", "density"):
            held = found.held > 0 if self.kind == "precision" else found.held / self.k
            left_out = (held.sum() - np.bincount(numbers, held)) / (len(held) - sizes)
        else:
            least, greatest = found.recalled if self.kind == "recall" else found.covered
            only = np.bincount(least[least == greatest], minlength=len(clusters))
            left_out = value - only / len(least)
        return value, left_out

    def _value(self, found: Overlap) -> float:
        values = {
            "precision": found.precision,
            "recall": found.recall,
            "density": found.density,
            "coverage": found.coverage,
        }
        return values[self.kind]

    def _shared_overlap(self, features: FeatureSet, numbers: Int[np.ndarray, " n"]) -> Overlap:
        by_k = _SHARED.setdefault(features, {})
        if self.k not in by_k or not np.array_equal(by_k[self.k][0], numbers):
            by_k[self.k] = (numbers, overlap(features.generated, features.pool, self.k, numbers))
        return by_k[self.k][1]


PRECISION_RECALL: tuple[Metric, ...] = (ManifoldMetric("precision"), ManifoldMetric("recall"))
DENSITY_COVERAGE: tuple[Metric, ...] = (ManifoldMetric("density"), ManifoldMetric("coverage"))
