"""Win rates of pairs: how often one variant was put before another."""

from itertools import combinations

import numpy as np
from jaxtyping import Float

from flowgrain.evaluate.ranking.sample import Sample, tail_is_open
from flowgrain.evaluate.ranking.summary import WinRate


def win_rates(sample: Sample) -> tuple[WinRate, ...]:
    """The rate of every pair that was compared, in the order of the variants; ties count half."""
    wins, ties = pair_wins(sample), pair_ties(sample)
    compared = wins + wins.transpose(0, 2, 1)
    tied = np.einsum("o,oij->ij", sample.counts, ties)
    pairs = list(combinations(range(len(sample.variants)), 2))
    firsts, seconds = [i for i, _ in pairs], [j for _, j in pairs]
    rates = sample.rates(wins[:, firsts, seconds], compared[:, firsts, seconds])
    return tuple(
        WinRate(first=sample.variants[i], second=sample.variants[j], rate=rate, ties=round(tied[i, j]))
        for (i, j), rate in zip(pairs, rates, strict=True)
        if rate is not None
    )


def pair_wins(sample: Sample) -> Float[np.ndarray, "orders k k"]:
    """[o, i, j]: 1 where order o puts i before j, 1/2 where it ties them, 0 where it does not compare them."""
    ranks = sample.ranks
    before = ranks[:, :, None] < ranks[:, None, :]  # False where one of them was not shown (NaN)
    return before + pair_ties(sample) / 2


def pair_ties(sample: Sample) -> Float[np.ndarray, "orders k k"]:
    """[o, i, j]: 1 where order o puts i and j in one tier and says so (:func:`tail_is_open`)."""
    ranks = sample.ranks
    ties = ranks[:, :, None] == ranks[:, None, :]
    ties[:, range(len(sample.variants)), range(len(sample.variants))] = False
    for row, order in enumerate(sample.orders):
        if tail_is_open(order):
            ties[np.ix_([row], order[-1], order[-1])] = False
    return ties.astype(float)
