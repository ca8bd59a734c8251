"""Paired comparison of arms over training seeds crossed with held-out pictures or prompts.

A difference has two sources of chance: the training seed, and which pictures happen to be held out. Both arms share
both, so a cell of the table seeds x units is a paired difference. The variance of its mean is that of crossed random
effects: of the means by seed, plus of the means by unit, less what both count, the residual (two-way analysis of
variance; Searle, Casella and McCulloch 1992, chapter 4). Intervals use Student's t with Satterthwaite's degrees of
freedom. Domains are fixed: three styles are no sample of styles, so pooled numbers also say how many domains agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; low and high are nan where there is one replicate alone."""

    value: float
    low: float
    high: float
    seeds: int
    """Replicates of the smallest domain."""
    units: int
    error: float
    """Standard error."""
    freedom: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is supported in one direction."""
        return bool(self.low > 0 or self.high < 0)


def crossed(table: np.ndarray, level: float = LEVEL) -> Interval:
    """Mean of a table (seeds, units) of paired differences. A column vector has seeds as its only replicates."""
    seeds, units = table.shape
    parts = [_variance_of_mean(table.mean(axis=1)), _variance_of_mean(table.mean(axis=0))]
    known = [part for part in parts if part is not None]
    twice = _residual(table) / table.size if len(known) == 2 else 0.0
    variance = max(sum(known) - twice, *known) if known else float("nan")
    counts = [n for n, part in zip((seeds, units), parts, strict=True) if part is not None]
    return _interval(float(table.mean()), variance, _freedom(known, counts), seeds, units, level)


def pooled(parts: Sequence[Interval], level: float = LEVEL) -> Interval:
    """The mean over fixed, independent domains."""
    errors = np.array([part.error for part in parts]) ** 2 / len(parts) ** 2
    freedom = _freedom([float(e) for e in errors], [part.freedom + 1 for part in parts])
    return _interval(
        float(np.mean([part.value for part in parts])), float(errors.sum()), freedom,
        min(part.seeds for part in parts), sum(part.units for part in parts), level,
    )  # fmt: skip


def differences(first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]]) -> np.ndarray:
    """``second`` less ``first``, a row for each seed that both have. Raises ValueError where they share none."""
    shared = sorted(set(first) & set(second))
    if not shared:
        raise ValueError("the arms share no seed")
    return np.array([np.subtract(second[seed], first[seed]) for seed in shared], dtype=np.float64)


def _variance_of_mean(values: np.ndarray) -> float | None:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else None


def _residual(table: np.ndarray) -> float:
    """Mean square of what row and column means leave."""
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1)))


def _freedom(variances: Sequence[float], counts: Sequence[float]) -> float:
    """Satterthwaite: (sum v)^2 / sum v^2 / (n - 1)."""
    if not variances or sum(variances) == 0:
        return float("nan")
    return sum(variances) ** 2 / sum(v**2 / max(n - 1, 1) for v, n in zip(variances, counts, strict=True))


def _interval(value: float, variance: float, freedom: float, seeds: int, units: int, level: float) -> Interval:
    error = float(np.sqrt(variance))
    half = 0.0 if error == 0 else float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(value, value - half, value + half, seeds, units, error, freedom)
