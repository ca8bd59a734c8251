"""Kernel distance: unbiased MMD^2 with a polynomial kernel (KID; Binkowski et al. 2018, arXiv 1801.01401, Eq. 4).

    k(x, y) = (x . y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

Unbiased at every sample size, so it may fall below 0 where both sets have one distribution. Kernel matrices are made
and summed block by block, so that memory does not grow with the number of pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import JACKKNIFE, FeatureSet, Metric, Statistic, check_finite, row_blocks
from flowgrain.rng import numpy_generator


@dataclass(frozen=True)
class PolynomialKernel:
    """(gamma x . y + coefficient)^degree; ``gamma`` None means 1 / d, as in KID."""

    degree: int = 3
    """At least 1."""
    gamma: float | None = None
    coefficient: float = 1.0

    def __call__(self, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
        """The kernel matrix, float64."""
        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        base = x @ y.T
        base *= gamma
        base += self.coefficient
        values = base.copy()
        for _ in range(self.degree - 1):  # ten times as fast as a power, which goes through the logarithm
            values *= base
        return values


KID_KERNEL = PolynomialKernel()


def kernel_distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], kernel: PolynomialKernel = KID_KERNEL
) -> float:
    """Unbiased MMD^2 over all pairs, in float64.

    Raises :class:`~flowgrain.errors.DataError` for fewer than 2 rows or non-finite values.
    """
    return _statistic(x, y, kernel)(np.arange(len(x)))


def block_kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subset_size: int,
    subsets: int = 100,
    seed: int = 0,
    kernel: PolynomialKernel = KID_KERNEL,
) -> tuple[float, float]:
    """Mean and standard deviation of the distance over random subsets without replacement (the published KID).

    Its memory is that of one subset. Raises :class:`ConfigError` for a subset larger than either set.
    """
    smaller = min(len(x), len(y))
    if not 2 <= subset_size <= smaller:
        raise ConfigError(f"subset_size {subset_size}: must lie in 2..{smaller}, the size of the smaller set")
    generator = numpy_generator(seed, "kernel distance subsets")
    values = [
        kernel_distance(
            x[generator.choice(len(x), subset_size, replace=False)],
            y[generator.choice(len(y), subset_size, replace=False)],
            kernel,
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _statistic(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], kernel: PolynomialKernel) -> Statistic:
    check_finite(x, "generated", at_least=2)
    within_references = _mean_of_pairs(y, kernel)

    def distance(rows: Int[np.ndarray, " k"]) -> float:
        # pairs of a row with its own copy are left out, as i = j is: otherwise resampling would add a bias
        distinct, counts = np.unique(rows, return_counts=True)
        total, pairs = len(rows), len(rows) ** 2 - counts @ counts
        if not pairs:  # one picture drawn throughout has no pair
            return float("nan")
        drawn = x[distinct]
        within = counts @ _sums_to_others(drawn, kernel, counts) / pairs
        return float(within + within_references - 2 * (counts @ _means_to(y, drawn, kernel)) / total)

    return distance


def _mean_of_pairs(y: Float[np.ndarray, "m d"], kernel: PolynomialKernel) -> float:
    check_finite(y, "references", at_least=2)
    return float(_sums_to_others(y, kernel, np.ones(len(y))).sum() / (len(y) * (len(y) - 1)))


def _sums_to_others(
    x: Float[np.ndarray, "n d"], kernel: PolynomialKernel, counts: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """sum_{j != i} counts_j k(x_i, x_j) for each row i."""
    sums = np.zeros(len(x))
    blocks = list(row_blocks(len(x)))
    for number, rows in enumerate(blocks):
        left = x[rows].astype(np.float64)
        for columns in blocks[number:]:
            if columns == rows:
                block = kernel(left, left)
                np.fill_diagonal(block, 0.0)
                sums[rows] += block @ counts[rows]
            else:
                block = kernel(left, x[columns].astype(np.float64))
                sums[rows] += block @ counts[columns]
                sums[columns] += counts[rows] @ block
    return sums


def _means_to(
    y: Float[np.ndarray, "m d"], x: Float[np.ndarray, "n d"], kernel: PolynomialKernel
) -> Float[np.ndarray, " n"]:
    """mean_j k(x_i, y_j) for each row i of ``x``."""
    sums = np.zeros(len(x))
    for rows in row_blocks(len(x)):
        left = x[rows].astype(np.float64)
        for columns in row_blocks(len(y)):
            sums[rows] += kernel(left, y[columns].astype(np.float64)).sum(axis=1)
    return sums / len(y)


class KernelDistance(Metric):
    """Kernel distance of the generated pictures to the reference pool."""

    title = "kernel distance"
    higher_is_better = False
    needs_own_reference = False
    small_sample = None
    small_sample_note = ""
    interval = JACKKNIFE

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        return _statistic(features.generated, features.pool, KID_KERNEL)

    def left_out(
        self, features: FeatureSet, clusters: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[float, Float[np.ndarray, " g"]]:
        """See :meth:`Metric.left_out`; exact, from the row sums of the kernel matrices."""
        x, n = features.generated, len(features.generated)
        check_finite(x, "generated", at_least=2)
        within_references = _mean_of_pairs(features.pool, KID_KERNEL)
        sums = _sums_to_others(x, KID_KERNEL, np.ones(n))
        to_references = _means_to(features.pool, x, KID_KERNEL)
        left_out = np.full(len(clusters), np.nan)
        for number, rows in enumerate(clusters):
            kept = n - len(rows)
            if kept >= 2:
                own = _sums_to_others(x[rows], KID_KERNEL, np.ones(len(rows))).sum()
                within = (sums.sum() - 2 * sums[rows].sum() + own) / (kept * (kept - 1))
                across = (to_references.sum() - to_references[rows].sum()) / kept
                left_out[number] = within + within_references - 2 * across
        return float(sums.sum() / (n * (n - 1)) + within_references - 2 * to_references.mean()), left_out
