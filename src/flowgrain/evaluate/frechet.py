"""Frechet distance of two Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, Eq. 6).

    d^2 = |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With centred features X (n, d) and Y (m, d), S_x = X^T X / (n - 1). The eigenvalues of S_x S_y are the squared singular
values of X Y^T / sqrt((n - 1)(m - 1)), so the last trace is a nuclear norm. No matrix square root is taken: the
result is exact for rank-deficient covariances, where ``scipy.linalg.sqrtm`` is not.
"""

import numpy as np
from jaxtyping import Float, Int

from flowgrain.evaluate.base import FeatureSet, Metric, Statistic, checked_pair


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to ``x`` and ``y``, in float64, never below 0."""
    return _statistic(x, y)(np.arange(len(x)))


def _statistic(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Statistic:
    x, y = checked_pair(x, y, at_least=2)
    origin = y.mean(axis=0)
    x, y = x - origin, y - origin
    if len(y) > y.shape[1]:
        y_factor = np.linalg.qr(y, mode="r")
    else:
        y_factor = y
    y_factor = y_factor / np.sqrt(len(y) - 1)
    y_trace = float(np.square(y_factor).sum())
    cross = x @ y_factor.T
    squares = np.square(x).sum(axis=1)

    def distance(rows: Int[np.ndarray, " k"]) -> float:
        # a row drawn c times is one row scaled by sqrt(c): the same singular values from a smaller matrix
        distinct, counts = np.unique(rows, return_counts=True)
        total = len(rows)
        mean = counts @ x[distinct] / total
        x_trace = (counts @ squares[distinct] - total * (mean @ mean)) / (total - 1)
        centred = np.sqrt(counts / (total - 1))[:, None] * (cross[distinct] - mean @ y_factor.T)
        nuclear = np.linalg.svd(centred, compute_uv=False).sum()
        return max(float(mean @ mean + x_trace + y_trace - 2 * nuclear), 0.0)

    return distance


class FrechetDistance(Metric):
    """Frechet distance of the generated pictures to the reference pool; biased upwards for few pictures."""

    title = "Frechet distance"
    higher_is_better = False
    needs_own_reference = False
    small_sample = 2048
    small_sample_note = "a Frechet distance is biased for few pictures; read the kernel distance, which is not"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        return _statistic(features.generated, features.pool)
