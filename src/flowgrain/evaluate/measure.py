"""Measure a comparison: every data set, every encoder, every score, one table."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from flowgrain.config import Config
from flowgrain.errors import DataError
from flowgrain.evaluate.base import Metric
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.comparison import Comparison, Dataset, Variant
from flowgrain.evaluate.default_metrics import default_metrics
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.registry import open_encoder
from flowgrain.evaluate.feature_cache import CachedEncoder
from flowgrain.evaluate.inception_score import InceptionScore
from flowgrain.evaluate.precision_recall import ManifoldMetric
from flowgrain.evaluate.results import MetricTable
from flowgrain.evaluate.score_registry import ScoreOptions, open_score
from flowgrain.evaluate.table import PictureSet, picture_metrics, score_metrics, shared_pictures
from flowgrain.pretrained.precision import Precision

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


class EvaluateConfig(Config):
    """What is measured and how."""

    encoders: tuple[str, ...] = Field(
        default=("mobilenet",), description="KIND or KIND:LOCATION of encoders.registry; none for scores alone"
    )
    scores: tuple[str, ...] = Field(
        default=("compression", "glcm"), description="KIND or KIND:LOCATION of score_registry"
    )
    manifold: bool = Field(default=False, description="also precision, recall, density and coverage in each encoder")
    device: str = "cpu"
    batch_size: int = Field(default=16, ge=1)
    dtype: Precision = "float32"
    resamples: int = Field(default=1000, ge=100, description="bootstrap draws of prompts")
    level: float = Field(default=0.95, gt=0, lt=1, description="of the intervals")
    seed: int = 0


def measure(comparison: Comparison, config: EvaluateConfig, cache: Path | None, on_progress: Progress) -> MetricTable:
    """All metrics of all data sets; ``cache`` is where features are kept, None for nowhere.

    Variants are measured on the pictures that all of them drew. Distances to references are left out for a data set
    that has none. Raises ConfigError, DataError and ModelError as the parts do.
    """
    bootstrap = Bootstrap(config.resamples, config.level, config.seed)
    encoders = [_encoder(spec, config, cache, on_progress) for spec in config.encoders]
    options = ScoreOptions(config.device, config.batch_size, config.dtype, cache)
    scores = [open_score(spec, options) for spec in config.scores]
    table = MetricTable()
    for dataset in comparison.datasets:
        sets = shared_pictures([_pictures(dataset, variant) for variant in dataset.variants])
        pool = [reference.path for reference in dataset.references]
        for encoder in encoders:
            metrics = _metrics(encoder, len(pool), config.manifold)
            if not pool:
                metrics = tuple(metric for metric in metrics if not _needs_references(metric))
            if metrics:
                table += picture_metrics(
                    sets, pool, encoder,
                    subset=dataset.name, pairs=comparison.pairs, metrics=metrics, bootstrap=bootstrap,
                )  # fmt: skip
        for number, score in enumerate(scores):
            on_progress(f"{dataset.name}: scores", number, len(scores))
            table += score_metrics(sets, [score], subset=dataset.name, pairs=comparison.pairs, bootstrap=bootstrap)
        if scores:
            on_progress(f"{dataset.name}: scores", len(scores), len(scores))
    if not table.results:
        raise DataError("nothing to measure: no data set has references and no score was asked for; add --score")
    return table


def own_references(dataset: Dataset, prompts: Sequence[str]) -> list[Path] | None:
    """The reference that each prompt names, None where one prompt has none."""
    found = [dataset.own_reference(prompt) for prompt in prompts]
    paths = [reference.path for reference in found if reference is not None]
    return paths if len(paths) == len(found) else None


def _pictures(dataset: Dataset, variant: Variant) -> PictureSet:
    prompts = [drawn.prompt for drawn in variant.pictures]
    return PictureSet(
        arm=variant.name,
        images=[drawn.path for drawn in variant.pictures],
        prompts=prompts,
        references=own_references(dataset, prompts),
        seeds=[drawn.seed for drawn in variant.pictures],
    )


def _metrics(encoder: ImageEncoder, references: int, manifold: bool) -> tuple[Metric, ...]:
    metrics = default_metrics(encoder, references)
    if encoder.family == "Inception":
        metrics += (InceptionScore(),)
    if manifold:
        metrics += (ManifoldMetric("precision"), ManifoldMetric("recall"))
        metrics += (ManifoldMetric("density"), ManifoldMetric("coverage"))
    return metrics


def _needs_references(metric: Metric) -> bool:
    return not (metric.needs_text or isinstance(metric, InceptionScore))


def _encoder(spec: str, config: EvaluateConfig, cache: Path | None, on_progress: Progress) -> ImageEncoder:
    encoder = open_encoder(spec, config.device, config.batch_size, config.dtype)
    if cache is None:
        return encoder
    return CachedEncoder(encoder, cache, lambda done, total: on_progress(f"{encoder.family} features", done, total))
