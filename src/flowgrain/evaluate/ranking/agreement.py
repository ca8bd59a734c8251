"""How far raters agree with one another, and a rater with itself.

Intervals draw prompts: they answer "these raters, other prompts". Raters are compared on questions (dimension, item,
variants shown) that at least two of them answered; a rater's repeats of a question are averaged first.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from flowgrain.evaluate.ranking.chance_corrected import coincidences, fleiss_kappa, fleiss_parts, krippendorff_alpha
from flowgrain.evaluate.ranking.concordance import kendalls_w, mean_kendall_tau, mean_spearman
from flowgrain.evaluate.ranking.resample import Resampler, mean_estimate
from flowgrain.evaluate.ranking.sample import Sample, question
from flowgrain.evaluate.ranking.summary import Agreement, Consistency, Estimate, Repeats

Grouped = dict[tuple[str, str, tuple[str, ...]], dict[str, list[int]]]


def agreement(sample: Sample) -> Agreement | None:
    """Agreement between raters; None if no question was answered by two."""
    shared = [by_rater for by_rater in _grouped(sample).values() if len(by_rater) > 1]
    if not shared:
        return None
    prompts = [_prompt(sample, next(iter(by_rater.values()))[0]) for by_rater in shared]
    resampler = Resampler.of(prompts, prompts, "prompt", sample.resampler.bootstrap)
    ranks = [_consolidated(sample, by_rater) for by_rater in shared]
    shown = [rows[:, ~np.isnan(rows[0])] for rows in ranks]
    alpha_first, kappa = _first_place_agreement(ranks, resampler)
    return Agreement(
        questions=len(shared),
        raters=len({rater for by_rater in shared for rater in by_rater}),
        kendalls_w=mean_estimate(np.array([kendalls_w(rows) for rows in shown]), resampler, (0.0, 1.0)),
        kendalls_w_by_chance=float(np.mean([1 / len(rows) for rows in shown])),
        kendall_tau=mean_estimate(np.array([mean_kendall_tau(rows) for rows in shown]), resampler, (-1.0, 1.0)),
        spearman=mean_estimate(np.array([mean_spearman(rows) for rows in shown]), resampler, (-1.0, 1.0)),
        alpha_ranks=_rank_alpha(shown, resampler),
        alpha_first=alpha_first,
        fleiss_kappa=kappa,
    )


def repeats(sample: Sample) -> Repeats | None:
    """How far raters answered repeated questions the same; None if no question was repeated."""
    changed, same = [], []
    for by_rater in _grouped(sample).values():
        for rows in by_rater.values():
            for first, second in combinations(rows, 2):
                moved = sample.rankings[first].shown != sample.rankings[second].shown
                (changed if moved else same).append((first, second))
    if not changed and not same:
        return None
    return Repeats(changed_order=_consistency(sample, changed), same_order=_consistency(sample, same))


def _consistency(sample: Sample, pairs: Sequence[tuple[int, int]]) -> Consistency | None:
    prompts = [_prompt(sample, first) for first, _ in pairs]
    resampler = Resampler.of(prompts, prompts, "prompt", sample.resampler.bootstrap)
    ranks = [sample.ranks[sample.order_of[list(pair)]] for pair in pairs]
    taus = np.array([mean_kendall_tau(rows[:, ~np.isnan(rows[0])]) for rows in ranks])
    agreed = np.array([set(sample.orders[a][0]) == set(sample.orders[b][0]) for a, b in sample.order_of[pairs]])
    same_first = mean_estimate(agreed.astype(float), resampler, (0.0, 1.0))
    if same_first is None:
        return None
    return Consistency(same_first=same_first, kendall_tau=mean_estimate(taus, resampler, (-1.0, 1.0)))


def _grouped(sample: Sample) -> Grouped:
    """Question -> rater -> rows of the sample."""
    groups: Grouped = {}
    for row, ranking in enumerate(sample.rankings):
        groups.setdefault(question(ranking), {}).setdefault(ranking.rater, []).append(row)
    return groups


def _prompt(sample: Sample, row: int) -> tuple[str, str]:
    return sample.rankings[row].dataset, sample.rankings[row].prompt


def _consolidated(sample: Sample, by_rater: dict[str, list[int]]) -> Float[np.ndarray, "m k"]:
    """One row of ranks for every rater of a question, repeats by their mean rank; NaN for variants not shown."""
    if all(len(rows) == 1 for rows in by_rater.values()):
        return sample.ranks[sample.order_of[[rows[0] for rows in by_rater.values()]]]
    means = np.stack([sample.ranks[sample.order_of[rows]].mean(axis=0) for rows in by_rater.values()])
    return rankdata(means.round(9), axis=1, nan_policy="omit")


def _rank_alpha(ranks: Sequence[Float[np.ndarray, "m _"]], resampler: Resampler) -> Estimate | None:
    """Ordinal alpha; a unit is one variant of one question, its value the rank (half ranks are values too)."""
    count = 2 * max(rows.shape[1] for rows in ranks) - 1
    sums = np.zeros((len(ranks), count, count))
    for row, given in enumerate(ranks):
        for unit in (2 * given - 2).round().astype(np.int64).T:
            sums[row] += coincidences(unit, count)
    return _alpha(sums, resampler, ordinal=True)


def _first_place_agreement(
    ranks: Sequence[Float[np.ndarray, "m k"]], resampler: Resampler
) -> tuple[Estimate | None, Estimate | None]:
    """Nominal alpha and Fleiss' kappa; the value is who came first, a tie for first being a value of its own."""
    named = [[tuple(np.flatnonzero(row == np.nanmin(row))) for row in rows] for rows in ranks]
    codes = {value: code for code, value in enumerate(sorted({value for unit in named for value in unit}))}
    units = [np.array([codes[value] for value in unit]) for unit in named]
    alpha = _alpha(np.stack([coincidences(unit, len(codes)) for unit in units]), resampler, ordinal=False)
    parts = np.stack([fleiss_parts(unit, len(codes)) for unit in units])
    totals = resampler.totals(parts)
    return alpha, _corrected(
        fleiss_kappa(parts.sum(axis=0, keepdims=True)),
        None if totals is None else fleiss_kappa(totals),
        len(units),
        resampler,
    )


def _alpha(sums: Float[np.ndarray, "questions v v"], resampler: Resampler, *, ordinal: bool) -> Estimate | None:
    totals = resampler.totals(sums.reshape(len(sums), -1))
    replicates = None if totals is None else krippendorff_alpha(totals.reshape(-1, *sums.shape[1:]), ordinal=ordinal)
    return _corrected(
        krippendorff_alpha(sums.sum(axis=0, keepdims=True), ordinal=ordinal), replicates, len(sums), resampler
    )


def _corrected(
    value: Float[np.ndarray, "1"], replicates: Float[np.ndarray, " resamples"] | None, n: int, resampler: Resampler
) -> Estimate | None:
    """None where a single value was ever given, so that agreement cannot be told from chance."""
    return None if np.isnan(value[0]) else resampler.estimate(value[0], replicates, n, (-1.0, 1.0))
