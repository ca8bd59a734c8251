"""Bootstrap intervals of statistics of sums over answers, drawing prompts, raters, or both.

Pictures of one prompt are alike, and so are the answers of one person. A judge's answers are drawn by whole prompts
(``prompt``), as the metrics are. People are crossed with prompts: each answers many prompts, each prompt has many
answers, and both were picked from many (``crossed``). The variance then is that over prompts, plus that over raters,
less that over single answers, which both contain (Cameron, Gelbach and Miller 2011, "Robust inference with multiway
clustering", Journal of Business & Economic Statistics 29:238), each from draws of its own; never less than the larger
of the first two. The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1:386), which multiplies the counts
of a draw of raters and one of prompts, counts the chance of single answers three times: where that outweighs how
raters and prompts differ, its intervals are up to 1.7 times too wide.

With few clusters percentile intervals are too narrow, by sqrt((c - 1) / c) and by taking normal for t quantiles. Draws
are therefore spread out by the inverse of both (Hesterberg 2015, "What Teachers Should Know about the Bootstrap",
American Statistician 69:371). At 8 prompts, the protocol's number, this is a factor of 1.29.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.stats import norm
from scipy.stats import t as student

from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.summary import Cluster, Estimate
from flowgrain.rng import stable_seed

_CHUNK = 100  # draws at a time: a weight for every answer and draw at once would not fit in memory
_NOTHING = 1e-12


@dataclass(frozen=True)
class Resampler:
    """Draws of the clusters that n answers fall into, one set of draws for each way of clustering.

    Of one way: prompts, or raters. Of three: prompts, raters, and the answers of one rater to one prompt (cells). A
    factor with a single level cannot be drawn and is left out: the interval then holds for this prompt, or this
    rater. With no way left there is no interval.

    Replicates are rows: the draws of the first way, then those of the second, and so on.
    """

    bootstrap: Bootstrap
    cell: Int[np.ndarray, " n"]
    """Cell of each answer: its answers are always drawn together."""
    ways: tuple[Int[np.ndarray, " cells"], ...]
    """For each way, the cluster of each cell."""

    @classmethod
    def of(
        cls, prompts: Sequence[Hashable], raters: Sequence[Hashable], cluster: Cluster, bootstrap: Bootstrap
    ) -> "Resampler":
        """From the prompt and the rater of each answer; the order of answers changes no draw."""
        factors = {"prompt": (prompts,), "rater": (raters,), "crossed": (prompts, raters)}[cluster]
        coded = [codes for codes in map(_codes, factors) if len(codes) and codes.max() > 0]
        if not coded:
            return cls(bootstrap, np.zeros(len(prompts), dtype=np.int64), ())
        cells, cell = np.unique(np.stack(coded), axis=1, return_inverse=True)
        ways = (*cells, np.arange(cells.shape[1])) if len(coded) > 1 else tuple(cells)
        return cls(bootstrap, cell.reshape(-1), ways)

    @property
    def crossed(self) -> bool:
        """Whether prompts and raters are both drawn."""
        return len(self.ways) > 1

    @property
    def clusters(self) -> int:
        """Prompts or raters drawn, of crossed ones the fewer; 1 if none is."""
        return min((int(levels.max()) + 1 for levels in self.ways[:2]), default=1)

    def cell_sums(self, values: Float[np.ndarray, "n m"] | csr_array) -> Float[np.ndarray, "cells m"] | csr_array:
        """Values summed within each cell (prompt or rater, if one of them is drawn); sparse values stay sparse."""
        rows = np.arange(len(self.cell))
        cells = len(self.ways[0]) if self.ways else 1
        return csr_array((np.ones(len(rows)), (self.cell, rows)), shape=(cells, len(rows))) @ values

    def totals(self, values: Float[np.ndarray, "n m"] | csr_array) -> Float[np.ndarray, "draws m"] | None:
        """Sums of ``values`` over the answers of every draw; None if there is nothing to draw."""
        if not self.ways:
            return None
        sums = self.cell_sums(values)
        return np.concatenate([weights @ sums for way in range(len(self.ways)) for weights in self._weights(way)])

    def deviations(self, replicates: Float[np.ndarray, " draws"] | None) -> Float[np.ndarray, " resamples"]:
        """Draws of the statistic's error: mean zero, standard deviation its standard error.

        Empty where there are no draws, or where the statistic is undefined (NaN) in all of them.
        """
        if replicates is None:
            return np.empty(0)
        errors = []
        for levels, drawn in zip(self.ways, replicates.reshape(len(self.ways), -1), strict=True):
            count = int(levels.max()) + 1
            errors.append((drawn - _mean(drawn)) * np.sqrt(count / (count - 1)))
        if len(errors) == 1:
            return errors[0][~np.isnan(errors[0])]
        prompt, rater, single = (_mean(error**2) for error in errors)
        total = errors[0] + errors[1]
        total = total[~np.isnan(total)]
        if not len(total) or not prompt + rater > _NOTHING**2:
            return np.zeros_like(total)
        total -= total.mean()
        return total * np.sqrt(max(prompt + rater - single, prompt, rater) / (total**2).mean())

    def estimate(
        self,
        value: float | np.floating,
        replicates: Float[np.ndarray, " draws"] | None,
        n: int,
        bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> Estimate:
        """The interval of ``value``, cut to ``bounds``.

        Draws that never differ give no interval, unless the value lies on a bound (nobody ever chose a variant). Then
        the other end is that of the exact binomial interval for as many trials as there are clusters.
        """
        value = float(value)
        errors = self.deviations(replicates)
        if not len(errors):
            return Estimate(value=value, low=None, high=None, n=n)
        tail = (1 - self.bootstrap.level) / 2
        if np.ptp(errors) > _NOTHING:
            wider = student.ppf(1 - tail, self.clusters - 1) / norm.ppf(1 - tail)
            low, high = np.clip(self.bootstrap.interval(value, value + wider * errors), *bounds)
            return Estimate(value=value, low=float(low), high=float(high), n=n)
        reach = (bounds[1] - bounds[0]) * (1 - tail ** (1 / self.clusters))
        if abs(value - bounds[0]) < _NOTHING:
            return Estimate(value=value, low=value, high=value + reach, n=n)
        if abs(value - bounds[1]) < _NOTHING:
            return Estimate(value=value, low=value - reach, high=value, n=n)
        return Estimate(value=value, low=None, high=None, n=n)

    def _weights(self, way: int) -> Iterator[Float[np.ndarray, "chunk cells"]]:
        """How often every draw holds each cell, some draws at a time; the seeds of the ways are apart."""
        levels = self.ways[way]
        count = int(levels.max()) + 1
        for start in range(0, self.bootstrap.resamples, _CHUNK):
            seed = stable_seed(self.bootstrap.seed, "ranking", way, start)
            draws = Bootstrap(_CHUNK, self.bootstrap.level, seed).draws(count)[: self.bootstrap.resamples - start]
            numbered = draws + np.arange(len(draws))[:, None] * count
            times = np.bincount(numbered.reshape(-1), minlength=draws.size).reshape(draws.shape)
            yield times[:, levels].astype(float)


def mean_estimate(
    values: Float[np.ndarray, " n"], resampler: Resampler, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate | None:
    """The mean over the rows where it is defined (not NaN); None if it nowhere is."""
    defined = ~np.isnan(values)
    count = int(defined.sum())
    if not count:
        return None
    columns = np.stack([np.where(defined, values, 0.0), defined.astype(float)], axis=1)
    totals = resampler.totals(columns)
    replicates = None if totals is None else ratio(totals[:, 0], totals[:, 1])
    return resampler.estimate(values[defined].mean(), replicates, count, bounds)


def ratio(
    numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """The quotient; NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean(values: Float[np.ndarray, " draws"]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan


def _codes(keys: Sequence[Hashable]) -> Int[np.ndarray, " n"]:
    numbers = {key: number for number, key in enumerate(sorted(set(keys), key=repr))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)
