"""Distance from the prior, and the three regimes of fine-tuning: underfit, goal, out of domain.

Semantic Granularity Alignment, section 3.2 and Fig. 3, names the regimes and draws them, without a measure or a rule.
The distances below are standard; **the rule of :func:`classify_regimes` is ours**, proposed so that the figure can be
tested. It judges the checkpoints of one run against each other: how much of the gain that the run attains on held-out
pictures of the domain each has, and on which side of the best one it lies.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ConfigError, DataError

Regime = Literal["underfit", "goal", "out of domain"]


def low_rank_change(down: Float[Tensor, "r *input"], up: Float[Tensor, "out r *one"], scale: float | int = 1) -> float:
    """|scale B A|_F without the product, from tr((B' B)(A A')): r x r matrices, float64. Convolutions are flattened."""
    a, b = down.detach().double().flatten(1), up.detach().double().flatten(1)
    square = ((b.T @ b) * (a @ a.T)).sum().item()
    return abs(scale) * math.sqrt(max(square, 0.0))


def effective_change(modules: Iterable[tuple[Tensor, Tensor, float | int]]) -> float:
    """Frobenius norm of the whole adapter's effective weight change, over (down, up, scale) of its modules.

    The norm of the factors themselves means nothing: (c A, B / c) is the same adapter.
    """
    return math.sqrt(sum(low_rank_change(down, up, scale) ** 2 for down, up, scale in modules))


def prediction_distance(adapted: Float[Tensor, "b *output"], prior: Float[Tensor, "b *output"]) -> Float[Tensor, " b"]:
    """Distance in function space: mean squared difference of two predictions of the same inputs, a sample, float64."""
    return (adapted.detach().double() - prior.detach().double()).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class RegimeRule:
    """The limits of :func:`classify_regimes`."""

    reach: float = 0.8
    """Share of the run's best gain that a checkpoint of the goal region has, in (0, 1)."""
    least_gain: float = 0.0
    """Gain (in loss) that counts as one; give the standard error of the loss difference times 2."""
    rate_margin: float = 0.1
    """How far the out-of-domain rate may lie above the lowest of the run."""

    def __post_init__(self):
        if not 0 < self.reach < 1:
            raise ConfigError(f"reach {self.reach}: must lie between 0 and 1")


def classify_regimes(
    distance: Float[np.ndarray, " n"],
    domain_loss: Float[np.ndarray, " n"],
    outside_rate: Float[np.ndarray, " n"] | None = None,
    rule: RegimeRule = RegimeRule(),
) -> list[Regime]:
    """The regime of each checkpoint of one run, the prior itself included (our rule, not the paper's).

    ``distance`` from the prior (weights or predictions; only its order matters), ``domain_loss`` on held-out pictures
    of the domain, ``outside_rate`` the share of generated pictures outside the domain, where it was measured.

    * gain share s_i = (L_prior - L_i) / (L_prior - L_best), with the prior the point of least distance;
    * *goal*: s_i >= ``reach`` and the rate within ``rate_margin`` of the run's lowest;
    * else *out of domain* where the distance exceeds the pivot's, *underfit* where it does not. The pivot is the goal
      checkpoint of least loss; without any, the checkpoint of least loss.

    A run that gains no more than ``least_gain`` has no goal region; out of domain is then only what lies farther than
    the pivot and is worse than it by more than ``least_gain`` or ``rate_margin``. Sides are judged by distance and not
    by time, since a run may come back. Raises :class:`DataError` for fewer than two checkpoints, shapes that differ or
    values that are not finite.
    """
    curves = [distance, domain_loss] if outside_rate is None else [distance, domain_loss, outside_rate]
    if len({curve.shape for curve in curves}) > 1 or len(distance) < 2:
        raise DataError(f"curves of {[len(c) for c in curves]} checkpoints: must be the same number, at least 2")
    if not all(np.isfinite(curve).all() for curve in curves):
        raise DataError("a curve has a value that is not finite")
    gain = domain_loss[int(np.argmin(distance))] - domain_loss
    best = gain.max()
    good = gain >= rule.reach * best if best > max(rule.least_gain, 0.0) else np.zeros(len(gain), dtype=bool)
    if outside_rate is not None:
        good &= outside_rate <= outside_rate.min() + rule.rate_margin
    candidates = np.flatnonzero(good) if good.any() else np.arange(len(gain))
    pivot = candidates[np.argmax(gain[candidates])]
    beyond = distance > distance[pivot]
    if not good.any():
        worse = gain[pivot] - gain > rule.least_gain
        if outside_rate is not None:
            worse |= outside_rate > outside_rate[pivot] + rule.rate_margin
        beyond &= worse
    return [_name(bool(fits), bool(past)) for fits, past in zip(good, beyond, strict=True)]


def _name(good: bool, beyond: bool) -> Regime:
    if good:
        return "goal"
    return "out of domain" if beyond else "underfit"


def gain_share(distance: Float[np.ndarray, " n"], domain_loss: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """s_i of :func:`classify_regimes`: 0 at the prior, 1 at the best checkpoint; NaN where the run gains nothing."""
    gain = domain_loss[int(np.argmin(distance))] - domain_loss
    return gain / gain.max() if gain.max() > 0 else np.full(len(gain), np.nan)
