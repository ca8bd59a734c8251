"""Trying settings on a few images before a long run."""

from dataclasses import dataclass
from pathlib import Path

from flowgrain.data.collections import Collection
from flowgrain.data.collections.subset import Subset
from flowgrain.rng import stable_seed
from flowgrain.slices.summary import Summary


@dataclass(frozen=True)
class Forecast:
    """What all images would take, from what a sample took."""

    images: int
    sampled: int
    slices: int
    seconds: float
    """Of one process; start-up left out."""
    bytes: int | None
    """On the disk; None where nothing was written."""

    def text(self) -> str:
        """One line."""
        room = "" if self.bytes is None else f" and {self.bytes / 1e9:.1f} GB"
        return (
            f"forecast for all {self.images} images, from {self.sampled}: about {self.slices} slices, "
            f"{_duration(self.seconds)} of one process{room}"
        )


def sampled(collection: Collection, count: int) -> Collection:
    """``count`` images of a collection, the same ones every time, whatever else is in it."""
    ranked = sorted(collection.names(), key=lambda name: (stable_seed(0, name, "tuning sample"), name))
    return Subset(collection, frozenset(ranked[:count]))


def forecast(summary: Summary, images: int, out: Path | None) -> Forecast:
    """What ``images`` images would take if they were like those of ``summary``."""
    factor = images / summary.images
    size = None
    if out is not None:
        size = round(factor * sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))
    seconds = factor * sum(summary.seconds.values())
    return Forecast(images, summary.images, round(factor * summary.slices), seconds, size)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
