"""Gradient noise scale and critical batch size, for independent slices and for tuples.

McCandlish, Kaplan et al. 2018, "An Empirical Model of Large-Batch Training" (arXiv 1812.06162), section 2.2 and
Appendix A.1. A gradient over B independent units is G plus noise of covariance Sigma / B, so that

    E |G_B|^2 = |G|^2 + tr(Sigma) / B,      B_simple = tr(Sigma) / |G|^2

and squared norms at two batch sizes give both. B_simple is where one more unit starts to help less than half as much as
the first; it equals the critical batch size only where the Hessian is a multiple of the identity and plain SGD steps,
which is the source's own simplification. Take it as an order of magnitude.

**The unit of independence.** Slices of one root are not independent: with tuples the unit is the root, its gradient the
weighted sum over its slices, and B_simple counts roots. :func:`root_correlation` tells what a tuple costs or gains
against slices drawn independently. Slices of one root share content, which correlates their noise (rho > 0, design
effect above 1); but a tuple also holds one slice of each level, so that the levels' different mean gradients cancel out
of its variance as in a stratified sample (rho < 0, design effect below 1). Which wins is a measurement, and the paper's
claim that tuples "reduce the statistical variance of single-step updates" (E.6.4) is the second case.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from flowgrain.errors import ConfigError, DataError


def from_two_batch_sizes(
    small_square: float, big_square: float, small: float | int, big: float | int
) -> tuple[float, float]:
    """(|G|^2, tr Sigma), both unbiased, from E |G_B|^2 at ``small`` < ``big`` units (Appendix A.1).

    |G|^2 = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small),
    tr Sigma = (|G_small|^2 - |G_big|^2) / (1 / B_small - 1 / B_big). Raises ValueError unless 0 < small < big.
    """
    if not 0 < small < big:
        raise ValueError(f"batch sizes {small} and {big}: the first must be positive and less than the second")
    square = (big * big_square - small * small_square) / (big - small)
    trace = (small_square - big_square) / (1 / small - 1 / big)
    return square, trace


@dataclass(frozen=True)
class UpdateNorms:
    """Squared norms of one update whose gradient was taken in parts (roots, micro-batches, processes)."""

    parts: int
    units: float | int
    """Independent units in all parts together."""
    part_square: float
    """sum_i n_i |g_i|^2, with g_i the mean gradient of the n_i units of part i."""
    total_square: float
    """|g|^2 of the mean gradient over all units."""

    def moments(self) -> tuple[float, float]:
        """(|G|^2, tr Sigma), unbiased for parts of any sizes; :func:`from_two_batch_sizes` where they are equal.

        tr Sigma = (sum n_i |g_i|^2 - n |g|^2) / (k - 1), |G|^2 = |g|^2 - tr Sigma / n.
        """
        trace = (self.part_square - self.units * self.total_square) / (self.parts - 1)
        return self.total_square - trace / self.units, trace


def _square(tensor: Tensor) -> float:
    return tensor.detach().double().square().sum().item()


def update_norms(gradients: Iterable[Tensor], sizes: Iterable[float | int]) -> UpdateNorms:
    """Norms of parts that come one by one: mean gradient and number of units of each; one sum is kept.

    Raises :class:`DataError` for fewer than two parts.
    """
    total, parts, units, part_square = None, 0, 0.0, 0.0
    for gradient, size in zip(gradients, sizes, strict=True):
        weighted = gradient.detach().double() * size
        total = weighted if total is None else total + weighted
        parts, units = parts + 1, units + size
        part_square += size * _square(gradient)
    if total is None or parts < 2:
        raise DataError(f"gradient of {parts} parts: its noise needs at least 2 roots (or micro-batches) an update")
    return UpdateNorms(parts, units, part_square, _square(total / units))


@dataclass(frozen=True)
class NoiseScale:
    """Pooled over updates. Interval ends are NaN for one update."""

    gradient_square: float
    """|G|^2, mean over updates; may be negative where noise drowns the gradient."""
    trace: float
    """tr Sigma of one unit, mean over updates."""
    simple: float
    """B_simple in units, jackknifed; inf where the mean of |G|^2 is not positive: no batch in sight is large."""
    low: float
    high: float
    updates: int


class NoiseScaleLog:
    """Gathers the norms of updates; ratios are taken of means over updates, never averaged (Appendix A.1)."""

    def __init__(self):
        self._moments: list[tuple[float, float]] = []

    def add(self, norms: UpdateNorms) -> None:
        """Take in one update."""
        self._moments.append(norms.moments())

    def estimate(self, confidence: float = 0.95) -> NoiseScale:
        """B_simple with a delete-one-update jackknife. Raises :class:`DataError` before the first update.

        The interval is made for the signal-to-noise ratio |G|^2 / tr Sigma, which stays finite and near normal where
        |G|^2 is small, and turned over: its upper end is inf where the ratio is not distinguishable from 0. Updates
        count as independent; along a training run they are not quite, and the scale drifts, so pool over stretches.
        """
        if not self._moments:
            raise DataError("no update was measured: the noise scale needs at least one")
        moments = np.array(self._moments)
        square, trace = moments.mean(axis=0)
        ratio, error = jackknife_ratio(moments[:, 0], moments[:, 1])
        updates = len(moments)
        reach = error * float(stdtrit(updates - 1, (1 + confidence) / 2)) if updates > 1 else math.nan
        return NoiseScale(
            gradient_square=float(square),
            trace=float(trace),
            simple=_turned(ratio),
            low=_turned(ratio + reach),
            high=_turned(ratio - reach),
            updates=updates,
        )


def _turned(ratio: float) -> float:
    if math.isnan(ratio):
        return math.nan
    return 1 / ratio if ratio > 0 else math.inf


def jackknife_ratio(numerator: Float[np.ndarray, " n"], denominator: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """sum / sum, corrected for bias to first order, and its standard error, leaving out one pair at a time.

    One pair gives the plain ratio and NaN (Quenouille 1956, Tukey 1958).
    """
    n = len(numerator)
    top, bottom = numerator.sum(), denominator.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = float(np.divide(top, bottom))
        if n < 2:
            return plain, math.nan
        left_out = (top - numerator) / (bottom - denominator)
    mean = left_out.mean()
    error = math.sqrt((n - 1) / n * np.square(left_out - mean).sum())
    return float(n * plain - (n - 1) * mean), error


def relative_progress(batch: float | int, noise_scale: float) -> float:
    """Improvement of one best-sized step over that of a noiseless one, 1 / (1 + B_noise / B), in (0, 1] (section 2.2).

    1/2 at ``batch`` = noise scale.
    """
    return 1 / (1 + noise_scale / batch)


@dataclass(frozen=True)
class RootCorrelation:
    """What slices of one root have in common, and what that does to the variance of an update."""

    rho: float
    """Intraclass correlation of slice gradients, in trace; down to -1 / (m - 1)."""
    design_effect: float
    """1 + (m - 1) rho: variance of a mean over tuples against as many slices drawn independently (Kish 1965)."""
    slices_per_root: float
    """m, the mean number that the design effect is given for."""
    between: float
    """Variance component of roots, in trace; may be negative."""
    within: float
    """Variance of slices about their root's mean, in trace."""

    @property
    def effective_slices_per_root(self) -> float:
        """m / design effect: independent slices that one tuple is worth."""
        return self.slices_per_root / self.design_effect if self.design_effect > 0 else math.inf


def root_correlation(slices: Mapping[str, Iterable[Tensor]]) -> RootCorrelation:
    """From single slices' gradients by root, one root at a time: one-way analysis of variance, unequal sizes allowed.

    Not clipped at 0: a negative value says that tuples balance what differs among levels. To see what shared content
    alone does, give slices of one level, or gradients with their level's mean taken out. Raises :class:`DataError` for
    fewer than two roots or where no root has two slices.
    """
    total, count, roots = None, 0, 0
    slice_square = root_square = size_square = 0.0
    for gradients in slices.values():
        own, m = None, 0
        for gradient in gradients:
            flat = gradient.detach().double().reshape(-1)
            slice_square += _square(flat)
            own = flat.clone() if own is None else own.add_(flat)
            m += 1
        if own is None:
            continue
        root_square += _square(own) / m
        size_square += m * m
        total = own if total is None else total.add_(own)
        count, roots = count + m, roots + 1
    if total is None or roots < 2 or count == roots:
        raise DataError(f"{count} slices of {roots} roots: at least 2 roots are needed, and one with 2 slices")
    within = (slice_square - root_square) / (count - roots)
    typical = (count - size_square / count) / (roots - 1)
    between = ((root_square - _square(total) / count) / (roots - 1) - within) / typical
    m = count / roots
    rho = between / (between + within) if between + within > 0 else math.nan
    return RootCorrelation(rho, 1 + (m - 1) * rho, m, between, within)


def level_cooccurrence(shares: Mapping[str, float], batch: int) -> float:
    """Probability that ``batch`` slices drawn independently hold every level; ``shares`` sum to 1.

    Inclusion and exclusion over absent levels. A large mixed batch is a tuple by chance (Semantic Granularity
    Alignment, E.6.2): with three equal levels 9 slices hold all with probability 0.92. Raises :class:`ConfigError` for
    shares that do not sum to 1.
    """
    if not math.isclose(sum(shares.values()), 1, rel_tol=0, abs_tol=1e-9):
        raise ConfigError(f"shares of levels sum to {sum(shares.values()):g}, must be 1")
    values = list(shares.values())
    absent = (
        (-1) ** size * max(1 - sum(group), 0.0) ** batch
        for size in range(len(values) + 1)
        for group in combinations(values, size)
    )
    return min(max(math.fsum(absent), 0.0), 1.0)
