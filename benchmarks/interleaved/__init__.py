"""How benchmarks time: wall seconds, medians with bootstrap intervals, ratios of interleaved runs."""

import time
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [float(np.median(rng.choice(values, len(values)))) for _ in range(RESAMPLES)]
    return float(np.median(values)), float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def times(
    first: Callable[[], object], second: Callable[[], object], pairs: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """Seconds of both, run in pairs whose order alternates, after ``warm_up`` runs of each."""
    for work in (first, second):
        for _ in range(warm_up):
            work()
    of_first, of_second = [], []
    for pair in range(pairs):
        both = [(of_first, first), (of_second, second)]
        for taken, work in reversed(both) if pair % 2 else both:
            taken.append(seconds(work))
    return of_first, of_second


def ratio(
    first: Callable[[], object], second: Callable[[], object], pairs: int, warm_up: int = 1
) -> tuple[float, float, float]:
    """Median of first / second over the pairs of :func:`times`, and its 95 % interval."""
    return median([a / b for a, b in zip(*times(first, second, pairs, warm_up), strict=True)])
