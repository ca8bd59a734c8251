"""Mean and covariance of features that do not fit into memory (Chan, Golub and LeVeque 1983, Eq. 2.1 and 3.1)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.base import check_finite, row_blocks


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features: all that a Frechet distance asks of a set."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    """Normalised by ``count - 1``, as ``numpy.cov`` does."""
    count: int | None = None
    """Number of rows; None where published statistics do not tell it."""

    def __post_init__(self):
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise DataError(f"mean or covariance of {len(self.mean)} features is not finite")


class MomentAccumulator:
    """Adds chunks of rows; memory is one chunk and one (d, d) matrix, in float64 whatever the chunks are."""

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))
        """Sum of outer products of the centred rows."""

    def add(self, chunk: Float[np.ndarray, "n d"]) -> None:
        """Take in the rows of ``chunk``. Raises :class:`DataError` for a non-finite row."""
        if not len(chunk):
            return
        check_finite(chunk, f"features from row {self.count} on", at_least=1)
        rows = chunk.astype(np.float64)
        mean = rows.mean(axis=0)
        rows -= mean
        self._merge(len(rows), mean, rows.T @ rows)

    def merge(self, other: "MomentAccumulator") -> None:
        """Take in all rows that ``other`` has seen, for example those of another process."""
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: Float[np.ndarray, " d"], scatter: Float[np.ndarray, "d d"]) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.count * count / total))
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def moments(self) -> Moments:
        """Mean and covariance so far. Raises :class:`DataError` for fewer than 2 rows."""
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 feature rows, got {self.count}: add pictures")
        return Moments(self.mean.copy(), self.scatter / (self.count - 1), self.count)


def moments_of(features: Float[np.ndarray, "n d"]) -> Moments:
    """Moments of an array, which may be memory-mapped."""
    return moments_of_chunks(features[block] for block in row_blocks(len(features)))


def moments_of_chunks(chunks: Iterable[Float[np.ndarray, "_ d"]]) -> Moments:
    """Moments of rows that come in chunks. Raises :class:`DataError` for fewer than 2 rows in all."""
    accumulator: MomentAccumulator | None = None
    for chunk in chunks:
        accumulator = accumulator or MomentAccumulator(chunk.shape[1])
        accumulator.add(chunk)
    if accumulator is None:
        raise DataError("a covariance needs at least 2 feature rows, got none: add pictures")
    return accumulator.moments()
