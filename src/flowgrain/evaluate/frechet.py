"""Frechet distance of two Gaussians fitted to features (Dowson and Landau 1982; Heusel et al. 2017, Eq. 6).

    d^2 = |mu_x - mu_y|^2 + tr S_x + tr S_y - 2 tr (S_x S_y)^(1/2)

With factors S_x = A^T A and S_y = B^T B the eigenvalues of S_x S_y are the squared singular values of A B^T, so the
last trace is a nuclear norm. No matrix square root is taken: the result is exact for rank-deficient covariances,
where ``scipy.linalg.sqrtm`` is not.

On the pooled features of the published Inception network this is the FID, on its spatial features the sFID.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from flowgrain.evaluate.base import JACKKNIFE, FeatureSet, Metric, Statistic
from flowgrain.evaluate.frechet_left_out import distances_left_out
from flowgrain.evaluate.gaussian import Gaussian, fit_gaussian, gaussian_distance, gaussian_of_moments
from flowgrain.evaluate.moments import Moments


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to ``x`` and ``y``, in float64, never below 0.

    Raises :class:`~flowgrain.errors.DataError` for fewer than 2 rows or non-finite values.
    """
    return gaussian_distance(fit_gaussian(x, "generated"), fit_gaussian(y, "references"))


def frechet_distance_of_moments(x: Moments, y: Moments) -> float:
    """The same distance from means and covariances, as published reference statistics give them."""
    return gaussian_distance(gaussian_of_moments(x), gaussian_of_moments(y))


class FrechetDistance(Metric):
    """Frechet distance of the generated pictures to the reference pool, or to published ``references``.

    Biased upwards for few pictures. ``source`` names the published statistics, and so the result.
    """

    higher_is_better = False
    needs_own_reference = False
    small_sample = 2048
    small_sample_note = "a Frechet distance is biased for few pictures; read the kernel distance, which is not"
    bounds = (0.0, float("inf"))
    interval = JACKKNIFE

    def __init__(self, references: Moments | None = None, source: str = ""):
        self._moments = references
        self._references = None if references is None else gaussian_of_moments(references)
        self.title = f"Frechet distance to {source}" if source else "Frechet distance"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`."""
        references = self._fitted_references(features)
        return lambda rows: gaussian_distance(fit_gaussian(features.generated[rows], "generated"), references)

    def reference_count(self, features: FeatureSet) -> int | None:
        """See :meth:`Metric.reference_count`."""
        return len(features.pool) if self._moments is None else self._moments.count

    def left_out(
        self, features: FeatureSet, clusters: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[float, Float[np.ndarray, " g"]]:
        """See :meth:`Metric.left_out`."""
        fitted = fit_gaussian(features.generated, "generated")
        return distances_left_out(features.generated, fitted, self._fitted_references(features), clusters)

    def _fitted_references(self, features: FeatureSet) -> Gaussian:
        return self._references or fit_gaussian(features.pool, "references")
