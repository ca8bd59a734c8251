"""The seam of picture metrics: features of one arm in, a statistic of resampled rows out.

A metric is one file: pure functions with their source, and a final :class:`Metric` that names it, says which way is
better and how many pictures it needs. :mod:`flowgrain.evaluate.table` bootstraps any of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from flowgrain.errors import DataError

ImageLike = Image.Image | np.ndarray | Path
"""A Pillow image, an (h, w, 3) uint8 array or a file."""
Statistic = Callable[[Int[np.ndarray, " k"]], float]
"""Rows of an arm's features, with repeats where a bootstrap drew a row twice -> the metric on these rows."""

JACKKNIFE = "bootstrap of the influence of each prompt (jackknife)"
"""``Metric.interval`` of a metric that gives :meth:`Metric.left_out`."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of one arm's pictures and of what they are held against; two sets are equal if they are one object."""

    generated: Float[np.ndarray, "n d"]
    own: Float[np.ndarray, "n d"] | None
    """The reference of each generated picture's own prompt, row by row; None if prompts have none."""
    pool: Float[np.ndarray, "m d"]
    """The reference pictures as a distribution, each once. Held fixed while the generated rows are resampled."""
    text: Float[np.ndarray, "n d"] | None = None
    """The prompt of each generated picture in the encoder's joint space; None if the encoder has no text side."""
    truncated: int = 0
    """Pictures whose prompt is longer than the text encoder reads."""
    logits: Float[np.ndarray, "n c"] | None = None
    """Class logits of each generated picture; None if the encoder is no classifier."""


class Metric(ABC):
    """One number about an arm's pictures."""

    title: str
    """Name without the encoder, for example ``Frechet distance``."""
    higher_is_better: bool
    needs_own_reference: bool
    needs_text: bool = False
    needs_logits: bool = False
    small_sample: int | None
    """Below this many generated or reference pictures a result is flagged; None if any number is fair."""
    small_sample_note: str
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    """What the number can be: an interval ends there."""
    interval: str = "bootstrap"
    """How its interval is made, as results tell it."""

    def name(self, family: str) -> str:
        """What results call it on the features of an encoder of this family."""
        return f"{family} {self.title}"

    @abstractmethod
    def statistic(self, features: FeatureSet) -> Statistic:
        """Precompute what does not depend on the resample and return the function of rows."""

    def reference_count(self, features: FeatureSet) -> int | None:
        """Number of reference pictures behind the number; None where it is not known."""
        return len(features.pool)

    def left_out(
        self, features: FeatureSet, clusters: Sequence[Int[np.ndarray, " _"]]
    ) -> tuple[float, Float[np.ndarray, " g"]] | None:
        """The metric of all rows and of all rows but each cluster's; NaN where too few are left.

        For a statistic that is too slow, or too unsmooth, for a bootstrap of its own: the table then bootstraps the
        influences of the clusters. None: it evaluates :meth:`statistic` on every resample.
        """
        return None


class PictureScore(ABC):
    """A number for each picture that needs no references, for example an aesthetic score or a texture statistic."""

    title: str
    version: str
    """Everything that changes the number: model, weights, resize."""
    higher_is_better: bool | None
    """None where neither is better by itself."""

    @abstractmethod
    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """One value a picture; a value does not depend on the other pictures."""

    def pooled(self, values: Float[np.ndarray, " k"]) -> float:
        """The number of a set of pictures from their values."""
        return float(values.mean())


def checked_features(features: Float[np.ndarray, "n d"], name: str, at_least: int) -> Float[np.ndarray, "n d"]:
    """``features`` in float64. Raises :class:`DataError` for too few rows or non-finite values."""
    check_finite(features, name, at_least)
    return np.asarray(features, dtype=np.float64)


def row_blocks(count: int, size: int = 4096) -> Iterator[slice]:
    """Slices that cover ``count`` rows, ``size`` at a time: what streaming metrics hold in float64 at once."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def check_finite(features: Float[np.ndarray, "n d"], name: str, at_least: int) -> None:
    """The checks of :func:`checked_features` block by block, without a copy of ``features``."""
    for block in row_blocks(len(features)):
        bad = np.flatnonzero(~np.isfinite(features[block]).all(axis=1))
        if len(bad):
            raise DataError(f"{name}: feature row {block.start + bad[0]} is not finite: look at that picture")
    if len(features) < at_least:
        raise DataError(f"{name}: {len(features)} feature rows, this metric needs at least {at_least}: add pictures")


def checked_pair(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], at_least: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Both feature sets through :func:`checked_features`."""
    return checked_features(x, "generated", at_least), checked_features(y, "references", at_least)
