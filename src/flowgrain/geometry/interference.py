"""Residuals, the data interference matrix and the losses that it splits.

Semantic Granularity Alignment, section 3.1 and Appendices B, C, E.1 (Eqs. 1, 3, 15-18, 20-24, 28, 35-38, Corollary 1).
Queries are rows (m), groups g, flattened latents d. Everything is differentiable in the model's velocity.

Exact, whatever the partition: Eq. 20 and the split of Eq. 3. Not a theorem: that a negative entry of Omega slows
training. Only sum_xi alpha_xi Delta_xi moves the model (Eq. 38), so that with the fields fixed a negative cross term
lowers the local loss; conflict between *updates* is about gradients (Eq. 45, ``kernel``). Two further points:

* At the optimum, v = u_t, the matrix is not 0: then Delta_xi = u_t - u_t^xi, alpha' Omega alpha = 0 and the cross terms
  are minus the diagonal ones. A negative sum of cross terms is what a perfect model has. In general the loss is
  sum_xi alpha_xi Omega_xixi - spread, where spread = sum_xi alpha_xi |u_t^xi - u_t|^2 is not the model's doing.
* A model with a caption is fitted to the data of that caption. The equations name no condition; u_t^xi over a whole
  data set is the target of a model that has none.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.special import ndtr, ndtri
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.geometry.mixture import Terms, log_marginal, marginal_field
from flowgrain.rng import numpy_generator


def residuals(velocity: Float[Tensor, "m d"], fields: Float[Tensor, "m g d"]) -> Float[Tensor, "m g d"]:
    """Delta_xi = v - u_t^xi, Eqs. 16 and 35."""
    return velocity[:, None] - fields


def global_residual(alpha: Float[Tensor, "m g"], residual: Float[Tensor, "m g d"]) -> Float[Tensor, "m d"]:
    """e = v - u_t = sum_xi alpha_xi Delta_xi, Eq. 38."""
    return torch.einsum("mg,mgd->md", alpha, residual)


def interference_matrix(residual: Float[Tensor, "m g d"]) -> Float[Tensor, "m g g"]:
    """Omega_xieta = <Delta_xi, Delta_eta>, Eq. 18: a Gram matrix, hence symmetric and positive semi-definite."""
    return residual @ residual.mT


def pair_terms(alpha: Float[Tensor, "m g"], omega: Float[Tensor, "m g g"]) -> Float[Tensor, "m g g"]:
    """alpha_xi alpha_eta Omega_xieta, the terms of Eq. 17: what each pair adds to the local loss."""
    return alpha[:, :, None] * omega * alpha[:, None, :]


def quadratic_form(alpha: Float[Tensor, "m g"], omega: Float[Tensor, "m g g"]) -> Float[Tensor, " m"]:
    """alpha' Omega alpha, Eqs. 17, 20, 21: equal to |v - u_t|^2 (Eqs. 15, 22, 36)."""
    return torch.einsum("mg,mgh,mh->m", alpha, omega, alpha)


def kernel_loss(alpha: Float[Tensor, "m g"], residual: Float[Tensor, "m g d"]) -> Float[Tensor, " m"]:
    """1/2 |sum_xi alpha_xi Delta_xi|^2, Eq. 37: the loss whose gradient is J' e."""
    return 0.5 * global_residual(alpha, residual).square().sum(dim=1)


@dataclass(frozen=True)
class Split:
    """The two parts of Eq. 3; they sum to the local loss."""

    independent: Float[Tensor, " m"]
    """sum_xi alpha_xi^2 |Delta_xi|^2, never negative."""
    correlation: Float[Tensor, " m"]
    """sum over xi != eta of alpha_xi alpha_eta <Delta_xi, Delta_eta>, of either sign."""


def split(alpha: Float[Tensor, "m g"], omega: Float[Tensor, "m g g"]) -> Split:
    """Independent learning and residual correlation, Eq. 3."""
    terms = pair_terms(alpha, omega)
    diagonal = terms.diagonal(dim1=1, dim2=2)
    # the cross terms are summed themselves: as total minus diagonal they would drown in its rounding
    return Split(diagonal.sum(dim=1), (terms - torch.diag_embed(diagonal)).sum(dim=(1, 2)))


def field_spread(alpha: Float[Tensor, "m g"], fields: Float[Tensor, "m g d"]) -> Float[Tensor, " m"]:
    """sum_xi alpha_xi |u_t^xi - u_t|^2: the disagreement of the groups' targets, which no model changes.

    |v - u_t|^2 = sum_xi alpha_xi |Delta_xi|^2 - spread (variance about a mean): not in the paper.
    """
    marginal = torch.einsum("mg,mgd->md", alpha, fields)
    return torch.einsum("mg,mg->m", alpha, (fields - marginal[:, None]).square().sum(dim=2))


def residual_cosines(omega: Float[Tensor, "m g g"]) -> Float[Tensor, "m g g"]:
    """Omega_xieta / sqrt(Omega_xixi Omega_etaeta) in [-1, 1]; 0 where a residual is 0."""
    norm = omega.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    scale = norm[:, :, None] * norm[:, None, :]
    safe = torch.where(scale > 0, scale, 1.0)
    return torch.where(scale > 0, omega / safe, 0.0).clamp(-1, 1)


def off_diagonal_weight(alpha: Float[Tensor, "m g"]) -> Float[Tensor, " m"]:
    """sum over xi != eta of alpha_xi alpha_eta = 1 - sum alpha^2, in [0, 1 - 1/G]: 0 where one group owns the point.

    All cross terms carry this weight: where it is 0 the matrix has entries, the loss has none of them.
    """
    return (alpha * (1 - alpha)).sum(dim=1)


def modulated_weights(alpha: Float[Tensor, "m g"], factor: Float[Tensor, "m g"]) -> Float[Tensor, "m g"]:
    """alpha of the training objective when groups have time laws and loss weights of their own, proportional to factor.

    With factor = pi(t | xi) omega(t, xi) (Eqs. 29-33) times the tuple weight lambda_xi (Eq. 6), the data law at level t
    counts group xi that much more often. Weights that are equal within a group leave u_t^xi alone: granularity
    modulation acts on the quadratic form through alpha only. Not in the paper, whose equations hold at one t.
    """
    if not bool((factor >= 0).all() and (factor.sum(dim=1) > 0).all()):
        raise DataError("a group's factor is negative, or all of a query's factors are 0: there is no weight to share")
    weighted = alpha * factor
    return weighted / weighted.sum(dim=1, keepdim=True)


def flow_matching_error(velocity: Float[Tensor, "m d"], terms: Terms) -> Float[Tensor, " m"]:
    """|v - u_t|^2 at each query: the integrand of Eqs. 1 and 23."""
    return (velocity - marginal_field(terms)).square().sum(dim=1)


def conditional_error(velocity: Float[Tensor, "m d"], terms: Terms) -> Float[Tensor, " m"]:
    """E[|v - u_t(x | k)|^2 | x] at each query: the integrand of Eq. 24 after Bayes, p(k) p(x | k) = p(x) P(k | x)."""
    squared = (velocity[:, None] - terms.field).square().sum(dim=2)
    return (terms.posterior * squared).sum(dim=1)


def conditional_variance(terms: Terms) -> Float[Tensor, " m"]:
    """E[|u_t(x | k) - u_t(x)|^2 | x]: by what the two errors differ at each query, whatever the model (Corollary 1)."""
    away = terms.field - marginal_field(terms)[:, None]
    return (terms.posterior * away.square().sum(dim=2)).sum(dim=1)


def flow_matching_loss(
    velocity: Float[Tensor, "m d"], terms: Terms, log_measure: Float[Tensor, " m"]
) -> Float[Tensor, ""]:
    """L_FM at one level, Eqs. 1 and 23, by the quadrature ``sum_m exp(log_measure_m) p_t(x_m) f(x_m)``.

    Points of a grid have the cell volume as measure; points drawn from p_t have 1 / (m p_t(x)).
    """
    return ((log_measure + log_marginal(terms)).exp() * flow_matching_error(velocity, terms)).sum()


def conditional_flow_matching_loss(
    velocity: Float[Tensor, "m d"], terms: Terms, log_measure: Float[Tensor, " m"]
) -> Float[Tensor, ""]:
    """L_CFM at one level, Eq. 24: sum over components, then the same quadrature of each p_t(x | k).

    On common points Corollary 1 holds to rounding and not only in the limit: at each x, the components' densities sum
    to p_t(x) and their fields average to u_t(x). The difference to L_FM is :func:`irreducible_loss`.
    """
    joint = (log_measure[:, None] + terms.log_share + terms.log_density).exp()
    return (joint * (velocity[:, None] - terms.field).square().sum(dim=2)).sum()


def irreducible_loss(terms: Terms, log_measure: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """E |u_t(x | x1) - u_t(x)|^2 by the same quadrature: L_CFM - L_FM, free of the model (Corollary 1)."""
    return ((log_measure + log_marginal(terms)).exp() * conditional_variance(terms)).sum()


def batch_loss(velocity: Float[Tensor, "b *shape"], target: Float[Tensor, "b *shape"]) -> Float[Tensor, ""]:
    """Eq. 28: the batch mean of the squared norm. ``flow.paths.grouped_mse`` is it over the number of elements."""
    return (velocity - target).square().flatten(1).sum(dim=1).mean()


@dataclass(frozen=True, eq=False)
class BootstrapMean:
    """Means of the entries of a matrix with confidence intervals, each of the matrix's shape."""

    mean: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]


def bootstrap_mean(
    matrices: Float[np.ndarray, "n *shape"],
    clusters: Sequence[Hashable] | None = None,
    method: Literal["percentile", "bca"] = "bca",
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> BootstrapMean:
    """Mean over queries of each entry, with intervals by drawing queries (or whole ``clusters``) with replacement.

    Queries noised from one picture are not independent: name the picture of each as its cluster. Intervals are by
    entry, not simultaneous over the matrix. ``percentile``: quantiles of the replicates; ``bca``: corrected for bias
    and skewness with the jackknife's acceleration (Efron and Tibshirani 1993, chapter 14). Both are too narrow for few
    clusters (about 15 % at 8). Raises :class:`DataError` for fewer than 2 clusters or values that are not finite.
    """
    values = np.asarray(matrices, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{int((~np.isfinite(values)).sum())} entries are not finite: leave such queries out")
    if resamples < 100 or not 0 < level < 1:
        raise DataError(f"resamples {resamples}, level {level}: give at least 100 and a level between 0 and 1")
    flat = values.reshape(len(values), -1)
    sums, counts = _cluster_sums(flat, list(range(len(flat))) if clusters is None else list(clusters))
    mean = sums.sum(axis=0) / counts.sum()
    drawn = numpy_generator(seed, "bootstrap mean").multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    replicates = np.sort((drawn @ sums) / (drawn @ counts)[:, None], axis=0)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        quantiles = _bca_quantiles(replicates, mean, sums, counts, tails)
    else:
        quantiles = np.repeat(tails[:, None], flat.shape[1], axis=1)
    low, high = (_column_quantiles(replicates, row).reshape(values.shape[1:]) for row in quantiles)
    return BootstrapMean(mean.reshape(values.shape[1:]), low, high)


def _cluster_sums(
    flat: Float[np.ndarray, "n p"], clusters: list[Hashable]
) -> tuple[Float[np.ndarray, "c p"], Float[np.ndarray, " c"]]:
    """Sum of the entries and number of queries of each cluster, clusters in the order of their first query."""
    if len(clusters) != len(flat):
        raise DataError(f"{len(clusters)} cluster names for {len(flat)} queries: name one for each")
    place: dict[Hashable, int] = {}
    rows = np.array([place.setdefault(name, len(place)) for name in clusters], dtype=np.int64)
    if len(place) < 2:
        raise DataError(f"an interval needs at least 2 independent queries (or clusters), got {len(place)}")
    sums = np.zeros((len(place), flat.shape[1]))
    np.add.at(sums, rows, flat)
    return sums, np.bincount(rows).astype(np.float64)


def _bca_quantiles(
    replicates: Float[np.ndarray, "r p"],
    mean: Float[np.ndarray, " p"],
    sums: Float[np.ndarray, "c p"],
    counts: Float[np.ndarray, " c"],
    tails: Float[np.ndarray, "2"],
) -> Float[np.ndarray, "2 p"]:
    """Which quantiles of the replicates are the ends of each entry's BCa interval."""
    r = len(replicates)
    below = (replicates < mean).mean(axis=0) + 0.5 * (replicates == mean).mean(axis=0)
    bias = ndtri(np.clip(below, 0.5 / r, 1 - 0.5 / r))
    left_out = (sums.sum(axis=0) - sums) / (counts.sum() - counts)[:, None]
    away = left_out.mean(axis=0) - left_out
    scale = (away**2).sum(axis=0) ** 1.5
    # an entry that never varies has no skewness
    acceleration = np.divide((away**3).sum(axis=0), 6 * scale, out=np.zeros_like(scale), where=scale > 0)
    z = bias + ndtri(tails)[:, None]
    return ndtr(bias + z / (1 - acceleration * z))


def _column_quantiles(sorted_columns: Float[np.ndarray, "r p"], q: Shaped[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
    """The quantile ``q[j]`` of column j, linear between order statistics."""
    place = q * (len(sorted_columns) - 1)
    lower = np.floor(place).astype(np.int64)
    upper = np.minimum(lower + 1, len(sorted_columns) - 1)
    columns = np.arange(sorted_columns.shape[1])
    part = place - lower
    return sorted_columns[lower, columns] * (1 - part) + sorted_columns[upper, columns] * part
