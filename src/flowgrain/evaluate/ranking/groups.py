"""How far two groups of raters agree, for example a judge and people, on the items that both answered.

Intervals draw prompts, the same ones for both groups.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.concordance import mean_kendall_tau
from flowgrain.evaluate.ranking.records import Ranking
from flowgrain.evaluate.ranking.resample import Resampler, mean_estimate
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.strengths import PRIOR, plackett_luce
from flowgrain.evaluate.ranking.summary import POOLED, Estimate, GroupAgreement


def group_agreement(
    first: Sequence[Ranking],
    second: Sequence[Ranking],
    variants: Sequence[str],
    *,
    groups: tuple[str, str] = ("judge", "study"),
    dimensions: tuple[str, str] = (POOLED, POOLED),
    bootstrap: Bootstrap | None = None,
) -> GroupAgreement:
    """Compare the answers of two groups item by item; :data:`POOLED` takes a group's answers on all dimensions.

    Raises DataError where the two share no item on these dimensions.
    """
    bootstrap = bootstrap or Bootstrap()
    both = [_on(rankings, dimension) for rankings, dimension in zip((first, second), dimensions, strict=True)]
    shared = {ranking.item for ranking in both[0]} & {ranking.item for ranking in both[1]}
    if not shared:
        raise DataError(
            f"{groups[0]} ('{dimensions[0]}') and {groups[1]} ('{dimensions[1]}') share no item: compare answers to "
            "the same comparison.yaml"
        )
    a, b = (
        Sample.of([ranking for ranking in rankings if ranking.item in shared], variants, "prompt", bootstrap)
        for rankings in both
    )
    if a.variants != b.variants:
        raise DataError(
            f"{groups[0]} saw the variants {', '.join(a.variants)}, {groups[1]} saw {', '.join(b.variants)}: only "
            "answers about the same variants can be compared"
        )
    prompt_of = {ranking.item: (ranking.dataset, ranking.prompt) for ranking in a.rankings}
    items = sorted(shared)
    prompts = [prompt_of[item] for item in items]
    resampler = Resampler.of(prompts, prompts, "prompt", bootstrap)
    ranks = np.stack([_mean_ranks(a, items), _mean_ranks(b, items)], axis=1)
    tau = np.array([mean_kendall_tau(pair[:, ~np.isnan(pair).any(axis=0)]) for pair in ranks])
    favourites = _favourites(a, items), _favourites(b, items)
    return GroupAgreement(
        groups=groups,
        dimensions=dimensions,
        items=len(items),
        kendall_tau=mean_estimate(tau, resampler, (-1.0, 1.0)),
        same_first=mean_estimate(_overlap(*favourites), resampler, (0.0, 1.0)),
        same_first_by_chance=_overlap_by_chance(*favourites),
        strength_correlation=_strength_correlation(a, b, resampler),
    )


def _on(rankings: Sequence[Ranking], dimension: str) -> list[Ranking]:
    return [ranking for ranking in rankings if dimension in (POOLED, ranking.dimension)]


def _mean_ranks(sample: Sample, items: Sequence[str]) -> Float[np.ndarray, "items k"]:
    """Mean over a group's answers to each item; NaN for a variant that was not shown."""
    shown = sample.shown.astype(float)
    total, count = _by_item(sample, items, np.nan_to_num(sample.ranks)), _by_item(sample, items, shown)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).round(9)


def _favourites(sample: Sample, items: Sequence[str]) -> Float[np.ndarray, "items k"]:
    """1 for the variants that came first most often in a group's answers to each item."""
    first, shown = _by_item(sample, items, sample.first), _by_item(sample, items, sample.shown.astype(float))
    share = np.divide(first, shown, out=np.zeros(first.shape), where=shown > 0)
    return (share > share.max(axis=1, keepdims=True) - 1e-9).astype(float)


def _by_item(
    sample: Sample, items: Sequence[str], values: Float[np.ndarray, "orders k"]
) -> Float[np.ndarray, "items k"]:
    number = {item: i for i, item in enumerate(items)}
    sums = np.zeros((len(items), values.shape[1]))
    np.add.at(sums, [number[ranking.item] for ranking in sample.rankings], values[sample.order_of])
    return sums


def _overlap(first: Float[np.ndarray, "*b k"], second: Float[np.ndarray, "*b k"]) -> Float[np.ndarray, "*b"]:
    """Favourites in common over favourites of either group: 1 if both have the same ones."""
    return np.minimum(first, second).sum(axis=-1) / np.maximum(first, second).sum(axis=-1)


def _overlap_by_chance(first: Float[np.ndarray, "items k"], second: Float[np.ndarray, "items k"]) -> float:
    """Mean overlap of one group's favourites of an item with the other's of any item."""
    kinds_a, times_a = np.unique(first, axis=0, return_counts=True)
    kinds_b, times_b = np.unique(second, axis=0, return_counts=True)
    overlaps = np.stack([_overlap(np.tile(kind, (len(kinds_b), 1)), kinds_b) for kind in kinds_a])
    return float((times_a / len(first)) @ overlaps @ (times_b / len(second)))


def _strength_correlation(a: Sample, b: Sample, resampler: Resampler) -> Estimate | None:
    """None for two variants, whose correlation is 1 or -1 whatever they are, and where all strengths are equal."""
    if len(a.variants) < 3:
        return None
    (strengths_a, drawn_a), (strengths_b, drawn_b) = plackett_luce(a, PRIOR), plackett_luce(b, PRIOR)
    value = _correlation(strengths_a[None], strengths_b[None])[0]
    replicates = None if drawn_a is None or drawn_b is None else _correlation(drawn_a, drawn_b)
    return None if np.isnan(value) else resampler.estimate(value, replicates, len(a.variants), (-1.0, 1.0))


def _correlation(first: Float[np.ndarray, "b k"], second: Float[np.ndarray, "b k"]) -> Float[np.ndarray, " b"]:
    """Pearson's, row by row; the rows have mean zero."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    return np.divide(products, lengths, out=np.full(len(first), np.nan), where=lengths > 1e-9)
