"""Image-image cosine: how near a picture lies to a real picture of the same thing, in feature space.

Pooled features share a large common direction, which lifts every cosine. ``centred`` subtracts the mean of the
reference pool from both sides first, which makes the numbers spread.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet, Metric, Statistic, checked_pair


def paired_cosine(generated: Float[np.ndarray, "n d"], own: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each picture to the reference of its own prompt, in [-1, 1], float64."""
    x, y = checked_pair(generated, own, at_least=1)
    return np.einsum("nd,nd->n", _unit(x), _unit(y))


def nearest_cosine(generated: Float[np.ndarray, "n d"], pool: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each picture to the nearest picture of the pool (high also for copies of the pool)."""
    x, y = checked_pair(generated, pool, at_least=1)
    return (_unit(x) @ _unit(y).T).max(axis=1)


def mean_cosine(generated: Float[np.ndarray, "n d"], pool: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean cosine of each picture to all pictures of the pool."""
    x, y = checked_pair(generated, pool, at_least=1)
    return _unit(x) @ _unit(y).mean(axis=0)


def centre(features: Float[np.ndarray, "n d"], pool: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n d"]:
    """``features`` less the mean of the pool, float64."""
    x, y = checked_pair(features, pool, at_least=1)
    return x - y.mean(axis=0)


def _unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise DataError(f"feature row {int(np.argmin(norms))} is zero: a cosine to it is not defined")
    return x / norms


class ImageCosine(Metric):
    """Mean cosine of each picture to its own reference, to the nearest of the pool, or to all of the pool."""

    higher_is_better = True
    small_sample = None
    small_sample_note = ""

    def __init__(self, against: Literal["own", "nearest", "mean"] = "own", centred: bool = False):
        self.against = against
        self.centred = centred
        self.needs_own_reference = against == "own"
        target = {"own": "", "nearest": " to the nearest reference", "mean": " to all references"}[against]
        self.title = f"image-image cosine{target}{', centred' if centred else ''}"

    def statistic(self, features: FeatureSet) -> Statistic:
        """See :meth:`Metric.statistic`. Raises :class:`DataError` where own references are wanted and missing."""
        values = self._values(features)
        return lambda rows: float(values[rows].mean())

    def _values(self, features: FeatureSet) -> Float[np.ndarray, " n"]:
        if self.against == "own" and features.own is None:
            raise DataError(f"{self.title} needs a reference picture for every prompt, none was given")
        references = features.own if self.against == "own" and features.own is not None else features.pool
        generated = features.generated
        if self.centred:
            generated, references = centre(generated, features.pool), centre(references, features.pool)
        cosine = {"own": paired_cosine, "nearest": nearest_cosine, "mean": mean_cosine}[self.against]
        return cosine(generated, references)
