"""Bootstrap intervals over clusters (Efron and Tibshirani 1993, chapters 8 and 13).

Pictures of one prompt are not independent, so whole prompts (or roots) are drawn with replacement. Two arms are
compared on the *same* draws: what an easy or hard prompt does to both cancels in the difference.

The interval is the percentile interval moved so that the mean of the replicates lies on the estimate. For means this
changes nothing but Monte Carlo noise; a statistic that repeated rows push one way may else not lie in its own interval.

With few clusters a percentile interval is too narrow, by sqrt((c - 1) / c) and by taking normal for t quantiles. It is
spread out by the inverse of both (Hesterberg 2015, "What Teachers Should Know about the Bootstrap", American
Statistician 69:371): at 8 prompts 1.29 times, at 40 1.05 times as wide.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri, stdtrit

from flowgrain.errors import ConfigError, DataError
from flowgrain.rng import numpy_generator


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of draws, confidence level in (0, 1) and seed."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.resamples < 100:
            raise ConfigError(f"bootstrap resamples {self.resamples}: the ends of an interval need at least 100")
        if not 0 < self.level < 1:
            raise ConfigError(f"bootstrap level {self.level}: must lie between 0 and 1, for example 0.95")

    def draws(self, clusters: int) -> Int[np.ndarray, "resamples clusters"]:
        """Cluster numbers of every resample; the same for one seed and cluster count."""
        return np.stack(list(self.iterate(clusters)))

    def iterate(self, clusters: int) -> Iterator[Int[np.ndarray, " clusters"]]:
        """The rows of :meth:`draws`, one at a time. Raises :class:`DataError` for fewer than 2 clusters."""
        if clusters < 2:
            raise DataError(f"an interval needs at least 2 prompts (or roots), got {clusters}")
        generator = numpy_generator(self.seed, "bootstrap", clusters)
        for _ in range(self.resamples):
            yield generator.integers(0, clusters, size=clusters)

    def interval(
        self, estimate: float, replicates: Float[np.ndarray, " resamples"], clusters: int | None = None
    ) -> tuple[float, float]:
        """Ends of the percentile interval, moved so that the replicates' mean lies on ``estimate``.

        ``clusters`` is the number that was drawn from, for which the interval is spread out; None leaves its width.
        Draws on which the statistic is undefined (NaN: one picture has no pairs) or infinite are left out. (NaN, NaN)
        where the estimate is not finite or every draw is undefined.
        """
        tail = (1 - self.level) / 2
        defined = replicates[np.isfinite(replicates)]
        if not len(defined) or not np.isfinite(estimate):
            return float("nan"), float("nan")
        wider = 1.0
        if clusters is not None:
            wider = np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 1 - tail) / ndtri(1 - tail)
        low, high = estimate + wider * (np.quantile(defined, [tail, 1 - tail]) - defined.mean())
        return float(low), float(high)


def cluster_rows(clusters: Sequence[str]) -> dict[str, Int[np.ndarray, " _"]]:
    """Rows of each cluster, clusters in sorted order so that arms with the same prompts draw alike."""
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(members, kind="stable")
    bounds = np.searchsorted(members[order], np.arange(1, len(names)))
    return dict(zip(names.tolist(), np.split(order, bounds), strict=True))


def replicate(
    statistic: Callable[[Int[np.ndarray, " k"]], float],
    clusters: Sequence[str],
    bootstrap: Bootstrap,
) -> Float[np.ndarray, " resamples"]:
    """The statistic on every resample of whole clusters."""
    rows = list(cluster_rows(clusters).values())
    order, sizes = np.concatenate(rows), np.array([len(members) for members in rows])
    ends = sizes.cumsum()
    values = []
    for draw in bootstrap.iterate(len(rows)):
        drawn = sizes[draw]
        # row number within the draw -> place in `order`: the start of its cluster plus its number in the cluster
        places = np.arange(drawn.sum()) + np.repeat(ends[draw] - drawn.cumsum(), drawn)
        values.append(statistic(order[places]))
    return np.array(values)


def influence_replicates(
    estimate: float, left_out: Float[np.ndarray, " g"], bootstrap: Bootstrap
) -> Float[np.ndarray, " resamples"]:
    """Replicates of a statistic from its values without each cluster (clusters in sorted order).

    A cluster drawn N times moves the estimate by (N - 1) times what leaving it out moves the other way, so that the
    replicates of a mean are its bootstrap's. Spread out as :meth:`Bootstrap.interval` does, their variance is the
    delete-one jackknife's, which on average is not too small (Efron and Stein 1981).
    """
    clusters = len(left_out)
    influence = (clusters - 1) / clusters * (left_out.mean() - left_out)
    return np.array([estimate + influence[draw].sum() for draw in bootstrap.iterate(clusters)])


def mean_interval(
    values: Float[np.ndarray, " n"], clusters: Sequence[str], bootstrap: Bootstrap
) -> tuple[float, float, float]:
    """(mean, low, high) of values that cluster."""
    estimate = float(values.mean())
    replicates = replicate(lambda rows: float(values[rows].mean()), clusters, bootstrap)
    low, high = bootstrap.interval(estimate, replicates, len(set(clusters)))
    return estimate, low, high
