"""First-place rates and rank distributions (Semantic Granularity Alignment, section 4.3, Figures 9 and 10, Table 2)."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.records import Ranking
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.summary import Cluster, Estimate, RankDistribution


def first_place_rates(sample: Sample) -> dict[str, Estimate]:
    """Share of the answers showing a variant that put it first; variants tied for first share it evenly.

    Where every answer shows all variants the rates sum to 1.
    """
    rates = sample.rates(sample.first, sample.shown.astype(float))
    return {variant: rate for variant, rate in zip(sample.variants, rates, strict=True) if rate is not None}


def first_place_by_dataset(
    rankings: Sequence[Ranking], variants: Sequence[str], cluster: Cluster, bootstrap: Bootstrap
) -> dict[str, dict[str, Estimate]]:
    """Data set -> variant -> first-place rate, each data set drawn on its own."""
    by_dataset: Mapping[str, list[Ranking]] = {name: [] for name in sorted({r.dataset for r in rankings})}
    for ranking in rankings:
        by_dataset[ranking.dataset].append(ranking)
    return {name: first_place_rates(Sample.of(part, variants, cluster, bootstrap)) for name, part in by_dataset.items()}


def rank_distributions(sample: Sample) -> dict[str, RankDistribution]:
    """Mean rank and share of each rank by variant, among the answers that show it."""
    shown = sample.shown.astype(float)
    places = rank_shares(sample)
    deepest = places.shape[2]
    means = sample.rates(np.nan_to_num(sample.ranks), shown, bounds=(1.0, float(deepest)))
    shares = [sample.rates(places[:, :, rank], shown) for rank in range(deepest)]
    distributions = {}
    for number, variant in enumerate(sample.variants):
        mean, by_rank = means[number], [share[number] for share in shares]
        known = tuple(share for share in by_rank if share is not None)
        if mean is not None:
            distributions[variant] = RankDistribution(mean_rank=mean, shares=known)
    return distributions


def rank_shares(sample: Sample) -> Float[np.ndarray, "orders k ranks"]:
    """Share of every rank that a variant holds in an order: a tier of t spans t ranks and gives each member 1/t."""
    deepest = int(sample.shown.sum(axis=1).max())
    shares = np.zeros((len(sample.orders), len(sample.variants), deepest))
    for row, order in enumerate(sample.orders):
        before = 0
        for tier in order:
            shares[row, list(tier), before : before + len(tier)] = 1 / len(tier)
            before += len(tier)
    return shares
