"""Group fields of a real data set, streamed: log Z_xi, alpha_xi and u_t^xi (Eqs. 13, 14, 19) at M queries of N latents.

Semantic Granularity Alignment, Appendix A, for an affine path of the package (x_t = alpha x0 + sigma noise). Fields
are linear in the data, so that what is streamed is E[x0 | x, xi], the mean of the group's latents under the weights of
Eq. 13, with a running maximum of the log densities (streaming log-sum-exp). One pass over the latents serves all
queries and noise levels. Memory: chunk x (M + D) and (G + 2) x M x D numbers of 8 bytes; time: two matrix products of
N x M x D.

**Precision.** Squared distances come from a matrix product, |x|^2 - 2 alpha <x, y> + alpha^2 |y|^2, about the data's
own centre. Log densities are distances over 2 sigma^2 and of size D / 2; their error is about eps (|x|^2 + |y|^2) /
sigma^2. At D = 4096 and t = 0.05 that is 0.2 in float32, a fifth of every weight, and 5e-9 in float64: hence float64.
Where a distance is small beside the norms that it is the difference of (a query near its own latent, below t = 0.01)
it is computed anew from the difference itself.

**Where the decomposition says anything.** As t -> 0 the weights concentrate on the nearest latent, alpha tends to
one-hot and alpha_xi alpha_eta, the weight of every cross term, to 0. As t -> 1 alpha tends to the group shares
n_xi / N and each E[x0 | x, xi] to the group's mean. In between lies a narrow band at high noise, since distances grow
with the dimension and log N does not: a query's own latent outweighs all others while alpha^2 |y - y'|^2 / sigma^2 is
over about 8 log N (distances of white latents are 2 D: t < 0.91 at D = 4096, N = 10,000). Below the band Omega has
entries, but the loss has no cross terms: its heat map with other weights than alpha shows residuals, not the loss.
:func:`level_profiles` tells for the data at hand. A law that is smooth there too, such as a Gaussian for each group
(``mixture.GaussianMixtureLaw``), is a model of the data and no longer the empirical law of Eq. 8.

Densities are those of one space: latents of different shapes cannot be compared, and a caller groups slices by shape
first. Flips and posterior draws are samples of their own where a run trains on them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain.errors import DataError
from flowgrain.flow.paths import Path
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.geometry.interference import off_diagonal_weight
from flowgrain.geometry.partitions import Partition
from flowgrain.geometry.queries import LatentSource, coefficients_at, log_sample_weights, read_rows

_CANCELLED = 1e-4
"""Distances below this share of the norms are taken from differences: the product has lost 4 of 16 digits there."""
_PAIR_ELEMENTS = 2**22
"""Elements of the differences that are formed at once."""


@dataclass(frozen=True, eq=False)
class GroupEstimate:
    """The decomposition at M queries, each with its own noise level; float64."""

    path: Path
    x: Float[Tensor, "m d"]
    t: Float[Tensor, " m"]
    log_z: Float[Tensor, "m g"]
    """log Z_xi(x), Eq. 13 (of a sum over the group, without 1 / N; samples count by their weight if they have one)."""
    posterior_mean: Float[Tensor, "m g d"]
    """E[x0 | x_t = x, xi]: the group's clean latent as an ideal denoiser of the group sees it."""
    variance: Float[Tensor, "m g"]
    """tr Cov[x0 | x_t = x, xi], to 1e-15 of the latents' squared norm."""
    entropy: Float[Tensor, "m g"]
    """Entropy of the weights within the group, in nats."""

    @property
    def alpha(self) -> Float[Tensor, "m g"]:
        """alpha_xi, Eqs. 14 and 19."""
        return torch.softmax(self.log_z, dim=1)

    @property
    def fields(self) -> Float[Tensor, "m g d"]:
        """u_t^xi(x), Eq. 13, as a velocity d x_t / dt."""
        alpha, sigma, d_alpha, d_sigma = coefficients_at(self.path, self.t)
        inner = (d_sigma / sigma)[:, None] * self.x
        return inner[:, None] + (d_alpha - d_sigma * alpha / sigma)[:, None, None] * self.posterior_mean

    @property
    def targets(self) -> Float[Tensor, "m g d"]:
        """The group fields in what a model of this path predicts: noise, v or x0 for VP, otherwise the velocity.

        All are affine in x0, so that Eq. 14 and the quadratic form hold for each; residuals in this form are those of
        the training loss at the level.
        """
        if not isinstance(self.path, VariancePreserving):
            return self.fields
        if self.path.prediction == "sample":
            return self.posterior_mean
        alpha, sigma, _, _ = coefficients_at(self.path, self.t)
        noise = (self.x[:, None] - alpha[:, None, None] * self.posterior_mean) / sigma[:, None, None]
        if self.path.prediction == "epsilon":
            return noise
        return alpha[:, None, None] * noise - sigma[:, None, None] * self.posterior_mean

    @property
    def field_gain(self) -> Float[Tensor, " m"]:
        """|d u / d x0|: by what a distance of posterior means is multiplied in the fields; 1 / t for rectified flow."""
        alpha, sigma, d_alpha, d_sigma = coefficients_at(self.path, self.t)
        return (d_alpha - d_sigma * alpha / sigma).abs()

    @property
    def effective_samples(self) -> Float[Tensor, " m"]:
        """exp(entropy of the weights of all samples), from 1 (one owns the point) to N."""
        alpha = self.alpha
        return torch.exp(torch.special.entr(alpha).sum(dim=1) + (alpha * self.entropy).sum(dim=1))

    @property
    def conditional_variance(self) -> Float[Tensor, " m"]:
        """E[|u_t(x | x1) - u_t(x)|^2 | x], by which L_CFM exceeds L_FM at a query (Corollary 1)."""
        alpha = self.alpha
        mean = torch.einsum("mg,mgd->md", alpha, self.posterior_mean)
        between = (self.posterior_mean - mean[:, None]).square().sum(dim=2)
        return self.field_gain.square() * (alpha * (self.variance + between)).sum(dim=1)


@dataclass(frozen=True, eq=False)
class NearestEstimate:
    """Group fields from the k nearest latents of each group, with what was neglected.

    log Z, alpha and entropy are exact: every distance is computed. Means (and the variance) are those of the kept ones.
    """

    estimate: GroupEstimate
    index: Int[Tensor, "m g k"]
    """Which latents, nearest first; -1 beyond the size of a group."""
    weight: Float[Tensor, "m g k"]
    """Their share of Z_xi."""
    neglected: Float[Tensor, "m g"]
    """Share of Z_xi outside them, exact."""
    mean_error: Float[Tensor, "m g"]
    """Bound on |kept mean - E[x0 | x, xi]|.

    The full mean is (1 - eps) kept + eps rest, hence the error eps |kept - rest|, and the rest's mean lies no farther
    from the data's centre than the group's farthest latent: eps (|kept - centre| + radius).
    """

    @property
    def field_error(self) -> Float[Tensor, "m g"]:
        """Bound on the error of :attr:`GroupEstimate.fields`."""
        return self.mean_error * self.estimate.field_gain[:, None]


def estimate_group_fields(
    latents: LatentSource,
    partition: Partition,
    path: Path,
    x: Float[Tensor, "m *shape"],
    t: Float[Tensor, " m"],
    weights: Float[Tensor, " n"] | None = None,
    chunk: int = 512,
) -> GroupEstimate:
    """The decomposition of Eqs. 13 and 14 at queries ``x`` of noise levels ``t``, in one pass over all latents.

    ``weights`` count samples unequally (tuple weights, repeats); None counts each once. Runs on the device of ``x``.
    Raises :class:`DataError` for other shapes than the latents', a sigma of 0, or a partition of another length.
    """
    queries = _Scorer(latents, partition, path, x, t, chunk)
    mass = _Mass(queries, len(partition))
    total = torch.zeros(len(partition), *queries.origin.shape, dtype=torch.float64, device=x.device)
    second = torch.zeros_like(mass.peak)
    for piece in queries.pieces(latents, partition, weights, chunk):
        shrink, share = mass.add(piece)
        total[piece.group].mul_(shrink[:, None])
        alive = (share > 0).any(dim=0)  # in high dimension most weights are 0 even in float64
        rows = piece.rows[alive]
        total[piece.group].addmm_(share[:, alive], rows)
        second[:, piece.group] = second[:, piece.group] * shrink + share[:, alive] @ rows.square().sum(dim=1)
    mean = total.permute(1, 0, 2).div_(mass.mass[:, :, None])
    variance = (second / mass.mass - torch.linalg.vector_norm(mean, dim=2).square()).clamp(min=0)
    mean += queries.centre
    return GroupEstimate(path, queries.x, queries.t, mass.log_z, mean, variance, mass.entropy)


def estimate_nearest(
    latents: LatentSource,
    partition: Partition,
    path: Path,
    x: Float[Tensor, "m *shape"],
    t: Float[Tensor, " m"],
    k: int,
    weights: Float[Tensor, " n"] | None = None,
    chunk: int = 512,
) -> NearestEstimate:
    """As :func:`estimate_group_fields` from the ``k`` heaviest latents of each group, in two passes.

    It names the latents behind a field. It is not faster: all distances are needed either way, and the full sum leaves
    out what underflows. Good where densities concentrate; at high noise the reported error says that it is not.
    """
    if k < 1:
        raise DataError(f"k = {k} nearest latents of a group: give at least 1")
    queries = _Scorer(latents, partition, path, x, t, chunk)
    groups, m = len(partition), len(x)
    mass = _Mass(queries, groups)
    best = torch.full((m, groups, k), -torch.inf, dtype=torch.float64, device=x.device)
    index = torch.full((m, groups, k), -1, dtype=torch.long, device=x.device)
    rest = torch.full((m, groups), -torch.inf, dtype=torch.float64, device=x.device)
    radius = torch.zeros(groups, dtype=torch.float64, device=x.device)
    for piece in queries.pieces(latents, partition, weights, chunk):
        mass.add(piece)
        values = torch.cat([best[:, piece.group], piece.logs], dim=1)
        numbers = torch.cat([index[:, piece.group], piece.numbers.expand(m, -1)], dim=1)
        best[:, piece.group], chosen = values.topk(k, dim=1)
        # summed on its own: as 1 - kept share a small one would be rounding
        dropped = values.scatter_(1, chosen, -torch.inf).logsumexp(dim=1)
        rest[:, piece.group] = torch.logaddexp(rest[:, piece.group], dropped)
        index[:, piece.group] = numbers.gather(1, chosen)
        radius[piece.group] = torch.maximum(radius[piece.group], piece.rows.square().sum(dim=1).max().sqrt())
    mean, second = _kept_moments(latents, queries, index, torch.softmax(best, dim=2), chunk)
    neglected = (rest - mass.log_z).exp().clamp(max=1)
    norm = torch.linalg.vector_norm(mean, dim=2)
    mean_error = neglected * (norm + radius)
    variance = (second - norm.square()).clamp(min=0)
    mean += queries.centre
    estimate = GroupEstimate(path, queries.x, queries.t, mass.log_z, mean, variance, mass.entropy)
    return NearestEstimate(estimate, index, (best - mass.log_z[:, :, None]).exp(), neglected, mean_error)


@dataclass(frozen=True)
class LevelProfile:
    """What the queries of one noise level say about concentration, means over them."""

    t: float
    queries: int
    effective_samples: float
    off_diagonal_weight: float
    """Mean of 1 - sum alpha^2: the weight of all cross terms, 0 where they cannot matter."""
    alpha: tuple[float, ...]


def level_profiles(estimate: GroupEstimate) -> list[LevelProfile]:
    """By noise level, lowest first: where the weights are spread enough for a decomposition to say something."""
    alpha, effective = estimate.alpha, estimate.effective_samples
    off = off_diagonal_weight(alpha)
    profiles = []
    for level in torch.unique(estimate.t).tolist():
        rows = estimate.t == level
        profiles.append(
            LevelProfile(
                t=level,
                queries=int(rows.sum()),
                effective_samples=effective[rows].mean().item(),
                off_diagonal_weight=off[rows].mean().item(),
                alpha=tuple(alpha[rows].mean(dim=0).tolist()),
            )
        )
    return profiles


@dataclass(frozen=True, eq=False)
class _Piece:
    """The latents of one group in one chunk, about the centre, and their log densities at all queries."""

    group: int
    numbers: Int[Tensor, " c"]
    rows: Float[Tensor, "c d"]
    logs: Float[Tensor, "m c"]


class _Scorer:
    """Queries about the centre of the first chunk, which keeps the norms that cancel small."""

    def __init__(self, latents: LatentSource, partition: Partition, path: Path, x: Tensor, t: Tensor, chunk: int):
        if tuple(x.shape[1:]) != latents.shape:
            raise DataError(
                f"queries of shape {tuple(x.shape[1:])}, latents of {latents.shape}: densities live in one space, "
                "group slices by shape and give each its own queries"
            )
        if chunk < 1 or len(t) != len(x) or not bool(x.isfinite().all()):
            raise DataError(f"chunk {chunk}, {len(x)} queries, {len(t)} levels: give a finite query for each level")
        partition.check_length(len(latents))
        self.x, self.t = x.flatten(1).double(), t.double()
        self._alpha, self._sigma, _, _ = coefficients_at(path, self.t)
        if not bool((self._sigma > 0).all()):
            raise DataError(
                f"sigma = 0 at t = {self.t[self._sigma <= 0][0].item():g}: densities are points; choose t > 0"
            )
        self.centre = read_rows(latents, 0, min(chunk, len(latents)), x.device).mean(dim=0)
        self.origin = self.x - self._alpha[:, None] * self.centre
        self._norm = self.origin.square().sum(dim=1)

    def pieces(
        self, latents: LatentSource, partition: Partition, weights: Tensor | None, chunk: int
    ) -> Iterator[_Piece]:
        """All latents by chunk and group."""
        labels = partition.labels.to(self.x.device)
        logs = None if weights is None else log_sample_weights(weights, len(latents)).to(self.x.device)
        for start in range(0, len(latents), chunk):
            stop = min(start + chunk, len(latents))
            rows = read_rows(latents, start, stop, self.x.device) - self.centre
            density = self._log_density(rows)
            if logs is not None:
                density += logs[start:stop]
            for group in torch.unique(labels[start:stop]).tolist():
                members = (labels[start:stop] == group).nonzero().flatten()
                yield _Piece(group, members + start, rows[members], density[:, members])

    def _log_density(self, rows: Float[Tensor, "c d"]) -> Float[Tensor, "m c"]:
        """log p_t(x | x1), Eq. 25."""
        norms = self._alpha.square()[:, None] * rows.square().sum(dim=1) + self._norm[:, None]
        squared = norms - 2 * self._alpha[:, None] * (self.origin @ rows.T)
        close = (squared < _CANCELLED * norms).nonzero()
        for pairs in close.split(max(1, _PAIR_ELEMENTS // rows.shape[1])):
            m, c = pairs.unbind(dim=1)
            squared[m, c] = (self.origin[m] - self._alpha[m, None] * rows[c]).square().sum(dim=1)
        constant = rows.shape[1] * (self._sigma.log() + 0.5 * math.log(2 * math.pi))
        return squared.div_(-2 * self._sigma.square()[:, None]).sub_(constant[:, None])


class _Mass:
    """Streaming log-sum-exp and entropy of each query and group."""

    def __init__(self, queries: _Scorer, groups: int):
        shape = (len(queries.x), groups)
        self.peak = torch.full(shape, -torch.inf, dtype=torch.float64, device=queries.x.device)
        self.mass = torch.zeros_like(self.peak)
        self._moment = torch.zeros_like(self.peak)

    def add(self, piece: _Piece) -> tuple[Float[Tensor, " m"], Float[Tensor, "m c"]]:
        """Count a piece in; by what earlier sums shrink, and exp(log density - new peak)."""
        old, g = self.peak[:, piece.group], piece.group
        peak = torch.maximum(old, piece.logs.amax(dim=1))
        gap = torch.where(old.isinf(), 0.0, old - peak)
        shrink = torch.where(old.isinf(), 0.0, gap.exp())
        below = piece.logs - peak[:, None]
        share = below.exp()
        # sum of e^(l - peak) (l - peak), whose terms all move by the gap when the peak does
        self._moment[:, g] = shrink * (self._moment[:, g] + gap * self.mass[:, g]) + (share * below).sum(dim=1)
        self.mass[:, g] = shrink * self.mass[:, g] + share.sum(dim=1)
        self.peak[:, g] = peak
        return shrink, share

    @property
    def log_z(self) -> Float[Tensor, "m g"]:
        return self.peak + self.mass.log()

    @property
    def entropy(self) -> Float[Tensor, "m g"]:
        return (self.mass.log() - self._moment / self.mass).clamp(min=0)


def _kept_moments(
    latents: LatentSource, queries: _Scorer, index: Int[Tensor, "m g k"], weight: Float[Tensor, "m g k"], chunk: int
) -> tuple[Float[Tensor, "m g d"], Float[Tensor, "m g"]]:
    """Mean and mean squared norm of the kept latents about the centre, in a second pass."""
    (m, groups, k), d = index.shape, queries.x.shape[1]
    mean = torch.zeros(m * groups, d, dtype=torch.float64, device=index.device)
    second = torch.zeros(m * groups, dtype=torch.float64, device=index.device)
    flat, share = index.flatten(), weight.flatten()
    for start in range(0, len(latents), chunk):
        here = ((flat >= start) & (flat < start + chunk)).nonzero().flatten()
        if not len(here):
            continue
        rows = read_rows(latents, start, min(start + chunk, len(latents)), index.device) - queries.centre
        squares = rows.square().sum(dim=1)
        for entries in here.split(max(1, _PAIR_ELEMENTS // d)):
            members, owner = flat[entries] - start, entries // k
            mean.index_add_(0, owner, share[entries, None] * rows[members])
            second.index_add_(0, owner, share[entries] * squares[members])
    return mean.view(m, groups, d), second.view(m, groups)
