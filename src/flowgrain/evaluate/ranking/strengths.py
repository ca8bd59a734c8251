"""Bradley-Terry and Plackett-Luce strengths of variants, with intervals.

Ties. A tie says that two variants look equally good; it counts as half an order each way. For pairs that is half a win
each. For a tier of several, every order of its members has the same share (so that two tied variants alone give half
a win each in both models). Davidson's model (1970) adds a parameter for how readily raters tie; strengths then answer
"who wins if there is no tie". Half wins need no further parameter, stay defined where nobody or everybody ties, and
keep strengths in line with the win rates beside them, so they are used here.

A choice of the best is the first stage of a Plackett-Luce ranking alone: nothing is assumed about the other variants.

Prior. A variant that never (or always) wins has no finite strength. So every pair of variants also meets in made-up
comparisons, half won by each: ``prior`` comparisons a variant in all, spread over its opponents. One comparison a
variant (the default) moves strengths a little towards each other; that fades as answers grow.
"""

from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from flowgrain.errors import ConfigError
from flowgrain.evaluate.ranking.luce import fit_strengths
from flowgrain.evaluate.ranking.pairwise import pair_wins
from flowgrain.evaluate.ranking.sample import Order, Sample, tail_is_open
from flowgrain.evaluate.ranking.summary import Estimate, Strengths

PRIOR = 1.0
"""Made-up comparisons of every variant, half of them won."""
_LARGEST_EXACT_TIE = 8
_CHUNK = 200  # draws fitted together: 20 variants have thousands of different sets
_REPLICATE_TOLERANCE = 1e-6  # of a log strength; far below what the draws differ by


def strengths(sample: Sample, prior: float = PRIOR) -> Strengths:
    """Both models' strengths of the variants shown, by name."""
    pairs = bradley_terry(sample, prior)
    whole = plackett_luce(sample, prior)
    return Strengths(
        bradley_terry=_named(sample, *pairs),
        plackett_luce=_named(sample, *whole),
        worth=_named(sample, _worth(whole[0]), None if whole[1] is None else _worth(whole[1]), bounds=(0.0, 1.0)),
    )


def bradley_terry(
    sample: Sample, prior: float = PRIOR
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "resamples k"] | None]:
    """Log strengths (mean zero) from all pairs that were compared, and those of every bootstrap draw."""
    pairs = list(combinations(range(len(sample.variants)), 2))
    wins = pair_wins(sample)
    sets = np.stack([wins[:, i, j] + wins[:, j, i] for i, j in pairs], axis=1)
    return _fit(sample, wins.sum(axis=2), sets, _members(pairs, len(sample.variants)), prior)


def plackett_luce(
    sample: Sample, prior: float = PRIOR
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "resamples k"] | None]:
    """Log strengths (mean zero) from whole rankings, and those of every bootstrap draw."""
    chosen = np.zeros((len(sample.orders), len(sample.variants)))
    numbers: dict[tuple[int, ...], int] = {}
    rows, columns, weights = [], [], []
    for row, order in enumerate(sample.orders):
        for members, weight in _choice_sets(order).items():
            rows.append(row)
            columns.append(numbers.setdefault(members, len(numbers)))
            weights.append(weight)
        for member, weight in _times_chosen(order).items():
            chosen[row, member] = weight
    sets = csr_array((weights, (rows, columns)), shape=(len(sample.orders), len(numbers)))
    return _fit(sample, chosen, sets, _members(list(numbers), len(sample.variants)), prior)


def _fit(
    sample: Sample,
    chosen: Float[np.ndarray, "orders k"],
    sets: Float[np.ndarray, "orders s"] | csr_array,
    members: Float[np.ndarray, "s k"],
    prior: float,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "resamples k"] | None]:
    """Fit the estimate, then all draws from there; ``chosen`` and ``sets`` are what one answer of an order adds."""
    if not prior > 0:
        raise ConfigError(f"prior {prior} of strengths: must be above 0, or variants that never win have none")
    k = len(sample.variants)
    pairs = list(combinations(range(k), 2))
    members = np.concatenate([members, _members(pairs, k)])
    made_up = np.full(len(pairs), prior / (k - 1))

    def fit(
        counts: Float[np.ndarray, "b orders"], start: Float[np.ndarray, " k"] | None, tolerance: float
    ) -> Float[np.ndarray, "b k"]:
        choices = np.concatenate([counts @ sets, np.tile(made_up, (len(counts), 1))], axis=1)
        return fit_strengths(counts @ chosen + prior / 2, choices, members, start, tolerance)

    estimate = fit(sample.counts[None], None, 1e-10)[0]
    drawn = sample.count_replicates
    if drawn is None:
        return estimate, None
    parts = [drawn[first : first + _CHUNK] for first in range(0, len(drawn), _CHUNK)]
    return estimate, np.concatenate([fit(part, estimate, _REPLICATE_TOLERANCE) for part in parts])


@lru_cache(maxsize=4096)
def _choice_sets(order: Order) -> dict[tuple[int, ...], float]:
    """How often each set is chosen from, on average over the orders of tied variants; sets of one are no choice."""
    sets: dict[tuple[int, ...], float] = {}
    for tier, below in _ordered_tiers(order):
        for left, weight in _left_of(tier):
            members = tuple(sorted(left + below))
            if len(members) > 1:
                sets[members] = sets.get(members, 0.0) + weight
    return sets


def _times_chosen(order: Order) -> dict[int, float]:
    """How often each variant is chosen: once, but the last one of all is left over, which is no choice."""
    return {member: 1.0 if below else 1 - 1 / len(tier) for tier, below in _ordered_tiers(order) for member in tier}


def _ordered_tiers(order: Order) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(tier, all variants below it) of the tiers whose members are chosen one after the other."""
    tiers = order[:-1] if tail_is_open(order) else order
    return [(tier, tuple(member for lower in order[i + 1 :] for member in lower)) for i, tier in enumerate(tiers)]


def _left_of(tier: tuple[int, ...]) -> list[tuple[tuple[int, ...], float]]:
    """What may be left of a tier as its members are taken in any order, and how often (1 in all for each size).

    A large tier has too many subsets; its members are then taken in the cyclic orders forwards and backwards, in
    which each comes at each place equally often.
    """
    size = len(tier)
    if size <= _LARGEST_EXACT_TIE:
        return [(left, 1 / comb(size, n)) for n in range(1, size + 1) for left in combinations(tier, n)]
    turned = [tier[i:] + tier[:i] for i in range(size)]
    rows = turned + [row[::-1] for row in turned]
    return [(row[n:], 1 / len(rows)) for row in rows for n in range(size)]


def _members(sets: list[tuple[int, ...]], k: int) -> Float[np.ndarray, "s k"]:
    members = np.zeros((len(sets), k))
    for row, numbers in enumerate(sets):
        members[row, list(numbers)] = 1
    return members


def _worth(log_strengths: Float[np.ndarray, "*b k"]) -> Float[np.ndarray, "*b k"]:
    """Share of each strength in their sum."""
    weights = np.exp(log_strengths - log_strengths.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _named(
    sample: Sample,
    values: Float[np.ndarray, " k"],
    replicates: Float[np.ndarray, "resamples k"] | None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, Estimate]:
    answers = sample.counts @ sample.shown
    return {
        variant: sample.resampler.estimate(
            values[i], None if replicates is None else replicates[:, i], round(answers[i]), bounds
        )
        for i, variant in enumerate(sample.variants)
    }
