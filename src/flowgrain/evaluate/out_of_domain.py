"""Out-of-domain rate: the share of generated pictures that lie farther from the references than these from each other.

A picture's distance is the Euclidean one to its k-th nearest reference. Its limit is the conformal quantile of the
references' own distances, each to the k-th nearest of the others: the ceil((n + 1)(1 - alpha))-th smallest of n. Where
generated pictures and references are exchangeable (a perfect model), the expected rate is at most alpha, whatever the
encoder and the distribution: a reference's distance to the others alone is never below the one that the symmetric
conformal score would give it, so that the limit errs on the high side.
"""

import math

import numpy as np
from jaxtyping import Float

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import FeatureSet, Metric, Statistic, check_finite, checked_features, row_blocks

_BLOCK = 1024
"""Rows of a distance matrix that are in memory at a time."""
_ROUNDING = 1e-13


def out_of_domain(
    generated: Float[np.ndarray, "n d"], pool: Float[np.ndarray, "m d"], alpha: float = 0.05, k: int = 1
) -> np.ndarray:
    """Whether each generated picture lies beyond the limit, shape (n,), bool.

    Raises :class:`ConfigError` for alpha outside (0, 1) or k below 1, :class:`DataError` for fewer than
    :func:`references_needed` references.
    """
    needed = references_needed(alpha, k)
    if len(pool) < needed:
        raise DataError(
            f"out-of-domain rate at alpha {alpha:g} with k = {k}: {len(pool)} references, at least {needed} are "
            "needed; add references or raise alpha"
        )
    check_finite(generated, "generated", at_least=1)
    references = checked_features(pool, "references", at_least=1)
    own = _kth_distance(references, references, k, leave_out_self=True)
    rank = math.ceil((len(references) + 1) * (1 - alpha) - 1e-9)
    limit = np.sort(own)[rank - 1]
    return _kth_distance(generated, references, k, leave_out_self=False) > limit


def references_needed(alpha: float, k: int = 1) -> int:
    """Smallest number of references for which a limit exists: above 1 / alpha - 1, and k neighbours for each."""
    if not 0 < alpha < 1:
        raise ConfigError(f"out-of-domain alpha {alpha:g}: must lie between 0 and 1, for example 0.05")
    if k < 1:
        raise ConfigError(f"out-of-domain k {k}: must be at least 1")
    return max(math.ceil(1 / alpha - 1 - 1e-9), k + 1)


def _kth_distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int, leave_out_self: bool
) -> Float[np.ndarray, " n"]:
    """Distance of each row of ``x`` to its k-th nearest row of ``y``, without itself where they are the same rows."""
    origin = y.mean(axis=0)  # distances do not change, and lose fewer digits
    centred = y - origin
    squares = np.square(centred).sum(axis=1)
    distances = np.empty(len(x))
    for block in row_blocks(len(x), _BLOCK):
        rows = x[block] - origin
        scale = np.square(rows).sum(axis=1)[:, None] + squares
        squared = scale - 2 * (rows @ centred.T)
        squared[squared < _ROUNDING * scale] = 0  # copies lie at distance 0, whatever the order of the sums
        if leave_out_self:
            own = np.arange(len(rows))
            squared[own, block.start + own] = np.inf
        distances[block] = np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return distances


class OutOfDomainRate(Metric):
    """Share of generated pictures beyond the references' own distances, in [0, 1]; ``alpha`` is what chance allows."""

    higher_is_better = False
    needs_own_reference = False
    small_sample = None
    small_sample_note = ""

    def __init__(self, alpha: float = 0.05, k: int = 1):
        references_needed(alpha, k)
        self.alpha = alpha
        self.k = k
        self.title = f"out-of-domain rate (alpha {alpha:g}{f', k = {k}' if k > 1 else ''})"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`. Raises :class:`DataError` for too few references."""
        outside = out_of_domain(features.generated, features.pool, self.alpha, self.k)
        return lambda rows: float(outside[rows].mean())
