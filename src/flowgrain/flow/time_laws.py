"""Laws of the noise level t, conditional on granularity and token count.

Semantic Granularity Alignment, Eqs. 29-31, FLUX clock (t = 1 is noise): with z standard normal

    t_logit = sigmoid(s z + Delta(xi))                                   Eq. 30 (Delta: Eq. 29)
    t       = t_logit / (t_logit + (1 - t_logit) exp(-mu(tokens)))       Eq. 31

The second line adds mu to the logit, so logit t ~ Normal(Delta(xi) + mu(tokens), s^2), in closed form. A law is
a quantile function of u in (0, 1): training draws, previews and fixed validation points are one code path.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LinearShift:
    """mu(n): the line through (base_tokens, base_shift) and (max_tokens, max_shift), extrapolated, never clamped.

    FLUX.1-dev and its scheduler: (256, 0.5) and (4096, 1.15), n = number of image tokens = (H / 16) (W / 16).
    """

    base_tokens: int = 256
    max_tokens: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def __call__(self, tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """mu for each token count, float64."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return self.base_shift + slope * (tokens.double() - self.base_tokens)


class TimeLaw(ABC):
    """A distribution of t in (0, 1) given granularity and token count."""

    @abstractmethod
    def quantile(
        self, u: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """The t below which a fraction ``u`` of the law lies, float64; increasing in u."""

    @abstractmethod
    def density(
        self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Probability density at t in (0, 1), float64."""


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """logit t ~ Normal(mean + Delta[granularity] + mu(tokens), std^2).

    ``delta`` is a value for each granularity, macro first; ``shift`` the resolution shift, None for none.
    Zeros in ``delta`` give the unmodulated law bit for bit.
    """

    mean: float = 0.0
    std: float = 1.0
    delta: tuple[float, ...] = (0.0, 0.0, 0.0)
    shift: LinearShift | None = None

    def location(self, granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Mean of logit t, float64."""
        location = self.mean + torch.tensor(self.delta, dtype=torch.float64)[granularity]
        return location if self.shift is None else location + self.shift(tokens)

    def quantile(
        self, u: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """See :meth:`TimeLaw.quantile`."""
        return torch.sigmoid(self.location(granularity, tokens) + self.std * torch.special.ndtri(u.double()))

    def density(
        self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """Normal density of logit t times d logit t / dt = 1 / (t (1 - t))."""
        t = t.double()
        z = (torch.logit(t) - self.location(granularity, tokens)) / self.std
        return torch.exp(-0.5 * z.square()) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))


class UniformTime(TimeLaw):
    """t uniform in (0, 1), whatever granularity and size: the law that diffusion models are trained with."""

    def quantile(
        self, u: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """t = u."""
        return u.double()

    def density(
        self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"], tokens: Int[Tensor, " b"]
    ) -> Float[Tensor, " b"]:
        """1 everywhere."""
        return torch.ones_like(t.double())
