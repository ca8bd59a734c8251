"""Position bias: did the place at which a picture was shown help it to come first?

If places have no influence, answers do not depend on the order in which pictures were shown, and exchanging the
orders among the answers changes nothing but chance. So the first places that each place collected are held against the
same count after random exchanges (a permutation test, exact but for the finite number of exchanges). Only orders of
the same variants are exchanged; answers to one screen (several dimensions asked of the same pictures) stay together.

The expected counts follow from how often each variant stood where. So a good variant that happened to stand left
more often is not taken for a bias, and where orders never changed, p = 1: nothing can be found out. Orders that
were balanced by rotation are exchanged as if independent, which finds a bias less readily, never more.
"""

from collections.abc import Hashable

import numpy as np
from jaxtyping import Float, Int

from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.summary import PositionBias
from flowgrain.rng import numpy_generator

PERMUTATIONS = 1_999
_CHUNK = 100  # exchanges at a time


def position_bias(sample: Sample, permutations: int = PERMUTATIONS) -> PositionBias:
    """First-place shares by place shown, left to right, with intervals, and the test that only chance differs."""
    shares = first_by_place(sample)
    places = shares.shape[1]
    columns = np.concatenate([shares, np.ones((len(shares), 1))], axis=1)
    totals = sample.resampler.totals(columns)
    replicates = None if totals is None else totals[:, :places] / totals[:, places:]
    observed = shares.sum(axis=0)
    strata = _screens(sample, places)
    expected = np.sum([_expected(first, place, places) for first, place in strata], axis=0)
    statistic = float(_chi_square(observed[None], expected)[0])
    generator = numpy_generator(sample.resampler.bootstrap.seed, "position bias", len(shares))
    reached = 1
    for start in range(0, permutations, _CHUNK):
        count = min(_CHUNK, permutations - start)
        exchanged = np.sum([_exchanged(first, place, places, count, generator) for first, place in strata], axis=0)
        reached += int((_chi_square(exchanged, expected) >= statistic - 1e-9).sum())
    return PositionBias(
        rates=tuple(
            sample.resampler.estimate(
                observed[i] / len(shares), None if replicates is None else replicates[:, i], len(shares), (0.0, 1.0)
            )
            for i in range(places)
        ),
        expected=tuple(float(share) for share in expected / len(shares)),
        statistic=statistic,
        p_value=reached / (permutations + 1),
        level=sample.resampler.bootstrap.level,
    )


def first_by_place(sample: Sample) -> Float[np.ndarray, "n places"]:
    """Share of the first place of each answer that went to each place; ties share it."""
    shares = np.zeros((len(sample.rankings), max(len(ranking.shown) for ranking in sample.rankings)))
    for row, ranking in enumerate(sample.rankings):
        best = ranking.tiers[0]
        shares[row, [ranking.shown.index(variant) for variant in best]] = 1 / len(best)
    return shares


def _screens(sample: Sample, places: int) -> list[tuple[Float[np.ndarray, "screens k"], Int[np.ndarray, "screens k"]]]:
    """For each set of variants shown together: first places by variant and place of each variant, screen by screen."""
    rows: dict[tuple[str, ...], dict[Hashable, tuple[np.ndarray, np.ndarray]]] = {}
    number = {variant: i for i, variant in enumerate(sample.variants)}
    for ranking, order in zip(sample.rankings, sample.order_of, strict=True):
        screens = rows.setdefault(tuple(sorted(ranking.shown)), {})
        screen = (ranking.item, ranking.rater, ranking.repeat, ranking.shown)
        if screen not in screens:
            place = np.full(len(number), places)  # beyond the last place: counted nowhere
            place[[number[variant] for variant in ranking.shown]] = range(len(ranking.shown))
            screens[screen] = (np.zeros(len(number)), place)
        screens[screen][0][:] += sample.first[order]
    return [
        (np.stack([first for first, _ in screens.values()]), np.stack([place for _, place in screens.values()]))
        for screens in rows.values()
    ]


def _expected(
    first: Float[np.ndarray, "screens k"], place: Int[np.ndarray, "screens k"], places: int
) -> Float[np.ndarray, " places"]:
    """Mean over all exchanges: every variant's first places, spread as the variant was over places."""
    stood = np.stack([(place == p).mean(axis=0) for p in range(places)])
    return stood @ first.sum(axis=0)


def _exchanged(
    first: Float[np.ndarray, "screens k"],
    place: Int[np.ndarray, "screens k"],
    places: int,
    count: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, "count places"]:
    """First places by place after each of ``count`` random exchanges of the orders."""
    screens, variants = first.nonzero()
    shuffled = generator.permuted(np.tile(np.arange(len(place)), (count, 1)), axis=1)
    cell = place[shuffled[:, screens], variants] + np.arange(count)[:, None] * (places + 1)
    weights = np.tile(first[screens, variants], count)
    return np.bincount(cell.reshape(-1), weights, count * (places + 1)).reshape(count, places + 1)[:, :places]


def _chi_square(
    observed: Float[np.ndarray, "b places"], expected: Float[np.ndarray, " places"]
) -> Float[np.ndarray, " b"]:
    reachable = expected > 0
    return ((observed - expected)[:, reachable] ** 2 / expected[reachable]).sum(axis=1)
