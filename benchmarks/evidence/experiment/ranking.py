"""First-place rates from encoders as judges: the pictures of one prompt and noise seed, ranked by a cosine.

Neither people nor a language model were asked; each encoder is one rater, and the statistics are those of the study.
"""

from collections.abc import Iterator, Sequence

from flowgrain.evaluate.ranking.records import Ranking
from flowgrain.evaluate.ranking.summarise import summarise
from flowgrain.evaluate.ranking.summary import RankingSummary

from .claims import At, Setting, Store
from .measuring import PROMPTS, picture_key

DIMENSION = "fidelity"


def rank_by_encoder(store: Store, setting: Setting, variants: Sequence[At], encoder: str) -> RankingSummary | None:
    """First-place rates of variants over domains, training seeds, prompts and noise seeds; None without data."""
    rankings = list(_rankings(store, setting, variants, encoder))
    if not rankings:
        return None
    names = [str(at) for at in variants]
    return summarise(rankings, source="judge", dimensions=[DIMENSION], variants=names)


def _rankings(store: Store, setting: Setting, variants: Sequence[At], encoder: str) -> Iterator[Ranking]:
    for domain in store.domains(setting):
        seeds = set.intersection(*(set(store.cells(setting, domain, at.arm)) for at in variants))
        for seed in sorted(seeds):
            keys = [picture_key(store.cells(setting, domain, at.arm)[seed], at.fraction, "whole") for at in variants]
            if not all(key in store.pictures and encoder in store.pictures[key] for key in keys):
                continue
            cosines = [store.pictures[key][encoder]["own_cosine"] for key in keys]
            each = len(cosines[0]) // PROMPTS
            for place in range(len(cosines[0])):
                scores = {str(at): values[place] for at, values in zip(variants, cosines, strict=True)}
                distinct = sorted(set(scores.values()), reverse=True)
                yield Ranking(
                    item=f"{domain}/{seed}/{place}",
                    dataset=domain,
                    prompt=f"{domain}/{place // each}",
                    seed=seed * each + place % each,
                    dimension=DIMENSION,
                    rater=encoder,
                    tiers=tuple(tuple(n for n, s in scores.items() if s == value) for value in distinct),
                    shown=tuple(scores),
                )
