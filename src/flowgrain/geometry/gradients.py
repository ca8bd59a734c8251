"""Interactions of the levels' loss gradients, measured at an update and gathered over many.

What a trainer has: one flat gradient g_a of each level's loss over the slices of an update (separate backward passes).
Its inner products are the effective interaction <g_a, g_b> = Delta_a' Theta Delta_b of Semantic Granularity Alignment,
Eqs. 43-45, with the residuals of all slices of a level stacked and Theta taken over the whole batch; they are not the
pointwise components of Eq. 42 (``geometry.kernel`` says how the two are related).

Measured gradients are noisy: |g_a|^2 exceeds the squared norm of the expected gradient by the trace of its covariance,
so that cosines of small batches are pulled towards 0. :func:`cross_gram` of two independent halves of an update has no
such bias; the accumulator pools it over updates.

Measures: cosine and conflict (Yu et al. 2020, PCGrad, arXiv 2001.06782, Definitions 1 and 2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtri, stdtrit
from torch import Tensor

from flowgrain.errors import ConfigError, DataError

Gradient = Tensor | Sequence[Tensor | None]
"""A flat gradient, or one tensor a parameter (None where the loss does not reach it)."""


def _parts(gradient: Gradient) -> list[Tensor | None]:
    return [gradient] if isinstance(gradient, Tensor) else list(gradient)


def cross_gram(first: Mapping[str, Gradient], second: Mapping[str, Gradient]) -> Float[np.ndarray, "g g"]:
    """(<a_i, b_j> + <b_i, a_j>) / 2 in float64, levels in ``first``'s order, one parameter tensor at a time.

    For gradients of independent halves of the data (independent roots) an unbiased estimate of the Gram matrix of the
    expected gradients, diagonal included; a diagonal entry can then be negative. Raises ValueError where levels or the
    numbers of tensors differ.
    """
    if list(first) != list(second):
        raise ValueError(f"levels differ: {list(first)} and {list(second)}")
    left, right = [_parts(first[name]) for name in first], [_parts(second[name]) for name in first]
    counts = {len(parts) for parts in left + right}
    if len(counts) > 1:
        raise ValueError(f"gradients of {sorted(counts)} tensors: must be of the same parameters")
    gram = np.zeros((len(left), len(left)))
    for tensors in zip(*left, *right, strict=True):
        known = next((tensor for tensor in tensors if tensor is not None), None)
        if known is None:
            continue
        flat = [known.new_zeros(known.numel()) if tensor is None else tensor.detach().reshape(-1) for tensor in tensors]
        a, b = torch.stack(flat[: len(left)]).double(), torch.stack(flat[len(left) :]).double()
        gram += (a @ b.T).cpu().numpy()
    return (gram + gram.T) / 2


def gradient_gram(gradients: Mapping[str, Gradient]) -> Float[np.ndarray, "g g"]:
    """<g_a, g_b> of all pairs of levels, float64 (Eqs. 43, 45)."""
    return cross_gram(gradients, gradients)


@dataclass(frozen=True, eq=False)
class Interactions:
    """The levels' gradient Gram matrix at one update and what follows from it."""

    levels: tuple[str, ...]
    gram: Float[np.ndarray, "g g"]
    """The effective interaction <g_a, g_b>."""

    @classmethod
    def measure(cls, gradients: Mapping[str, Gradient]) -> "Interactions":
        """From one gradient a level."""
        return cls(tuple(gradients), gradient_gram(gradients))

    @property
    def norms(self) -> Float[np.ndarray, " g"]:
        """|g_a|; NaN where an unbiased estimate of its square is negative."""
        square = self.gram.diagonal()
        return np.sqrt(np.where(square >= 0, square, np.nan))

    @property
    def cosines(self) -> Float[np.ndarray, "g g"]:
        """<g_a, g_b> / (|g_a| |g_b|); NaN for a zero gradient."""
        norms = np.where(self.norms > 0, self.norms, np.nan)
        return self.gram / np.outer(norms, norms)

    @property
    def magnitude_similarity(self) -> Float[np.ndarray, "g g"]:
        """2 |a| |b| / (|a|^2 + |b|^2): 1 for equal norms, 0 where one dwarfs the other."""
        norms, square = self.norms, np.square(self.norms)
        total = square[:, None] + square[None, :]
        return 2 * np.outer(norms, norms) / np.where(total > 0, total, np.nan)

    @property
    def pairs(self) -> Float[np.ndarray, " pairs"]:
        """The interactions of the g (g - 1) / 2 pairs of different levels."""
        return self.gram[np.triu_indices(len(self.levels), 1)]

    @property
    def conflict_rate(self) -> float:
        """Share of pairs with a negative inner product; NaN for one level."""
        return float((self.pairs < 0).mean()) if len(self.pairs) else math.nan

    @property
    def cross_share(self) -> float:
        """Part of |sum_a g_a|^2 that is cross terms (Eq. 43): at most 1 - 1/g; below 0 where conflicts outweigh.

        Unbounded below (the sum can vanish): average numerator and denominator over updates, not this. NaN at sum 0.
        """
        total = self.gram.sum()
        return float(1 - self.gram.trace() / total) if total != 0 else math.nan

    @property
    def resultant(self) -> float:
        """|sum_a g_a| / sum_a |g_a| in [0, 1]: 1 where all levels pull one way, 0 where they cancel."""
        lengths = self.norms.sum()
        return float(math.sqrt(max(self.gram.sum(), 0.0)) / lengths) if lengths > 0 else math.nan


@dataclass(frozen=True)
class Estimate:
    """A mean over the ``count`` updates that had a value, with its interval; NaN ends for fewer than two blocks."""

    mean: float
    low: float
    high: float
    count: int


class InteractionLog:
    """Gathers Gram matrices over updates, g^2 numbers each; the gradients themselves are never kept.

    Updates without some level count for the pairs that they have. Intervals come from a moving-block bootstrap over
    updates (Kuensch 1989): ``block`` successive updates are drawn together, because neighbours are alike; 1 takes
    updates as independent. The percentile interval is widened by a t-quantile at the number of blocks. A rate that is 0
    or 1 in every update has an interval of no width, as always with the bootstrap.
    """

    def __init__(self, levels: Sequence[str]):
        self.levels = tuple(levels)
        self._grams: list[np.ndarray] = []

    def add(self, measured: Interactions) -> None:
        """Take in one update. Raises ValueError for a level that the log was not made for."""
        unknown = set(measured.levels) - set(self.levels)
        if unknown:
            raise ValueError(f"levels {sorted(unknown)} are not among {list(self.levels)}")
        places = [self.levels.index(name) for name in measured.levels]
        gram = np.full((len(self.levels), len(self.levels)), np.nan)
        gram[np.ix_(places, places)] = measured.gram
        self._grams.append(gram)

    def __len__(self) -> int:
        return len(self._grams)

    def grams(self) -> Float[np.ndarray, "n g g"]:
        """Every update's matrix, NaN where a level was absent."""
        return np.stack(self._grams) if self._grams else np.empty((0, len(self.levels), len(self.levels)))

    def mean_gram(self) -> Float[np.ndarray, "g g"]:
        """Mean effective interaction of each pair over the updates that have it."""
        grams = self.grams()
        count = np.isfinite(grams).sum(axis=0)
        return np.where(count > 0, np.nansum(grams, axis=0) / np.maximum(count, 1), np.nan)

    def pooled(self) -> Interactions:
        """Measures of the mean matrix: ratios of means, consistent where :func:`cross_gram` was added."""
        return Interactions(self.levels, self.mean_gram())

    def summary(
        self, generator: np.random.Generator, *, block: int = 1, resamples: int = 1000, confidence: float = 0.95
    ) -> "InteractionSummary":
        """Means and intervals. Raises :class:`DataError` for an empty log, :class:`ConfigError` for a block below 1."""
        if not self._grams:
            raise DataError("no update was measured: interactions need at least one")
        if block < 1:
            raise ConfigError(f"block {block}: must be at least 1 update")
        grams = self.grams()
        draws = block_draws(len(grams), block, resamples, generator)
        names = [(a, b) for i, a in enumerate(self.levels) for b in self.levels[i + 1 :]]
        rows, columns = np.triu_indices(len(self.levels), 1)
        inner = grams[:, rows, columns]
        square = np.diagonal(grams, axis1=1, axis2=2)
        norms = np.sqrt(np.where(square >= 0, square, np.nan))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = inner / (norms[:, rows] * norms[:, columns])
        conflict = np.where(np.isfinite(inner), inner < 0, np.nan)
        known = np.nan_to_num(grams)
        total = known.sum(axis=(1, 2))
        several = np.isfinite(square).sum(axis=1) > 1
        cross = np.where(several, total - known.trace(axis1=1, axis2=2), np.nan)
        settings = (draws, block, confidence)
        ones = np.ones(len(grams))
        present = np.isfinite(inner).sum(axis=1)
        return InteractionSummary(
            updates=len(grams),
            norm={name: _ratio(norms[:, i], ones, *settings) for i, name in enumerate(self.levels)},
            cosine={pair: _ratio(cosine[:, i], ones, *settings) for i, pair in enumerate(names)},
            interaction={pair: _ratio(inner[:, i], ones, *settings) for i, pair in enumerate(names)},
            conflict={pair: _ratio(conflict[:, i], ones, *settings) for i, pair in enumerate(names)},
            conflict_rate=_ratio(np.where(present > 0, np.nansum(conflict, axis=1), np.nan), present, *settings),
            cross_share=_ratio(cross, total, *settings),
        )


@dataclass(frozen=True)
class InteractionSummary:
    """Means over updates, by level or by pair of levels."""

    updates: int
    norm: dict[str, Estimate]
    cosine: dict[tuple[str, str], Estimate]
    interaction: dict[tuple[str, str], Estimate]
    """<g_a, g_b>, the effective interaction."""
    conflict: dict[tuple[str, str], Estimate]
    """Share of updates in which the pair conflicts."""
    conflict_rate: Estimate
    """Share of all measured pairs that conflict."""
    cross_share: Estimate
    """Mean of the cross terms over the mean squared norm of the sum, of the updates with two levels or more."""


def block_draws(count: int, block: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of every bootstrap resample, (resamples, count) int: circular runs of ``block`` successive updates."""
    length = min(block, count)
    starts = generator.integers(0, count, size=(resamples, -(-count // length)))
    rows = (starts[:, :, None] + np.arange(length)) % count
    return rows.reshape(resamples, -1)[:, :count]


def _ratio(
    numerator: Float[np.ndarray, " n"],
    denominator: Float[np.ndarray, " n"] | np.ndarray,
    draws: np.ndarray,
    block: int,
    confidence: float,
) -> Estimate:
    """sum(numerator) / sum(denominator) over the updates with a numerator, with its bootstrap interval."""
    known = np.isfinite(numerator)
    count = int(known.sum())
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    top, bottom = np.where(known, numerator, 0.0), np.where(known, denominator, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = float(np.divide(top.sum(), bottom.sum()))
        replicates = top[draws].sum(axis=1) / bottom[draws].sum(axis=1)
    replicates = replicates[np.isfinite(replicates)]
    blocks = count // block
    if blocks < 2 or not len(replicates) or not math.isfinite(mean):
        return Estimate(mean, math.nan, math.nan, count)
    tail = (1 - confidence) / 2
    wider = math.sqrt(blocks / (blocks - 1)) * stdtrit(blocks - 1, 1 - tail) / ndtri(1 - tail)
    low, high = mean + wider * (np.quantile(replicates, [tail, 1 - tail]) - replicates.mean())
    return Estimate(mean, float(low), float(high), count)
