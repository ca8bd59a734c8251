"""Kernel distance: unbiased MMD^2 with a polynomial kernel (KID; Binkowski et al. 2018, arXiv 1801.01401, Eq. 4).

    k(x, y) = (x . y / d + 1)^3
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

Unbiased at every sample size, so it may fall below 0 where both sets have one distribution.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import FeatureSet, Metric, Statistic, checked_pair
from flowgrain.rng import numpy_generator


@dataclass(frozen=True)
class PolynomialKernel:
    """(gamma x . y + coefficient)^degree; ``gamma`` None means 1 / d, as in KID."""

    degree: int = 3
    gamma: float | None = None
    coefficient: float = 1.0

    def __call__(self, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
        """The kernel matrix, float64."""
        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        return (gamma * (x @ y.T) + self.coefficient) ** self.degree


KID_KERNEL = PolynomialKernel()


def kernel_distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], kernel: PolynomialKernel = KID_KERNEL
) -> float:
    """Unbiased MMD^2 over all pairs, in float64."""
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
    x, y = checked_pair(x, y, at_least=2)
    k_xx, k_yy = kernel(x, x), kernel(y, y)
    np.fill_diagonal(k_xx, 0.0)
    references = float((k_yy.sum() - np.trace(k_yy)) / (len(y) * (len(y) - 1)))
    to_references = kernel(x, y).mean(axis=1)

    def distance(rows: Int[np.ndarray, " k"]) -> float:
        # pairs of a row with its own copy are left out, as i = j is: otherwise resampling would add a bias
        counts = np.bincount(rows, minlength=len(x)).astype(np.float64)
        total = counts.sum()
        if counts.max() == total:  # one picture drawn throughout: it has no pair, `Bootstrap.interval` skips the draw
            return float("nan")
        within = counts @ k_xx @ counts / (total**2 - counts @ counts)
        return float(within + references - 2 * (counts @ to_references) / total)

    return distance


class KernelDistance(Metric):
    """Kernel distance of the generated pictures to the reference pool."""

    title = "kernel distance"
    higher_is_better = False
    needs_own_reference = False
    small_sample = None
    small_sample_note = ""

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        return _statistic(features.generated, features.pool, KID_KERNEL)
