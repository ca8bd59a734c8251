"""Paired differences of two variants, tests that there is none, and which differences the data support.

Drawn by prompts (or by raters), the test is exact: if two variants are exchangeable, the sum of differences within a
cluster is as likely as its negative, whatever the other clusters do (Fisher 1935, "The Design of Experiments"). All
signs are tried up to 14 clusters, 9,999 random ones beyond, the observed one counted in. The smallest p-value of c
clusters is 2 / 2^c, so that 5 prompts support nothing at 95 %.

For raters crossed with prompts no such exchange is exact. There the difference is divided by its two-way standard error
(:mod:`flowgrain.evaluate.ranking.resample`) and held against Student's t with one degree of freedom less than the rarer
of the two has levels (Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", Journal of Human
Resources 50:317). As unanimous answers leave no error to divide by, and t is no law of so few and coarse numbers, the
p-value is never below those of the exact tests by prompts alone and by raters alone.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from flowgrain.errors import DataError
from flowgrain.evaluate.ranking.resample import Resampler, ratio
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.summary import Difference, RankingSummary
from flowgrain.rng import numpy_generator

_MOST_ENUMERATED = 14
_RANDOM_SIGNS = 9_999
_CHUNK = 500


def first_place_differences(sample: Sample, pairs: Sequence[tuple[str, str]]) -> tuple[Difference, ...]:
    """First-place rate of the second less that of the first for each pair, over the answers that show both."""
    shares = np.where(sample.shown, sample.first, np.nan)[sample.order_of]
    return paired_differences(shares, sample.variants, pairs, sample.resampler, 1.0)


def paired_differences(
    values: Float[np.ndarray, "n k"],
    variants: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    resampler: Resampler,
    largest: float,
) -> tuple[Difference, ...]:
    """The mean of column ``second`` less column ``first`` for each pair, over the rows where neither is NaN.

    Pairs without such a row are left out, p-values corrected over the others (:func:`holm`). ``largest`` is the
    largest possible size of a difference.
    """
    number = {variant: i for i, variant in enumerate(variants)}
    wanted = [(a, b) for a, b in pairs if a in number and b in number]
    columns = [values[:, number[b]] - values[:, number[a]] for a, b in wanted]
    kept = [(pair, column) for pair, column in zip(wanted, columns, strict=True) if not np.isnan(column).all()]
    if not kept:
        return ()
    apart = np.stack([column for _, column in kept], axis=1)
    defined = (~np.isnan(apart)).astype(float)
    apart = np.nan_to_num(apart)
    totals, counts = resampler.totals(apart), resampler.totals(defined)
    sums = np.asarray(resampler.cell_sums(apart))
    rows, p_values = [], []
    for i in range(len(kept)):
        n = int(defined[:, i].sum())
        mean = float(apart[:, i].sum() / n)
        replicates = None if totals is None or counts is None else ratio(totals[:, i], counts[:, i])
        rows.append(resampler.estimate(mean, replicates, n, (-largest, largest)))
        p_values.append(_p_value(mean, sums[:, i], replicates, resampler))
    return tuple(
        Difference(first=a, second=b, difference=row, p_value=p, p_holm=q, level=resampler.bootstrap.level)
        for ((a, b), _), row, p, q in zip(kept, rows, p_values, holm(p_values), strict=True)
    )


def sign_flip_p_value(sums: Float[np.ndarray, " clusters"], seed: int) -> float:
    """Two-sided p-value of "each cluster's sum is as likely as its negative"."""
    sums = sums[np.abs(sums) > 1e-12]
    observed = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums in another order differ in the last digits
    if len(sums) <= _MOST_ENUMERATED:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= observed).mean())
    generator = numpy_generator(seed, "sign flips", len(sums))
    reached = 1
    for start in range(0, _RANDOM_SIGNS, _CHUNK):
        size = min(_CHUNK, _RANDOM_SIGNS - start)
        signs = generator.integers(0, 2, size=(size, len(sums))) * 2.0 - 1.0
        reached += int((np.abs(signs @ sums) >= observed).sum())
    return reached / (_RANDOM_SIGNS + 1)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected so that any false finding among them has the stated probability.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65.
    """
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for done, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = largest
    return tuple(float(p) for p in adjusted)


def statements(summary: RankingSummary, dimension: str) -> tuple[str, ...]:
    """One sentence for each wanted pair: which variant comes first more often, or that the data do not say.

    Raises DataError for a dimension without answers.
    """
    if dimension not in summary.first_place_differences:
        known = ", ".join(summary.first_place_differences) or "none"
        raise DataError(f"no rankings on the dimension '{dimension}'; dimensions with rankings: {known}")
    return tuple(_statement(difference) for difference in summary.first_place_differences[dimension])


def _statement(difference: Difference) -> str:
    estimate = difference.difference
    ends = (
        "no interval"
        if estimate.low is None or estimate.high is None
        else f"{_points(estimate.low)} to {_points(estimate.high)} at {difference.level * 100:g} %"
    )
    numbers = f"{_points(estimate.value)} points, {ends}, {estimate.n} answers, p = {difference.p_holm:.2g} (Holm)"
    if difference.ahead is None:
        return f"{difference.second} less {difference.first}: no difference is supported ({numbers})."
    behind = difference.first if difference.ahead == difference.second else difference.second
    return (
        f"{difference.ahead} comes first more often than {behind} "
        f"({difference.second} less {difference.first}: {numbers})."
    )


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _p_value(
    mean: float,
    sums: Float[np.ndarray, " cells"],
    replicates: Float[np.ndarray, " draws"] | None,
    resampler: Resampler,
) -> float:
    """The exact test of each factor drawn, the largest; of crossed factors, the two-way t test where it is larger."""
    if not resampler.ways:
        return sign_flip_p_value(sums, resampler.bootstrap.seed)
    by_factor = [np.bincount(levels, weights=sums) for levels in resampler.ways[:2]]
    exact = max(sign_flip_p_value(factor, resampler.bootstrap.seed) for factor in by_factor)
    if not resampler.crossed:
        return exact
    errors = resampler.deviations(replicates)
    error = float(errors.std()) if len(errors) else 0.0
    if error < 1e-12:
        return exact
    return max(exact, float(2 * student.sf(abs(mean) / error, resampler.clusters - 1)))
