"""Gaussians fitted to features, held as a factor of their covariance, and the distance of two of them.

A factor is the centred rows themselves where there are no more of them than features, else it comes from the
covariance, which is summed block by block.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowgrain.evaluate.base import check_finite
from flowgrain.evaluate.moments import Moments, moments_of

NUCLEAR_TOLERANCE = 1e-9
"""A distance may be a thousandth of the traces that it is a difference of, and should still be right to 1e-6."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian of covariance ``factor.T @ factor``; ``factor`` has as many rows as the rank can be."""

    mean: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, "r d"]

    @property
    def variance(self) -> float:
        """Trace of the covariance."""
        return float(np.square(self.factor).sum())


def gaussian_distance(x: Gaussian, y: Gaussian) -> float:
    """Squared 2-Wasserstein distance of two Gaussians."""
    shift = x.mean - y.mean
    nuclear = nuclear_norm(x.factor @ y.factor.T)
    return max(float(shift @ shift) + x.variance + y.variance - 2 * nuclear, 0.0)


def nuclear_norm(matrix: Float[np.ndarray, "a b"]) -> float:
    """Sum of the singular values, to :data:`NUCLEAR_TOLERANCE` relative.

    The roots of the eigenvalues of the smaller Gram matrix, in a third of the time, where their rounding allows it.
    """
    if not matrix.size:  # a covariance of zero has a factor without rows
        return 0.0
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    squares = np.linalg.eigvalsh(gram)
    if squares[0] > 0:
        singular = np.sqrt(squares)
        # an eigenvalue errs by a few units of rounding of the greatest, its root by that over twice the root
        error = (4 * np.finfo(np.float64).eps * squares[-1] / (2 * singular)).sum()
        if error < NUCLEAR_TOLERANCE * singular.sum():
            return float(singular.sum())
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def fit_gaussian(x: Float[np.ndarray, "n d"], name: str) -> Gaussian:
    """Mean and covariance of rows; a float32 or memory-mapped ``x`` of many rows is converted a block at a time.

    Raises :class:`~flowgrain.errors.DataError` for fewer than 2 rows or non-finite values, told by ``name``.
    """
    check_finite(x, name, at_least=2)
    if len(x) > x.shape[1]:
        return gaussian_of_moments(moments_of(x))
    mean = x.mean(axis=0, dtype=np.float64)
    return Gaussian(mean, (x - mean) / np.sqrt(len(x) - 1))


def gaussian_of_moments(moments: Moments) -> Gaussian:
    """Factor of a covariance: Cholesky where it has full rank, else its eigenvectors of non-zero eigenvalue.

    ``moments.count`` bounds the rank, so that rounding in the covariance of few rows is not taken for variance.
    """
    covariance = np.asarray(moments.covariance, dtype=np.float64)
    covariance = (covariance + covariance.T) / 2
    d = len(covariance)
    rounding = d * np.finfo(np.float64).eps
    full = d if moments.count is None else min(d, moments.count - 1)
    if full == d:
        try:
            factor = np.linalg.cholesky(covariance).T
        except np.linalg.LinAlgError:
            pass  # not positive definite: rank-deficient, or full only to rounding
        else:
            if np.square(np.diagonal(factor)).min() > rounding * np.diagonal(covariance).max():
                return Gaussian(moments.mean, factor)
    values, vectors = np.linalg.eigh(covariance)
    kept = np.flatnonzero(values > rounding * values[-1])[-full:]
    return Gaussian(moments.mean, np.sqrt(values[kept])[:, None] * vectors[:, kept].T)
