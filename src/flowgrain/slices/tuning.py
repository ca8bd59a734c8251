"""Trying settings on a few images before a long run."""

from dataclasses import dataclass
from pathlib import Path

from flowgrain.data.collections import Collection
from flowgrain.data.collections.subset import Subset
from flowgrain.data.records import MANIFEST_NAME, REJECTS_NAME
from flowgrain.rng import stable_seed
from flowgrain.slices.outputs import SHARDS
from flowgrain.slices.summary import Summary

_SLICES = "slices"


@dataclass(frozen=True)
class Forecast:
    """What all images would take, from what a sample took."""

    images: int
    sampled: int
    slices: int
    seconds: float
    """Of one process; start-up left out. 0 where the sample was there already and took none."""
    bytes: int | None
    """Of slices and manifest; None where nothing was written."""
    questions: int = 0
    """To models behind endpoints."""
    cost: float = 0.0
    """Of the questions; 0 without prices."""

    def text(self) -> str:
        """One line."""
        time = f"{_duration(self.seconds)} of one process" if self.seconds else "time not measured again"
        room = "" if self.bytes is None else f", {_room(self.bytes)}"
        cost = f" that cost {self.cost:.4g}" if self.cost else ""
        asked = f", {self.questions} questions to models{cost}" if self.questions else ""
        return (
            f"forecast for all {self.images} images, from {self.sampled}: about {self.slices} slices, "
            f"{time}{room}{asked}"
        )


def sampled(collection: Collection, count: int) -> Collection:
    """``count`` images of a collection, the same ones every time, whatever else is in it."""
    ranked = sorted(collection.names(), key=lambda name: (stable_seed(0, name, "tuning sample"), name))
    return Subset(collection, frozenset(ranked[:count]))


def forecast(summary: Summary, images: int, out: Path | None) -> Forecast:
    """What ``images`` images would take if they were like those of ``summary``."""
    factor, fresh = images / summary.images, summary.images - summary.unchanged
    size = None
    if out is not None:
        files = [out / MANIFEST_NAME, out / REJECTS_NAME]
        files += [path for folder in (_SLICES, SHARDS) for path in (out / folder).rglob("*") if path.is_file()]
        size = round(factor * sum(path.stat().st_size for path in files))
    spent, per_image = summary.spent, images / fresh if fresh else 0.0
    questions = round(per_image * (spent.questions + spent.cached))
    # answers that were there already cost nothing now, and would cost what the others did
    cost = questions * spent.cost / spent.questions if spent.questions else 0.0
    seconds = per_image * sum(summary.seconds.values())
    return Forecast(images, summary.images, round(factor * summary.slices), seconds, size, questions, cost)


def _room(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
