"""All statistics of the rankings and scores of one source, in one summary."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.agreement import agreement, repeats
from flowgrain.evaluate.ranking.differences import first_place_differences
from flowgrain.evaluate.ranking.first_place import first_place_by_dataset, first_place_rates, rank_distributions
from flowgrain.evaluate.ranking.pairwise import win_rates
from flowgrain.evaluate.ranking.position import position_bias
from flowgrain.evaluate.ranking.records import Ranking, Score
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.scores import score_table
from flowgrain.evaluate.ranking.strengths import strengths
from flowgrain.evaluate.ranking.summary import POOLED, Cluster, Counts, PositionBias, RankingSummary

_FEW_PROMPTS = 20


def summarise(
    rankings: Sequence[Ranking],
    scores: Sequence[Score] = (),
    *,
    source: Literal["judge", "study"],
    dimensions: Sequence[str],
    variants: Sequence[str],
    pairs: Sequence[tuple[str, str]] | None = None,
    bootstrap: Bootstrap | None = None,
    cluster: Cluster | None = None,
) -> RankingSummary:
    """Measure everything; ``pairs`` are the differences to test, all by default.

    ``cluster`` says what intervals draw: by default prompts for a judge, raters crossed with prompts for a study.
    Raises DataError for answers on other dimensions or variants, or given twice; ConfigError for unknown pairs.
    """
    bootstrap = bootstrap or Bootstrap()
    cluster = cluster or ("prompt" if source == "judge" else "crossed")
    pairs = _checked_pairs(pairs, variants)
    by_dimension = _by_dimension(rankings, dimensions)
    scored = {name: [score for score in scores if score.dimension == name] for name in dimensions}
    _check_dimensions(scores, dimensions)
    samples = {name: Sample.of(part, variants, cluster, bootstrap) for name, part in by_dimension.items()}
    bias = {name: position_bias(sample) for name, sample in samples.items()}
    agreements = {name: agreement(sample) for name, sample in samples.items()}
    repeated = {name: repeats(sample) for name, sample in samples.items()}
    return RankingSummary(
        source=source,
        variants=tuple(variants),
        datasets=tuple(sorted({answer.dataset for answer in (*rankings, *scores)})),
        dimensions=tuple(dimensions),
        counts=_counts(rankings, scores),
        cluster=cluster,
        level=bootstrap.level,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
        first_place={name: first_place_rates(sample) for name, sample in samples.items()},
        first_place_by_dataset={
            name: first_place_by_dataset(part, variants, cluster, bootstrap) for name, part in by_dimension.items()
        },
        first_place_differences={name: first_place_differences(sample, pairs) for name, sample in samples.items()},
        rank_distribution={name: rank_distributions(sample) for name, sample in samples.items()},
        pairwise={name: win_rates(sample) for name, sample in samples.items()},
        strengths={name: strengths(sample) for name, sample in samples.items()},
        position_bias=bias,
        agreement={name: found for name, found in agreements.items() if found is not None},
        repeats={name: found for name, found in repeated.items() if found is not None},
        scores={name: score_table(part, variants, pairs, cluster, bootstrap) for name, part in scored.items() if part},
        warnings=_warnings(rankings, scores, cluster, bias),
    )


def _checked_pairs(pairs: Sequence[tuple[str, str]] | None, variants: Sequence[str]) -> list[tuple[str, str]]:
    if pairs is None:
        return list(combinations(variants, 2))
    for first, second in pairs:
        for name in (first, second):
            if name not in variants:
                raise ConfigError(f"pair ({first}, {second}): no variant '{name}'; variants: {', '.join(variants)}")
        if first == second:
            raise ConfigError(f"pair ({first}, {second}): a variant cannot be compared with itself")
    return list(pairs)


def _by_dimension(rankings: Sequence[Ranking], dimensions: Sequence[str]) -> dict[str, list[Ranking]]:
    """Rankings of every dimension that has any, and of all together where several have."""
    _check_dimensions(rankings, dimensions)
    parts = {name: [ranking for ranking in rankings if ranking.dimension == name] for name in dimensions}
    answered = {name: part for name, part in parts.items() if part}
    return {**answered, POOLED: list(rankings)} if len(answered) > 1 else answered


def _check_dimensions(answers: Sequence[Ranking] | Sequence[Score], dimensions: Sequence[str]) -> None:
    for answer in answers:
        if answer.dimension not in dimensions:
            raise DataError(
                f"answer of '{answer.rater}' to item {answer.item}: no dimension '{answer.dimension}'; dimensions: "
                f"{', '.join(dimensions)}"
            )


def _counts(rankings: Sequence[Ranking], scores: Sequence[Score]) -> Counts:
    answers = (*rankings, *scores)
    return Counts(
        rankings=len(rankings),
        scores=len(scores),
        raters=len({answer.rater for answer in answers}),
        items=len({answer.item for answer in answers}),
        prompts=len({(answer.dataset, answer.prompt) for answer in answers}),
    )


def _warnings(
    rankings: Sequence[Ranking], scores: Sequence[Score], cluster: Cluster, bias: dict[str, PositionBias]
) -> tuple[str, ...]:
    """What a reader of the numbers should know about how they came about."""
    counts = _counts(rankings, scores)
    if not counts.rankings and not counts.scores:
        return ("There are no answers yet.",)
    warnings = []
    if counts.prompts < _FEW_PROMPTS:
        warnings.append(
            f"Intervals rest on {counts.prompts} prompts; with fewer than {_FEW_PROMPTS} they are rough themselves."
        )
    if counts.raters == 1 and cluster != "prompt":
        warnings.append("All answers are of one rater: no interval covers the choice of raters.")
    if len({tuple(sorted(ranking.shown)) for ranking in rankings}) > 1:
        warnings.append(
            "Some questions show other variants than others: first-place rates and ranks are among what was shown; "
            "compare variants by win rates or strengths."
        )
    for name, found in bias.items():
        if found.found and name != POOLED:
            warnings.append(
                f"On '{name}' the place at which a picture was shown had an influence (p = {found.p_value:.2g}): rates "
                "are fair only as far as every variant stood at every place equally often."
            )
    return tuple(warnings)
