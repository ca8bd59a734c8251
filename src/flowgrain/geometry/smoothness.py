"""How smooth the target field of an empirical law is: exact Jacobian, operator norm, course with the size of the data.

Semantic Granularity Alignment, Eq. 12 (the Nadaraya-Watson field) and the speculation of E.6.3. For a Gaussian path
x_t = alpha x0 + sigma noise over data points x0_k, with softmax weights w_k(x) of -|x - alpha x0_k|^2 / (2 sigma^2),

    u(x) = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) m(x),    m(x) = sum_k w_k x0_k
    d u / d x = (sigma' / sigma) I + (alpha' - alpha sigma' / sigma) (alpha / sigma^2) Cov_w(x0)

since d m / d x = (alpha / sigma^2) Cov_w(x0). The Jacobian is symmetric, and its operator norm at x is the field's
local Lipschitz constant. Rectified flow: (1 / t) I - ((1 - t) / t^3) Cov_w(x0).

What E.6.3 says and what holds: that more data "tends to reduce the Lipschitz constant" is not a theorem. One data
point gives an affine field of norm |sigma' / sigma|, and a second one far away gives a switch between two attractors,
steeper by far. What the argument needs is many neighbours of comparable weight at x, which depends on the density of
the data and on t; :func:`smoothness_by_count` measures it, with the effective number of neighbours 1 / sum w^2 beside.

Everything is float64 and goes through the data in chunks; memory is (points x data) weights and one chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ConfigError, DataError
from flowgrain.flow.paths import Path

_CHUNK = 1024
"""Data points that are in memory at a time in float64."""
_NEGLIGIBLE = 1e-22
"""A weight that changes no covariance by more than rounding, even 100,000 times."""


@dataclass(frozen=True)
class LocalLaw:
    """What the field at given points needs of the data: its weights and their means, at one noise level."""

    data: Float[Tensor, "n d"]
    points: Float[Tensor, "b d"]
    weights: Float[Tensor, "b n"]
    mean: Float[Tensor, "b d"]
    """m(x), the posterior mean of x0."""
    identity: float
    """sigma' / sigma, factor of I in the Jacobian and of x in the field."""
    pull: float
    """alpha' - alpha sigma' / sigma, factor of m(x) in the field."""
    stretch: float
    """pull alpha / sigma^2, factor of the covariance in the Jacobian."""

    @property
    def neighbours(self) -> Float[Tensor, " b"]:
        """1 / sum_k w_k^2, the effective number of data points that decide the field at each point, in [1, n]."""
        return 1 / self.weights.square().sum(dim=1)

    def field(self) -> Float[Tensor, "b d"]:
        """u(x) of Eq. 12 at the points."""
        return self.identity * self.points + self.pull * self.mean


def local_law(data: Float[Tensor, "n d"], points: Float[Tensor, "b d"], path: Path, t: float) -> LocalLaw:
    """Weights and means at ``points`` and noise level ``t``. Raises :class:`DataError` for t outside (0, 1]."""
    if not 0 < t <= 1:
        raise DataError(f"noise level t = {t:g}: must be above 0 and at most 1, the field is undefined without noise")
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    alpha, sigma, d_alpha, d_sigma = (value.double().item() for value in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
    x = points.double()
    logits = [
        (alpha * (x @ chunk.T) - alpha**2 * chunk.square().sum(dim=1) / 2) / sigma**2
        for chunk in _chunks(data, x.device)
    ]
    weights = torch.softmax(torch.cat(logits, dim=1), dim=1)  # |x|^2 is common to all and drops out
    mean = torch.zeros_like(x)
    for chunk, part in zip(_chunks(data, x.device), weights.split(_CHUNK, dim=1), strict=True):
        mean += part @ chunk
    pull = d_alpha - alpha * d_sigma / sigma
    return LocalLaw(data, x, weights, mean, d_sigma / sigma, pull, pull * alpha / sigma**2)


def _chunks(data: Float[Tensor, "n d"], device: torch.device) -> Iterator[Tensor]:
    for chunk in data.split(_CHUNK):
        yield chunk.to(device=device, dtype=torch.float64)


def covariance_product(law: LocalLaw, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Cov_w(x0) v at each point, without a d x d matrix."""
    product = torch.zeros_like(law.mean)
    for chunk, weights in zip(_chunks(law.data, law.mean.device), law.weights.split(_CHUNK, dim=1), strict=True):
        # (x0_k - m) . v, centred before it is squared up: Cov v = sum_k w_k (x0_k - m) ((x0_k - m) . v)
        along = vectors @ chunk.T - (vectors * law.mean).sum(dim=1, keepdim=True)
        scaled = weights * along
        product += scaled @ chunk - scaled.sum(dim=1, keepdim=True) * law.mean
    return product


def jacobian_vector_product(law: LocalLaw, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """(d u / d x) v at each point; the Jacobian is symmetric, so also v' (d u / d x)."""
    return law.identity * vectors + law.stretch * covariance_product(law, vectors)


def field_jacobian(law: LocalLaw) -> Float[Tensor, "b d d"]:
    """The dense Jacobian, for small dimensions."""
    centred = law.data.to(law.mean)[None] - law.mean[:, None]
    covariance = torch.einsum("bn,bni,bnj->bij", law.weights, centred, centred)
    return law.identity * torch.eye(law.mean.shape[1]).to(law.mean) + law.stretch * covariance


@dataclass(frozen=True)
class OperatorNorm:
    """Largest absolute eigenvalue of the Jacobian at each point."""

    norm: Float[Tensor, " b"]
    """A lower bound that the iteration raises; exact at convergence."""
    change: Float[Tensor, " b"]
    """Relative change in the last iteration."""
    iterations: int


def operator_norm(
    law: LocalLaw, generator: torch.Generator, *, iterations: int = 100, tolerance: float = 1e-6
) -> OperatorNorm:
    """|d u / d x|_2 at each point by power iteration, ending early where no norm changes by more than ``tolerance``.

    The spectrum is sigma'/sigma + stretch lambda(Cov); the norm is at one of its two ends. The upper end of Cov comes
    by power iteration on Cov; its lower end is 0 where n <= d (the centred data does not span the space), else it comes
    by power iteration on (lambda_max I - Cov). Both ends converge from within, hence the lower bound.
    """
    law = _supported(law)
    top, top_change, spent = _power(lambda v: covariance_product(law, v), law, generator, iterations, tolerance)
    if len(law.data) <= law.mean.shape[1]:
        low, low_change = torch.zeros_like(top), torch.zeros_like(top)
    else:
        gap, low_change, more = _power(
            lambda v: top[:, None] * v - covariance_product(law, v), law, generator, iterations, tolerance
        )
        low, spent = top - gap, spent + more
    ends = torch.stack([law.identity + law.stretch * top, law.identity + law.stretch * low]).abs()
    return OperatorNorm(ends.amax(dim=0), torch.maximum(top_change, low_change), spent)


def _supported(law: LocalLaw) -> LocalLaw:
    """The law without data points that weigh nothing anywhere: at low noise a few neighbours of many thousands stay."""
    kept = law.weights.amax(dim=0) > _NEGLIGIBLE
    if bool(kept.all()):
        return law
    return replace(law, data=law.data[kept.to(law.data.device)], weights=law.weights[:, kept])


def _power(
    product: Callable[[Tensor], Tensor], law: LocalLaw, generator: torch.Generator, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Rayleigh quotients of a positive semi-definite product, their relative change, and the iterations spent."""
    vector = torch.randn(law.mean.shape, generator=generator, dtype=torch.float64).to(law.mean.device)
    value, change = torch.zeros(len(vector)).to(vector), torch.zeros(len(vector)).to(vector)
    spent = 0
    for _ in range(iterations):
        spent += 1
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-300)
        image = product(vector)
        fresh = (vector * image).sum(dim=1)
        change = (fresh - value).abs() / fresh.abs().clamp_min(1e-300)
        value, vector = fresh, image
        if bool((change <= tolerance).all()):
            break
    return value.clamp_min(0), change, spent


@dataclass(frozen=True)
class Smoothness:
    """The field's local Lipschitz constants at the same points for growing parts of the data."""

    counts: tuple[int, ...]
    norms: Float[Tensor, "counts b"]
    neighbours: Float[Tensor, "counts b"]

    def summary(self) -> list[dict[str, float]]:
        """For each count: median, 95 % quantile and maximum of the norm, and the mean number of neighbours.

        The maximum is a lower bound of the Lipschitz constant over the points' region, nothing more.
        """
        return [
            {
                "count": float(count),
                "median": norms.median().item(),
                "high": torch.quantile(norms, 0.95).item(),
                "largest": norms.max().item(),
                "neighbours": near.mean().item(),
            }
            for count, norms, near in zip(self.counts, self.norms, self.neighbours, strict=True)
        ]


def smoothness_by_count(
    data: Float[Tensor, "n d"],
    held_out: Float[Tensor, "m d"],
    path: Path,
    t: float,
    counts: Sequence[int],
    generator: torch.Generator,
) -> Smoothness:
    """Operator norms of the target field of the first N of shuffled ``data``, for N in ``counts`` (E.6.3).

    All are taken at the same points, ``held_out`` data noised to ``t`` once (what a network that generalises is asked
    at), on nested subsets, so that counts compare in pairs. Raises :class:`ConfigError` for a count outside 1 .. n.
    """
    wrong = [count for count in counts if not 1 <= count <= len(data)]
    if wrong:
        raise ConfigError(f"counts {wrong}: must be between 1 and the {len(data)} data points")
    order = torch.randperm(len(data), generator=generator)
    c = path.coefficients(torch.tensor([t], dtype=torch.float64))
    noise = torch.randn(held_out.shape, generator=generator, dtype=torch.float64).to(held_out.device)
    points = c.alpha.item() * held_out.double() + c.sigma.item() * noise
    norms, neighbours = [], []
    for count in counts:
        law = local_law(data[order[:count]], points, path, t)
        norms.append(operator_norm(law, generator).norm)
        neighbours.append(law.neighbours)
    return Smoothness(tuple(counts), torch.stack(norms), torch.stack(neighbours))
