"""Exact marginal and group fields of a data law under Gaussian conditional paths.

Semantic Granularity Alignment, Appendices A and C.3 (Eqs. 7-14, 19, 25-27, 34). Noise level ``t``, t = 1 is noise; the
paper writes x1 for data and lets t run the other way, which changes the sign of fields and nothing else.

A law is a finite sum over k of weighted components: the samples themselves (Eq. 8, Diracs), or Gaussians of a mixture.
Each component has a density p_t(x | k) and a field u_t(x | k) at level t, and everything else is sums over k, taken in
log-space. Memory is queries x components x dimension: the theory, and the reference for ``group_fields``, which
streams.

All in float64. ``t`` may be a tensor with gradient, so that derivatives in t are those of the formulas.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.flow.paths import Path
from flowgrain.geometry.partitions import Partition

Level = float | int | Float[Tensor, ""]
"""A noise level in [0, 1]."""


@dataclass(frozen=True)
class Moments:
    """mu_t(x1), sigma_t(x1) and their derivatives in t, a row for each data point (Eqs. 25, 27)."""

    mean: Float[Tensor, "n d"]
    std: Float[Tensor, " n"]
    d_mean: Float[Tensor, "n d"]
    d_std: Float[Tensor, " n"]


class GaussianPath(ABC):
    """Conditional paths p_t(x | x1) = N(x | mu_t(x1), sigma_t(x1)^2 I) (Eq. 25)."""

    @abstractmethod
    def moments(self, x1: Float[Tensor, "n d"], t: Level) -> Moments:
        """Means, standard deviations and derivatives at noise level ``t``."""


class AffinePath(GaussianPath):
    """The Eq. 25 of a path of the package: mu = alpha x1, sigma the same for all samples (rectified flow, VP)."""

    def __init__(self, path: Path):
        self.path = path

    def moments(self, x1: Float[Tensor, "n d"], t: Level) -> Moments:
        """See :meth:`GaussianPath.moments`."""
        alpha, sigma, d_alpha, d_sigma = scalar_coefficients(self.path, t)
        ones = torch.ones(len(x1), dtype=torch.float64, device=x1.device)
        return Moments(alpha * x1.double(), sigma * ones, d_alpha * x1.double(), d_sigma * ones)


class GeneralPath(GaussianPath):
    """Eq. 25 in full: any mean and any standard deviation, both free to depend on the sample.

    ``mean`` maps (x1, t) to (n, d) and ``std`` to (n,), in torch operations with t a scalar tensor; derivatives in t
    are taken by forward-mode differentiation.
    """

    def __init__(
        self, mean: Callable[[Tensor, Tensor], Tensor], std: Callable[[Tensor, Tensor], Tensor]
    ):  # called by torch.func, whose tensors carry no shape annotation
        self._mean = mean
        self._std = std

    def moments(self, x1: Float[Tensor, "n d"], t: Level) -> Moments:
        """See :meth:`GaussianPath.moments`."""
        level, points = as_level(t), x1.double()
        one = torch.ones_like(level)
        mean = torch.func.jvp(lambda s: self._mean(points, s), (level,), (one,))
        std = torch.func.jvp(lambda s: self._std(points, s), (level,), (one,))
        return Moments(mean=mean[0], std=std[0], d_mean=mean[1], d_std=std[1])


def as_level(t: Level) -> Float[Tensor, ""]:
    """``t`` as a float64 tensor. Raises :class:`DataError` outside [0, 1]."""
    level = torch.as_tensor(t, dtype=torch.float64)
    if not 0 <= level.item() <= 1:
        raise DataError(f"noise level t = {level.item():g} lies outside [0, 1]")
    return level


def scalar_coefficients(path: Path, t: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma, d alpha / dt, d sigma / dt of a path at one level, float64 scalars."""
    c = path.coefficients(as_level(t).view(1))
    return c.alpha.double().sum(), c.sigma.double().sum(), c.d_alpha.double().sum(), c.d_sigma.double().sum()


def sample_location(moments: Moments, noise: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Eq. 26: x = mu_t(x1) + sigma_t(x1) noise."""
    return moments.mean + moments.std[:, None] * noise


def target_flow(moments: Moments, noise: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Eq. 27: d x / dt = mu'_t(x1) + sigma'_t(x1) noise."""
    return moments.d_mean + moments.d_std[:, None] * noise


def _noise_at(x: Float[Tensor, "m d"], moments: Moments) -> Float[Tensor, "m n d"]:
    """The noise that takes each sample to each query, Eq. 26 solved; where sigma = 0 there is none."""
    if not bool((moments.std > 0).all()):
        raise DataError(
            f"sigma = {moments.std.min().item():g} at this noise level: conditional densities are point masses and "
            "have no field there; choose t > 0"
        )
    return (x.double()[:, None] - moments.mean) / moments.std[:, None]


def log_conditional(x: Float[Tensor, "m d"], moments: Moments) -> Float[Tensor, "m n"]:
    """log p_t(x | x1) of Eq. 25 for each query and sample. Raises :class:`DataError` where sigma = 0."""
    d = x.shape[1]
    return -0.5 * _noise_at(x, moments).square().sum(dim=2) - d * (moments.std.log() + 0.5 * math.log(2 * math.pi))


def conditional_field(x: Float[Tensor, "m d"], moments: Moments) -> Float[Tensor, "m n d"]:
    """u_t(x | x1): Eq. 27 at the noise that leads to x. Raises :class:`DataError` where sigma = 0."""
    return moments.d_mean + moments.d_std[:, None] * _noise_at(x, moments)


@dataclass(frozen=True)
class Terms:
    """What a law's components say at m queries: all that Eqs. 9-14 are made of."""

    log_weight: Float[Tensor, " k"]
    """log of what a component counts in Z: 0 for samples (Eq. 13 has none), log weight in a mixture."""
    log_density: Float[Tensor, "m k"]
    """log p_t(x | k)."""
    field: Float[Tensor, "m k d"]
    """u_t(x | k)."""

    @property
    def log_share(self) -> Float[Tensor, " k"]:
        """log of the components' probabilities, 1 / N for samples (Eq. 8)."""
        return torch.log_softmax(self.log_weight, dim=0)

    @property
    def posterior(self) -> Float[Tensor, "m k"]:
        """P(k | x): the Nadaraya-Watson weights of Eq. 12, which sum to 1."""
        return torch.softmax(self.log_weight + self.log_density, dim=1)


class DataLaw(ABC):
    """A distribution of data that a path carries to noise."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of components, of which groups are made."""

    @abstractmethod
    def terms(self, x: Float[Tensor, "m d"], t: Level) -> Terms:
        """Densities and fields of all components at queries ``x``."""


class EmpiricalLaw(DataLaw):
    """The samples themselves, each with probability 1 / N (Eq. 8), or in proportion to ``weights``."""

    def __init__(self, samples: Float[Tensor, "n d"], path: GaussianPath, weights: Float[Tensor, " n"] | None = None):
        if len(samples) == 0:
            raise DataError("an empirical law needs at least one sample, got none")
        self.samples = samples.double()
        self.path = path
        self._log_weight = _log_weights(torch.ones(len(samples)) if weights is None else weights, len(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def terms(self, x: Float[Tensor, "m d"], t: Level) -> Terms:
        """See :meth:`DataLaw.terms`; Eq. 9 by the sifting property. Raises :class:`DataError` where sigma = 0."""
        moments = self.path.moments(self.samples, t)
        return Terms(self._log_weight, log_conditional(x, moments), conditional_field(x, moments))


class GaussianMixtureLaw(DataLaw):
    """sum_k w_k N(m_k, C_k) carried by an affine path: p_t(x | k) = N(alpha m_k, S), S = alpha^2 C_k + sigma^2 I.

    The integral of Eq. 11 within a component is E[d x_t / dt | x_t = x, k], which is linear for a Gaussian:

        u_t(x | k) = alpha' m_k + (alpha alpha' C_k + sigma sigma' I) S^-1 (x - alpha m_k)

    C_k = 0 gives Diracs back. Covariances must be symmetric and positive semi-definite.
    """

    def __init__(
        self,
        weights: Float[Tensor, " k"],
        means: Float[Tensor, "k d"],
        covariances: Float[Tensor, "k d d"],
        path: Path,
    ):
        self._log_weight = _log_weights(weights, len(means))
        self.means = means.double()
        self.covariances = covariances.double()
        self.path = path
        smallest = torch.linalg.eigvalsh(self.covariances).min().item()
        symmetric = torch.allclose(self.covariances, self.covariances.mT, rtol=1e-10, atol=1e-12)
        if not symmetric or smallest < -1e-10 * max(1.0, self.covariances.abs().max().item()):
            raise DataError(f"a covariance is not symmetric positive semi-definite (smallest eigenvalue {smallest:g})")

    def __len__(self) -> int:
        return len(self.means)

    def terms(self, x: Float[Tensor, "m d"], t: Level) -> Terms:
        """See :meth:`DataLaw.terms`. Raises :class:`DataError` where sigma = 0 and a covariance is singular."""
        alpha, sigma, d_alpha, d_sigma = scalar_coefficients(self.path, t)
        d = x.shape[1]
        identity = torch.eye(d, dtype=torch.float64, device=x.device)
        factor, failed = torch.linalg.cholesky_ex(alpha.square() * self.covariances + sigma.square() * identity)
        if bool((failed > 0).any()):
            raise DataError("sigma = 0 at this noise level and a covariance is singular: no density; choose t > 0")
        away = x.double().T - (alpha * self.means)[:, :, None]  # k, d, m
        solved = torch.cholesky_solve(away, factor)
        distance = (away * solved).sum(dim=1).T
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        rate = alpha * d_alpha * self.covariances + sigma * d_sigma * identity
        field = (d_alpha * self.means)[:, :, None] + rate @ solved
        return Terms(self._log_weight, -0.5 * (distance + log_det + d * math.log(2 * math.pi)), field.permute(2, 0, 1))


def _log_weights(weights: Float[Tensor, " k"], count: int) -> Float[Tensor, " k"]:
    if len(weights) != count or count == 0:
        raise DataError(f"{len(weights)} weights for {count} components: give one positive weight each")
    if not bool((weights > 0).all() and weights.isfinite().all()):
        raise DataError(f"weight {weights.min().item():g} is not positive and finite: leave such components out")
    return weights.double().log()


def log_marginal(terms: Terms) -> Float[Tensor, " m"]:
    """log p_t(x), Eqs. 7-10: the log of the components' mean density."""
    return torch.logsumexp(terms.log_share + terms.log_density, dim=1)


def marginal_field(terms: Terms) -> Float[Tensor, "m d"]:
    """u_t(x), Eqs. 11 and 12: the Nadaraya-Watson mean of the conditional fields."""
    return torch.einsum("mk,mkd->md", terms.posterior, terms.field)


@dataclass(frozen=True)
class GroupFields:
    """The decomposition of Eqs. 13, 14, 19 at m queries."""

    log_z: Float[Tensor, "m g"]
    """log Z_xi(x), Eq. 13: of a sum of densities over the group, without 1 / N."""
    fields: Float[Tensor, "m g d"]
    """u_t^xi(x), Eq. 13."""

    @property
    def alpha(self) -> Float[Tensor, "m g"]:
        """alpha_xi = Z_xi / Z_total, Eqs. 14 and 19; rows sum to 1."""
        return torch.softmax(self.log_z, dim=1)

    @property
    def marginal(self) -> Float[Tensor, "m d"]:
        """sum_xi alpha_xi u_t^xi, Eqs. 2, 14, 34."""
        return torch.einsum("mg,mgd->md", self.alpha, self.fields)


def group_fields(terms: Terms, partition: Partition) -> GroupFields:
    """Z_xi and u_t^xi of Eq. 13 for any partition of the components.

    Raises :class:`DataError` unless the partition labels every component.
    """
    partition.check_length(len(terms.log_weight))
    weighted = terms.log_weight + terms.log_density
    log_z, fields = [], []
    for group in range(len(partition)):
        members = (partition.labels == group).nonzero().flatten()
        log_z.append(torch.logsumexp(weighted[:, members], dim=1))
        share = torch.softmax(weighted[:, members], dim=1)  # of the group: finite where alpha underflows to 0
        fields.append(torch.einsum("mk,mkd->md", share, terms.field[:, members]))
    return GroupFields(torch.stack(log_z, dim=1), torch.stack(fields, dim=1))
