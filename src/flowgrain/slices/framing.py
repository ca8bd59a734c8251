"""Geometry of slices: overlap, cover factor, what to do with a box, and which window of it to keep.

Boxes are (x0, y0, x1, y1) in pixels of the upright source image, half-open. The rules are those of Algorithm 1 of
Semantic Granularity Alignment, stage 3, with its two thresholds told apart: ``max_upscale`` (tau-up) bounds the
cover factor rho, ``max_downscale`` (tau-down) bounds 1 / rho.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flowgrain.data.buckets import Bucket
from flowgrain.data.records import Box

Action = Literal["downscale", "native", "upscale", "discard"]


@dataclass(frozen=True)
class Limits:
    """How far a box may be from its bucket's size."""

    max_upscale: float
    """Greatest cover factor; a box that needs more is discarded (tau-up)."""
    max_downscale: float
    """Greatest 1 / rho at which pixels are kept as they are and only cropped (tau-down)."""
    min_side: int
    """Shortest side of a box, source pixels."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a box. ``scale`` is slice pixels per source pixel: rho, or 1 at native scale."""

    action: Action
    scale: float
    reason: str
    code: str = ""
    """Short name of the reason of a discard, for counting."""


def area(box: Box) -> float:
    """Area in square pixels, 0 for an empty box."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def intersection(a: Box, b: Box) -> float:
    """Common area in square pixels."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union, in [0, 1]; 0 for two empty boxes."""
    common = intersection(a, b)
    union = area(a) + area(b) - common
    return common / union if union > 0 else 0.0


def share_inside(box: Box, region: Box) -> float:
    """Share of a box's area that lies in a region, in [0, 1]; 0 for an empty box."""
    own = area(box)
    return intersection(box, region) / own if own > 0 else 0.0


def centre(box: Box) -> tuple[float, float]:
    """Middle point (x, y)."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def clip_box(box: Box, region: Box) -> Box:
    """The part of a box that lies in a region; empty (x1 = x0 or y1 = y0) where they do not meet."""
    x0, y0 = min(max(box[0], region[0]), region[2]), min(max(box[1], region[1]), region[3])
    return x0, y0, max(min(box[2], region[2]), x0), max(min(box[3], region[3]), y0)


def expand_box(box: Box, factor: float, square: bool = False) -> Box:
    """The box enlarged about its centre by ``factor``; ``square`` gives it the side ``factor * max(w, h)``."""
    (x, y), width, height = centre(box), box[2] - box[0], box[3] - box[1]
    if square:
        width = height = max(width, height)
    return x - factor * width / 2, y - factor * height / 2, x + factor * width / 2, y + factor * height / 2


def snap_box(box: Box, region: Box) -> Box:
    """The box on whole pixels (halves up), at least one pixel on a side, in a whole-pixel region."""
    x0 = min(math.floor(box[0] + 0.5), region[2] - 1)
    y0 = min(math.floor(box[1] + 0.5), region[3] - 1)
    x1, y1 = max(math.floor(box[2] + 0.5), x0 + 1), max(math.floor(box[3] + 0.5), y0 + 1)
    return float(x0), float(y0), float(x1), float(y1)


def cover_factor(box: Box, target: Bucket) -> float:
    """rho = max(W / w, H / h): the least scale at which a box covers its bucket."""
    return max(target[0] / (box[2] - box[0]), target[1] / (box[3] - box[1]))


def decide(
    box: Box, target: Bucket, limits: Limits, upscaler_limit: float, limit_name: str = "lanczos_max"
) -> Decision:
    """Discard, upscale, downscale or keep a box at native scale (Algorithm 1, stage 3).

    ``upscaler_limit`` is the greatest factor that the upscaler gives, ``limit_name`` what sets it; the lesser of it and
    ``max_upscale`` counts.
    A box exactly at a limit is kept.
    """
    rho = cover_factor(box, target)
    width, height = box[2] - box[0], box[3] - box[1]
    size = f"{width:g}x{height:g}"
    if min(width, height) < limits.min_side:
        return Decision("discard", rho, f"{size} has a side below min_side {limits.min_side}", "min_side")
    if rho > limits.max_upscale:
        reason = f"{size} needs x{rho:.3f} for {_text(target)}, max_upscale {limits.max_upscale:g}"
        return Decision("discard", rho, reason, "max_upscale")
    if rho > max(upscaler_limit, 1.0):
        reason = f"{size} needs x{rho:.3f} for {_text(target)}, {limit_name} {upscaler_limit:g}"
        return Decision("discard", rho, reason, limit_name)
    if rho > 1:
        return Decision("upscale", rho, f"x{rho:.3f} to cover {_text(target)}")
    if 1 / rho > limits.max_downscale:
        return Decision("downscale", rho, f"x{rho:.3f} to cover {_text(target)}")
    return Decision("native", 1.0, f"{_text(target)} window at native scale")


def focus(box: Box, finer: Sequence[tuple[Box, float]]) -> tuple[float, float]:
    """Point (x, y) that a slice is framed on: score-weighted mean of the centres of the finer boxes inside it.

    A finer box counts where at least half of it lies in ``box``. Without one: the box's own centre.
    """
    inside = [(centre(other), score) for other, score in finer if share_inside(other, box) >= 0.5]
    if not inside:
        return centre(box)
    total = sum(score for _, score in inside)
    weights = [score / total for _, score in inside] if total > 0 else [1 / len(inside)] * len(inside)
    points = [point for point, _ in inside]
    return (
        sum(weight * x for weight, (x, _) in zip(weights, points, strict=True)),
        sum(weight * y for weight, (_, y) in zip(weights, points, strict=True)),
    )


def framing_crop(box: Box, target: Bucket, decision: Decision, point: tuple[float, float]) -> Box:
    """The source window that becomes the slice: ``target / scale`` in size, around ``point``, inside the box.

    At native scale the window lies on whole pixels, so that no pixel is resampled.
    """
    width, height = target[0] / decision.scale, target[1] / decision.scale
    x0, y0 = point[0] - width / 2, point[1] - height / 2
    if decision.action == "native":
        x0, y0 = float(math.floor(x0 + 0.5)), float(math.floor(y0 + 0.5))
    x0, x1 = _slide(x0, width, box[0], box[2])
    y0, y1 = _slide(y0, height, box[1], box[3])
    return x0, y0, x1, y1


def _slide(start: float, length: float, low: float, high: float) -> tuple[float, float]:
    """Move an interval into [low, high]; rounding may make it longer than that by an ulp, then it is all of it."""
    if length >= high - low:
        return low, high
    start = min(max(start, low), high - length)
    return start, min(start + length, high)


def _text(target: Bucket) -> str:
    return f"{target[0]}x{target[1]}"
