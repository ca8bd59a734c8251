"""Measure arms: every metric with an interval, every wanted pair of arms with the interval of its difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet, ImageLike, Metric
from flowgrain.evaluate.bootstrap import Bootstrap, replicate
from flowgrain.evaluate.cosine import ImageCosine
from flowgrain.evaluate.features import ImageEncoder
from flowgrain.evaluate.frechet import FrechetDistance
from flowgrain.evaluate.kernel_distance import KernelDistance

PICTURE_METRICS: tuple[Metric, ...] = (FrechetDistance(), KernelDistance(), ImageCosine(), ImageCosine(centred=True))
VALIDATION_LOSS = "fixed-t validation loss"
FEW_CLUSTERS = 20


@dataclass(frozen=True)
class MetricResult:
    """One metric of one arm with its interval."""

    name: str
    arm: str
    subset: str
    """What was measured, for example ``whole images``."""
    value: float
    low: float
    high: float
    level: float
    n: int
    clusters: int
    """Number of prompts (or roots) that the interval resamples."""
    encoder: str
    higher_is_better: bool
    warning: str | None = None
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricDifference:
    """``second`` minus ``first`` on shared resamples."""

    name: str
    subset: str
    first: str
    second: str
    value: float
    low: float
    high: float
    level: float
    clusters: int
    higher_is_better: bool

    @property
    def supported(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def ahead(self) -> str | None:
        """The better arm where the interval supports a difference, else None."""
        if not self.supported:
            return None
        return self.second if (self.value > 0) == self.higher_is_better else self.first


@dataclass(frozen=True)
class MetricTable:
    """Results and differences, in the order in which a page shows them."""

    results: tuple[MetricResult, ...] = ()
    differences: tuple[MetricDifference, ...] = ()

    def __add__(self, other: "MetricTable") -> "MetricTable":
        return MetricTable(self.results + other.results, self.differences + other.differences)


@dataclass(frozen=True)
class PictureSet:
    """The generated pictures of one arm; ``references`` holds each picture's own reference, or nothing at all."""

    arm: str
    images: Sequence[ImageLike]
    prompts: Sequence[str]
    references: Sequence[ImageLike] | None = None


@dataclass(frozen=True)
class _Measured:
    """One metric of one arm before it is written down: estimate and replicates."""

    arm: str
    estimate: float
    replicates: Float[np.ndarray, " r"]
    clusters: tuple[str, ...]
    n: int


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

    Prompts are resampled, the pool is held fixed. Metrics that need own references are left out if no arm has them.
    Raises :class:`DataError` for unequal lengths, unknown arms, or a pair whose arms drew different prompts.
    """
    bootstrap = bootstrap or Bootstrap()
    _check_sets(sets)
    features = _encode(sets, pool, encoder)
    have_own = all(item.references is not None for item in sets)
    table = MetricTable()
    for metric in metrics:
        if metric.needs_own_reference and not have_own:
            continue
        measured = [_measure(metric, item, features[item.arm], bootstrap) for item in sets]
        name = f"{encoder.family} {metric.title}"
        results = tuple(
            _result(row, name, subset, bootstrap, encoder.name, metric.higher_is_better, _warning(metric, row.n))
            for row in measured
        )
        table += MetricTable(results, _differences(measured, pairs, name, subset, bootstrap, metric.higher_is_better))
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
            raise DataError(f"validation loss of arm '{arm}' is not finite at root '{_first_bad(roots, values)}'")
        replicates = replicate(lambda rows, values=values: float(values[rows].mean()), roots, bootstrap)
        measured.append(_Measured(arm, float(values.mean()), replicates, roots, len(roots)))
    results = tuple(_result(row, VALIDATION_LOSS, subset, bootstrap, "", False, None) for row in measured)
    return MetricTable(results, _differences(measured, pairs, VALIDATION_LOSS, subset, bootstrap, False))


def _first_bad(roots: Sequence[str], values: Float[np.ndarray, " n"]) -> str:
    return roots[int(np.flatnonzero(~np.isfinite(values))[0])]


def _check_sets(sets: Sequence[PictureSet]) -> None:
    seen: set[str] = set()
    for item in sets:
        if item.arm in seen:
            raise DataError(f"arm '{item.arm}' is given twice: give each arm and checkpoint its own name")
        seen.add(item.arm)
        if len(item.images) != len(item.prompts):
            raise DataError(f"arm '{item.arm}': {len(item.images)} pictures but {len(item.prompts)} prompts")
        if item.references is not None and len(item.references) != len(item.images):
            raise DataError(f"arm '{item.arm}': {len(item.images)} pictures but {len(item.references)} references")


def _encode(sets: Sequence[PictureSet], pool: Sequence[ImageLike], encoder: ImageEncoder) -> dict[str, FeatureSet]:
    """Features of all arms; a reference file that several arms share is encoded once."""
    references = [image for item in sets for image in item.references or ()]
    shared = [*references, *pool]
    keys = [str(image) if isinstance(image, Path) else str(id(image)) for image in shared]
    distinct = dict(zip(keys, shared, strict=True))
    encoded = dict(zip(distinct, encoder(list(distinct.values())), strict=True))
    rows = np.stack([encoded[key] for key in keys])
    pool_rows = rows[len(references) :]
    features, start = {}, 0
    for item in sets:
        count = len(item.references or ())
        own = rows[start : start + count] if item.references is not None else None
        features[item.arm] = FeatureSet(encoder(item.images), own, pool_rows)
        start += count
    return features


def _measure(metric: Metric, item: PictureSet, features: FeatureSet, bootstrap: Bootstrap) -> _Measured:
    statistic = metric.statistic(features)
    estimate = statistic(np.arange(len(item.images)))
    replicates = replicate(statistic, item.prompts, bootstrap)
    return _Measured(item.arm, estimate, replicates, tuple(sorted(set(item.prompts))), len(item.images))


def _warning(metric: Metric, n: int) -> str | None:
    if metric.small_sample is None or n >= metric.small_sample:
        return None
    return f"{n} pictures, fewer than {metric.small_sample}: {metric.small_sample_note}"


def _result(
    row: _Measured,
    name: str,
    subset: str,
    bootstrap: Bootstrap,
    encoder: str,
    higher_is_better: bool,
    warning: str | None,
) -> MetricResult:
    low, high = bootstrap.interval(row.estimate, row.replicates)
    few = (
        f"the interval rests on {len(row.clusters)} prompts or roots only" if len(row.clusters) < FEW_CLUSTERS else None
    )
    return MetricResult(
        name=name,
        arm=row.arm,
        subset=subset,
        value=row.estimate,
        low=low,
        high=high,
        level=bootstrap.level,
        n=row.n,
        clusters=len(row.clusters),
        encoder=encoder,
        higher_is_better=higher_is_better,
        warning="; ".join(text for text in (warning, few) if text) or None,
        details={"resamples": str(bootstrap.resamples), "seed": str(bootstrap.seed)},
    )


def _differences(
    measured: Sequence[_Measured],
    pairs: Sequence[tuple[str, str]],
    name: str,
    subset: str,
    bootstrap: Bootstrap,
    higher_is_better: bool,
) -> tuple[MetricDifference, ...]:
    by_arm = {row.arm: row for row in measured}
    differences = []
    for first, second in pairs:
        for arm in (first, second):
            if arm not in by_arm:
                raise DataError(f"{name}: no arm '{arm}' to compare; arms here: {', '.join(by_arm)}")
        a, b = by_arm[first], by_arm[second]
        if a.clusters != b.clusters:
            odd = sorted(set(a.clusters) ^ set(b.clusters))
            raise DataError(
                f"{name}: arms '{first}' and '{second}' must share their prompts (or roots) to be compared in pairs; "
                f"{len(odd)} occur in one only, for example '{odd[0]}'"
            )
        value = b.estimate - a.estimate
        low, high = bootstrap.interval(value, b.replicates - a.replicates)
        differences.append(
            MetricDifference(
                name, subset, first, second, value, low, high, bootstrap.level, len(a.clusters), higher_is_better
            )
        )
    return tuple(differences)
