"""Scores from 0 to 100 (URAE, Appendix C.1, Table 4): means by variant and paired differences."""

from collections.abc import Sequence

import numpy as np

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.differences import paired_differences
from flowgrain.evaluate.ranking.records import Score
from flowgrain.evaluate.ranking.resample import Resampler, mean_estimate
from flowgrain.evaluate.ranking.summary import Cluster, Scores

_LARGEST = 100.0


def score_table(
    scores: Sequence[Score],
    variants: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    cluster: Cluster,
    bootstrap: Bootstrap,
) -> Scores:
    """Means by variant and the wanted pairs' differences, each over what one rater scored on one item and repeat.

    Raises DataError for an unknown variant or a picture scored twice.
    """
    column = {variant: i for i, variant in enumerate(variants)}
    sittings = {_sitting(score): score for score in scores}
    row = {sitting: i for i, sitting in enumerate(sittings)}
    values = np.full((len(row), len(column)), np.nan)
    for score in scores:
        where = f"score of item {score.item} by '{score.rater}' on '{score.dimension}'"
        if score.variant not in column:
            raise DataError(f"{where}: no variant '{score.variant}'; variants: {', '.join(variants)}")
        cell = row[_sitting(score)], column[score.variant]
        if not np.isnan(values[cell]):
            raise DataError(f"{where}: '{score.variant}' is scored twice as repeat {score.repeat}; leave one out")
        values[cell] = score.value
    resampler = Resampler.of(
        [(score.dataset, score.prompt) for score in sittings.values()],
        [score.rater for score in sittings.values()],
        cluster,
        bootstrap,
    )
    means = {variant: mean_estimate(values[:, i], resampler, (0.0, _LARGEST)) for variant, i in column.items()}
    return Scores(
        mean={variant: mean for variant, mean in means.items() if mean is not None},
        differences=paired_differences(values, variants, pairs, resampler, _LARGEST),
    )


def _sitting(score: Score) -> tuple[str, str, str, int]:
    return score.dimension, score.item, score.rater, score.repeat
