"""Measure arms: every metric with an interval, every wanted pair of arms with the interval of its difference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet, ImageLike, Metric, PictureScore
from flowgrain.evaluate.bootstrap import Bootstrap, cluster_rows, influence_replicates, replicate
from flowgrain.evaluate.cosine import ImageCosine
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.frechet import FrechetDistance
from flowgrain.evaluate.kernel_distance import KernelDistance
from flowgrain.evaluate.pairing import Label, Measured, metric_table
from flowgrain.evaluate.results import MetricDifference as MetricDifference
from flowgrain.evaluate.results import MetricResult as MetricResult
from flowgrain.evaluate.results import MetricTable

PICTURE_METRICS: tuple[Metric, ...] = (FrechetDistance(), KernelDistance(), ImageCosine(), ImageCosine(centred=True))
VALIDATION_LOSS = "fixed-t validation loss"


@dataclass(frozen=True)
class PictureSet:
    """The generated pictures of one arm; ``references`` holds each picture's own reference, or nothing at all."""

    arm: str
    images: Sequence[ImageLike]
    prompts: Sequence[str]
    references: Sequence[ImageLike] | None = None
    seeds: Sequence[int] | None = None
    """Where given, arms are compared only if they drew the same seeds for each prompt."""


def picture_metrics(
    sets: Sequence[PictureSet],
    pool: Sequence[ImageLike],
    encoder: ImageEncoder,
    *,
    subset: str = "whole images",
    pairs: Sequence[tuple[str, str]] = (),
    metrics: Sequence[Metric] = PICTURE_METRICS,
    bootstrap: Bootstrap | None = None,
) -> MetricTable:
    """Measure every arm of ``sets`` against ``pool`` and, for ``pairs`` of arms, their paired differences.

    Prompts are resampled, the pool is held fixed. Metrics that need own references, a text side or class logits are
    left out if an arm or the encoder has none. Raises :class:`DataError` for unequal lengths, unknown arms, or a pair
    whose arms drew different pictures.
    """
    bootstrap = bootstrap or Bootstrap()
    _check_sets(sets)
    features = _encode(sets, pool, encoder, with_text=any(metric.needs_text for metric in metrics))
    table = MetricTable()
    for metric in metrics:
        if not all(_has_what_it_needs(metric, features[item.arm]) for item in sets):
            continue
        measured = [_measure(metric, item, features[item.arm], bootstrap) for item in sets]
        details = {
            "encoder version": encoder.version,
            "resize": f"{encoder.size} px, {encoder.resize}",
            "interval": metric.interval,
        }
        count = metric.reference_count(features[sets[0].arm])
        if count is not None:
            details["references"] = str(count)
        name = metric.name(encoder.family)
        label = Label(name, subset, metric.higher_is_better, encoder.name, details, metric.bounds)
        table += metric_table(measured, label, pairs, bootstrap)
    return table


def score_metrics(
    sets: Sequence[PictureSet],
    scores: Sequence[PictureScore],
    *,
    subset: str = "whole images",
    pairs: Sequence[tuple[str, str]] = (),
    bootstrap: Bootstrap | None = None,
) -> MetricTable:
    """Pool each score over every arm's pictures and, for ``pairs`` of arms, give their paired differences.

    Prompts are resampled with all their pictures. A picture whose value is NaN (the score is not defined on it) is left
    out and counted in the warning. Raises :class:`DataError` as :func:`picture_metrics` does, and for a score that
    does not give one value a picture.
    """
    bootstrap = bootstrap or Bootstrap()
    _check_sets(sets)
    table = MetricTable()
    for score in scores:
        measured = [_measure_score(score, item, bootstrap) for item in sets]
        label = Label(score.title, subset, score.higher_is_better, score.version, {"interval": "bootstrap"})
        table += metric_table(measured, label, pairs, bootstrap)
    return table


def loss_metrics(
    losses: Mapping[str, Mapping[str, float]],
    *,
    subset: str = "held-out roots",
    pairs: Sequence[tuple[str, str]] = (),
    bootstrap: Bootstrap | None = None,
) -> MetricTable:
    """The fixed-t validation loss of each arm from its loss by root, roots resampled, differences paired by root."""
    bootstrap = bootstrap or Bootstrap()
    measured = []
    for arm, by_root in losses.items():
        roots = tuple(sorted(by_root))
        values = np.array([by_root[root] for root in roots], dtype=np.float64)
        if not np.isfinite(values).all():
            bad = roots[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise DataError(f"validation loss of arm '{arm}' is not finite at root '{bad}'")
        replicates = replicate(lambda rows, values=values: float(values[rows].mean()), roots, bootstrap)
        measured.append(Measured(arm, float(values.mean()), replicates, Counter((root, None) for root in roots)))
    return metric_table(measured, Label(VALIDATION_LOSS, subset, False), pairs, bootstrap)


def shared_pictures(sets: Sequence[PictureSet]) -> list[PictureSet]:
    """Each arm's pictures of the (prompt, seed) that all arms drew, in its own order.

    Raises :class:`DataError` for an arm without seeds, or where the arms share nothing.
    """
    keys = []
    for item in sets:
        if item.seeds is None:
            raise DataError(f"arm '{item.arm}' has no seeds: pictures are matched by prompt and seed")
        keys.append(list(zip(item.prompts, item.seeds, strict=True)))
    shared = set.intersection(*(set(drawn) for drawn in keys))
    if not shared:
        raise DataError(f"no prompt and seed that all of {', '.join(item.arm for item in sets)} drew")
    kept = []
    for item, drawn in zip(sets, keys, strict=True):
        rows = [row for row, key in enumerate(drawn) if key in shared]
        own = None if item.references is None else [item.references[row] for row in rows]
        prompts, seeds = zip(*(drawn[row] for row in rows), strict=True)
        kept.append(PictureSet(item.arm, [item.images[row] for row in rows], prompts, own, seeds))
    return kept


def _check_sets(sets: Sequence[PictureSet]) -> None:
    seen: set[str] = set()
    for item in sets:
        if item.arm in seen:
            raise DataError(f"arm '{item.arm}' is given twice: give each arm and checkpoint its own name")
        seen.add(item.arm)
        lengths = {"prompts": item.prompts, "references": item.references, "seeds": item.seeds}
        for kind, values in lengths.items():
            if values is not None and len(values) != len(item.images):
                raise DataError(f"arm '{item.arm}': {len(item.images)} pictures but {len(values)} {kind}")
        prompts = len(set(item.prompts))
        if prompts < 2:  # said before anything is encoded
            raise DataError(f"arm '{item.arm}': an interval needs at least 2 prompts, got {prompts}: draw more prompts")


def _encode(
    sets: Sequence[PictureSet], pool: Sequence[ImageLike], encoder: ImageEncoder, with_text: bool
) -> dict[str, FeatureSet]:
    """Features of all arms; a reference file that several arms share is encoded once."""
    references = [image for item in sets for image in item.references or ()]
    shared = [*references, *pool]
    keys = [str(image) if isinstance(image, Path) else str(id(image)) for image in shared]
    distinct = dict(zip(keys, shared, strict=True))
    encoded = encoder(list(distinct.values())) if distinct else np.empty((0, encoder.dimension), dtype=np.float32)
    place = {key: number for number, key in enumerate(distinct)}
    rows = encoded[[place[key] for key in keys]]
    pool_rows = rows[len(references) :]
    features, start = {}, 0
    for item in sets:
        count = len(item.references or ())
        own = rows[start : start + count] if item.references is not None else None
        generated = encoder(item.images)
        text = encoder.text(item.prompts) if with_text else None
        features[item.arm] = FeatureSet(
            generated,
            own,
            pool_rows,
            None if text is None else text.features,
            0 if text is None else len(text.truncated),
            encoder.logits(generated),
        )
        start += count
    return features


def _has_what_it_needs(metric: Metric, features: FeatureSet) -> bool:
    return not (
        (metric.needs_own_reference and features.own is None)
        or (metric.needs_text and features.text is None)
        or (metric.needs_logits and features.logits is None)
    )


def _measure(metric: Metric, item: PictureSet, features: FeatureSet, bootstrap: Bootstrap) -> Measured:
    found = metric.left_out(features, list(cluster_rows(item.prompts).values()))
    if found is None:
        statistic = metric.statistic(features)
        estimate = statistic(np.arange(len(item.images)))
        replicates = replicate(statistic, item.prompts, bootstrap)
    else:
        estimate, left_out = found
        replicates = influence_replicates(estimate, left_out, bootstrap)
    return Measured(item.arm, estimate, replicates, _pictures(item), _warnings(metric, features))


def _measure_score(score: PictureScore, item: PictureSet, bootstrap: Bootstrap) -> Measured:
    values = np.asarray(score(item.images, item.prompts), dtype=np.float64)
    if values.shape != (len(item.images),):
        raise DataError(f"{score.title}: {values.shape} values for the {len(item.images)} pictures of '{item.arm}'")
    undefined = np.isnan(values)

    def statistic(rows: np.ndarray) -> float:
        kept = rows[~undefined[rows]]
        return score.pooled(values[kept]) if len(kept) else float("nan")

    estimate = statistic(np.arange(len(values)))
    replicates = replicate(statistic, item.prompts, bootstrap)
    count = int(undefined.sum())
    warnings = (f"not defined on {count} of {len(values)} pictures, which are left out",) if count else ()
    return Measured(item.arm, estimate, replicates, _pictures(item), warnings)


def _pictures(item: PictureSet) -> Counter[tuple[str, int | None]]:
    seeds = [None] * len(item.prompts) if item.seeds is None else item.seeds
    return Counter(zip(item.prompts, seeds, strict=True))


def _warnings(metric: Metric, features: FeatureSet) -> tuple[str, ...]:
    warnings = []
    if metric.small_sample is not None:
        counts = {"pictures": len(features.generated), "references": metric.reference_count(features)}
        few = [f"{n} {kind}" for kind, n in counts.items() if n is not None and n < metric.small_sample]
        if few:
            warnings.append(f"{' and '.join(few)}, fewer than {metric.small_sample}: {metric.small_sample_note}")
    if metric.needs_text and features.truncated:
        warnings.append(f"the end of the prompt of {features.truncated} pictures was cut off by the text encoder")
    return tuple(warnings)
