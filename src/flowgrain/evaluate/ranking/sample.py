"""Rankings as arrays: each distinct order once, and how often every bootstrap draw holds it.

Almost every statistic of rankings depends on how often each order of the variants was given (of four variants there are
75, ties included). So the draws are taken once, and a statistic of all draws is one product of matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.records import Ranking
from flowgrain.evaluate.ranking.resample import Resampler, ratio
from flowgrain.evaluate.ranking.summary import Cluster, Estimate

Order = tuple[tuple[int, ...], ...]
"""Tiers of variant numbers, best first, sorted within a tier."""


@dataclass(frozen=True)
class Sample:
    """Rankings that are measured together."""

    rankings: tuple[Ranking, ...]
    variants: tuple[str, ...]
    """Those that any ranking shows, in the order asked for; the variant numbers of an order point here."""
    orders: tuple[Order, ...]
    order_of: Int[np.ndarray, " n"]
    resampler: Resampler

    @classmethod
    def of(
        cls, rankings: Sequence[Ranking], variants: Sequence[str], cluster: Cluster, bootstrap: Bootstrap
    ) -> "Sample":
        """Raises DataError for no rankings, an unknown variant, a lone picture, or a question answered twice."""
        check_rankings(rankings, variants)
        shown = {variant for ranking in rankings for variant in ranking.shown}
        present = tuple(variant for variant in variants if variant in shown)
        number = {variant: i for i, variant in enumerate(present)}
        given = [tuple(tuple(sorted(number[v] for v in tier)) for tier in ranking.tiers) for ranking in rankings]
        orders = tuple(sorted(set(given)))
        position = {order: i for i, order in enumerate(orders)}
        resampler = Resampler.of(
            [(ranking.dataset, ranking.prompt) for ranking in rankings],
            [ranking.rater for ranking in rankings],
            cluster,
            bootstrap,
        )
        order_of = np.array([position[order] for order in given], dtype=np.int64)
        return cls(tuple(rankings), present, orders, order_of, resampler)

    @cached_property
    def counts(self) -> Float[np.ndarray, " orders"]:
        """How often each order was given."""
        return np.bincount(self.order_of, minlength=len(self.orders)).astype(float)

    @cached_property
    def count_replicates(self) -> Float[np.ndarray, "resamples orders"] | None:
        """The same in every bootstrap draw; None if there is nothing to draw."""
        rows = np.arange(len(self.order_of))
        one_hot = csr_array((np.ones(len(rows)), (rows, self.order_of)), shape=(len(rows), len(self.orders)))
        return self.resampler.totals(one_hot)

    @cached_property
    def shown(self) -> Bool[np.ndarray, "orders k"]:
        """Which variants an order holds."""
        return ~np.isnan(self.ranks)

    @cached_property
    def ranks(self) -> Float[np.ndarray, "orders k"]:
        """Rank of every variant from 1, tied ones at the mean of their ranks; NaN where it was not shown."""
        ranks = np.full((len(self.orders), len(self.variants)), np.nan)
        for row, order in enumerate(self.orders):
            before = 0
            for tier in order:
                ranks[row, list(tier)] = before + (len(tier) + 1) / 2
                before += len(tier)
        return ranks

    @cached_property
    def first(self) -> Float[np.ndarray, "orders k"]:
        """Share of the first place that every variant holds: 1 / (number of tied ones), 0 for the others."""
        first = np.zeros((len(self.orders), len(self.variants)))
        for row, order in enumerate(self.orders):
            first[row, list(order[0])] = 1 / len(order[0])
        return first

    def rates(
        self,
        part: Float[np.ndarray, "orders m"],
        whole: Float[np.ndarray, "orders m"],
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> list[Estimate | None]:
        """Sum of ``part`` over sum of ``whole`` for each column; None where the latter is zero."""
        parts, wholes = self.counts @ part, self.counts @ whole
        drawn = self.count_replicates
        replicates = None if drawn is None else ratio(drawn @ part, drawn @ whole)
        return [
            self.resampler.estimate(
                parts[i] / wholes[i], None if replicates is None else replicates[:, i], round(wholes[i]), bounds
            )
            if wholes[i] > 0
            else None
            for i in range(len(wholes))
        ]


def tail_is_open(order: Order) -> bool:
    """Whether the order within the last tier was not asked for.

    A choice of the best is kept as two tiers, and nothing is known about the order of the others. An order of all
    variants that happens to have two tiers looks the same; what it says about its last tier is then left out, which
    loses a little, where counting it would make the others of every choice look equally good.
    """
    return len(order) == 2


def check_rankings(rankings: Sequence[Ranking], variants: Sequence[str]) -> None:
    """Raises DataError for no rankings, an unknown variant, a lone picture, or a question answered twice."""
    if not rankings:
        raise DataError("no rankings to measure: collect answers first")
    known, seen = set(variants), set()
    for ranking in rankings:
        where = f"ranking of item {ranking.item} by '{ranking.rater}' on '{ranking.dimension}'"
        unknown = sorted(set(ranking.shown) - known)
        if unknown:
            raise DataError(f"{where}: no variant '{unknown[0]}'; variants: {', '.join(variants)}")
        if len(ranking.shown) < 2:
            raise DataError(f"{where}: shows one picture only, which ranks nothing; leave it out")
        identity = (*question(ranking), ranking.rater, ranking.repeat)
        if identity in seen:
            raise DataError(
                f"{where}: answered twice as repeat {ranking.repeat}; count repeats of a question from 0, or leave "
                "one answer out"
            )
        seen.add(identity)


def question(ranking: Ranking) -> tuple[str, str, tuple[str, ...]]:
    """What was asked: dimension, item and the variants shown, wherever they stood."""
    return ranking.dimension, ranking.item, tuple(sorted(ranking.shown))
