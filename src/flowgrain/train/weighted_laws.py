"""Laws of noise levels with what they weigh: what a squared error is multiplied by, in numbers.

Everything is computed from the quantile functions that training draws with, whatever the law.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.flow.time_laws import LogitNormal, TimeLaw
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.flow.weightings import Uniform, Weighting
from flowgrain.granularity import Granularity, granularity_index

_QUADRATURE = 200_000
"""Points of a mean over u; a multiple of the usual 1000 steps of a table of noise levels, whose mean is then exact."""
_HALVINGS = 60


@dataclass(frozen=True)
class LawSummary:
    """A law of t at one granularity and token count."""

    mean: float
    low: float
    """5 % quantile."""
    median: float
    high: float
    """95 % quantile."""
    below_half: float
    """P(t < 0.5)."""
    above_nine_tenths: float
    """P(t > 0.9)."""


@dataclass(frozen=True)
class WeightedLaw:
    """A law of noise levels, the loss weight, and the planned weight of each granularity by token count (sum 1)."""

    law: TimeLaw
    weighting: Weighting
    planned: Mapping[Granularity, Mapping[int, float]]

    @property
    def sees_tokens(self) -> bool:
        """Whether the law differs between token counts."""
        return isinstance(self.law, LogitNormal) and self.law.shift is not None

    def density(self, t: Float[Tensor, " n"], granularity: Granularity, tokens: int) -> Float[Tensor, " n"]:
        """p(t | granularity, tokens)."""
        return self.law.density(t, *_conditions(granularity, tokens, len(t)))

    def weight(self, t: Float[Tensor, " n"], granularity: Granularity) -> Float[Tensor, " n"]:
        """omega(t, granularity), float64."""
        return self.weighting(t, _conditions(granularity, 1, len(t))[0]).double()

    def multiplier(self, t: Float[Tensor, " n"], granularity: Granularity) -> Float[Tensor, " n"]:
        """m_k(t): what the squared error at t is multiplied by over an epoch, as a share of the planned weights."""
        shares = self.planned[granularity].items()
        density = sum((share * self.density(t, granularity, n) for n, share in shares), torch.zeros_like(t.double()))
        return density * self.weight(t, granularity)

    def mean_weight(self, granularity: Granularity) -> float:
        """Mean of omega over the noise levels drawn for a granularity, its sizes by their planned weight."""
        if isinstance(self.weighting, Uniform):
            return 1.0
        shares = self.planned[granularity]
        if not self.sees_tokens:
            shares = {next(iter(shares)): 1.0}
        means = {n: self.weight(_levels(self.law, granularity, n), granularity).mean().item() for n in shares}
        return sum(means[n] * share for n, share in shares.items()) / sum(shares.values())

    def loss_shares(self) -> dict[Granularity, float]:
        """The share of each granularity in the sum of w_i omega."""
        parts: dict[Granularity, float] = {
            level: sum(shares.values()) * self.mean_weight(level) for level, shares in self.planned.items()
        }
        total = sum(parts.values())
        return {level: part / total for level, part in parts.items()}


def summarize(law: TimeLaw, granularity: Granularity, tokens: int) -> LawSummary:
    """Mean, quantiles and tails of a law at a granularity and token count."""
    u = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    low, median, high = law.quantile(u, *_conditions(granularity, tokens, 3)).tolist()
    mean = _levels(law, granularity, tokens).mean().item()
    below_half, below_nine_tenths = _probability_below(law, granularity, tokens, (0.5, 0.9))
    return LawSummary(mean, low, median, high, below_half, 1 - below_nine_tenths)


def _probability_below(
    law: TimeLaw, granularity: Granularity, tokens: int, levels: tuple[float, float]
) -> tuple[float, float]:
    """P(t < level): a law is its quantile function, which rises in u, so that bisection turns it round."""
    wanted = torch.tensor(levels, dtype=torch.float64)
    low, high = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    conditions = _conditions(granularity, tokens, 2)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = law.quantile(middle, *conditions) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    first, second = ((low + high) / 2).tolist()
    return first, second


def _levels(law: TimeLaw, granularity: Granularity, tokens: int) -> Float[Tensor, " n"]:
    """Noise levels at evenly spaced u: their mean is that of the law."""
    return law.quantile(_grid(), *_conditions(granularity, tokens, _QUADRATURE))


@cache
def _grid() -> Float[Tensor, " n"]:
    return (torch.arange(_QUADRATURE, dtype=torch.float64) + 0.5) / _QUADRATURE


def _conditions(granularity: Granularity, tokens: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.full((count,), granularity_index(granularity)), torch.full((count,), tokens)


def level_of_snr(path: VariancePreserving, snr: float) -> float:
    """The lowest noise level of the table whose signal-to-noise ratio is at most ``snr``; 1 where none is."""
    steps = path.schedule.steps
    ratios = path.snr((torch.arange(steps, dtype=torch.float64) + 0.5) / steps)
    return (ratios > snr).sum().item() / steps
