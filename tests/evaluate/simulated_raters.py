"""Raters with planted Plackett-Luce strengths and, if wanted, tastes of their own and a position bias."""

import numpy as np

from flowgrain.evaluate.ranking.records import Ranking


def names(count):
    return tuple(f"v{i}" for i in range(count))


def ranking(*tiers, item="i", shown=None, rater="r", repeat=0, dimension="overall", dataset="d", prompt=None, seed=0):
    """``ranking("a", "bc")``: a before b and c, which are tied; one letter a variant."""
    split = tuple(tuple(tier) for tier in tiers)
    return Ranking(
        item=item,
        dataset=dataset,
        prompt=item if prompt is None else prompt,
        seed=seed,
        dimension=dimension,
        rater=rater,
        repeat=repeat,
        tiers=split,
        shown=tuple(shown) if shown else tuple(sorted(v for tier in split for v in tier)),
    )


def simulate(
    log_strengths,
    generator,
    *,
    datasets=1,
    prompts=8,
    seeds=5,
    raters=1,
    repeats=1,
    dimensions=("overall",),
    first_place_bonus=0.0,
    prompt_spread=0.0,
    rater_spread=0.0,
    best_only=False,
    rotate=False,
):
    """Rankings of all variants; ``first_place_bonus`` adds to the log strength of what stands at place 1.

    Orders are random, or with ``rotate`` those of a rater's repeats are turned by one place each.
    """
    k = len(log_strengths)
    variants = names(k)
    by_prompt = generator.normal(size=(datasets, prompts, k)) * prompt_spread
    by_rater = generator.normal(size=(raters, k)) * rater_spread
    rankings = []
    for d, p, s, r in np.ndindex(datasets, prompts, seeds, raters):
        start = generator.permutation(k)
        for repeat in range(repeats):
            shown = np.roll(start, repeat) if rotate else generator.permutation(k)
            for dimension in dimensions:
                utility = np.asarray(log_strengths, dtype=float) + by_prompt[d, p] + by_rater[r]
                utility[shown[0]] += first_place_bonus
                order = np.argsort(-(utility + generator.gumbel(size=k)))  # Yellott 1977: a Plackett-Luce ranking
                tiers = [order[:1], order[1:]] if best_only else [[v] for v in order]
                rankings.append(
                    Ranking(
                        item=f"{d}-{p}-{s}",
                        dataset=f"d{d}",
                        prompt=f"p{p}",
                        seed=s,
                        dimension=dimension,
                        rater=f"r{r}",
                        repeat=repeat,
                        tiers=tuple(tuple(variants[v] for v in tier) for tier in tiers),
                        shown=tuple(variants[v] for v in shown),
                    )
                )
    return rankings
