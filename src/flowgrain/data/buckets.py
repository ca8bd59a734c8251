"""Aspect-ratio buckets: the shapes that pictures are brought to, and how.

The list is the one of kohya's sd-scripts (area at most that of the resolution, every width from ``min_side`` to
``max_side``); the choice compares logarithms of aspect ratios, as NovelAI does, so that a landscape picture and
its transpose get transposed buckets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowgrain.errors import ConfigError

Bucket = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True)
class CoverCrop:
    """Resize to ``resize``, then cut the bucket out at (``left``, ``top``)."""

    resize: tuple[int, int]
    """(width, height) in pixels after resizing, on both sides at least the bucket."""
    left: int
    top: int


def bucket_list(
    resolution: int | tuple[int, int], step: int = 64, min_side: int | None = None, max_side: int | None = None
) -> tuple[Bucket, ...]:
    """Sorted (width, height) shapes of at most the resolution's area, sides multiples of ``step`` pixels.

    ``resolution`` is the side of a square or (width, height). ``min_side`` and ``max_side`` default to half and
    twice the square's side. Raises :class:`ConfigError` where no shape fits or a limit is no multiple of ``step``.
    """
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if step < 1 or width < step or height < step:
        raise ConfigError(f"resolution {width}x{height}: both sides must be at least the bucket step ({step} px, >= 1)")
    area = width * height
    side = math.isqrt(area) // step * step
    smallest = max(side // 2 // step, 1) * step if min_side is None else min_side
    largest = 2 * side if max_side is None else max_side
    for name, value in (("min_side", smallest), ("max_side", largest)):
        if value < step or value % step:
            raise ConfigError(f"bucket {name} {value}: must be a positive multiple of the bucket step ({step} px)")
    if not smallest <= side <= largest:
        raise ConfigError(
            f"bucket sides {smallest} to {largest} exclude the square of {side} px of resolution {width}x{height}; "
            "lower min_side or raise max_side"
        )
    shapes = {(side, side)}
    for across in range(smallest, largest + 1, step):
        down = min(largest, area // across // step * step)
        if down >= smallest:
            shapes |= {(across, down), (down, across)}
    return tuple(sorted(shapes))


def best_aspect_match(width: float | int, height: float | int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket whose log aspect ratio is nearest; ties go to the nearest log area, then to the smallest (w, h).

    Raises :class:`ConfigError` for an empty list and ValueError for a side that is not positive.
    """
    if not buckets:
        raise ConfigError("no bucket to choose from: give at least one (width, height)")
    if not (width > 0 and height > 0):
        raise ValueError(f"sides must be positive, got {width}x{height}")

    def distance(bucket: Bucket) -> tuple[float, float, Bucket]:
        # rounded so that two aspects equally far in exact arithmetic tie in floating point too
        aspect = round(abs(math.log(width / height) - math.log(bucket[0] / bucket[1])), 12)
        area = round(abs(math.log(width * height) - math.log(bucket[0] * bucket[1])), 12)
        return aspect, area, bucket

    return min(buckets, key=distance)


def cover_crop(width: int, height: int, bucket: Bucket) -> CoverCrop:
    """Undistorted resize (to half a pixel) that just covers ``bucket``, and the centre crop of it."""
    if width < 1 or height < 1:
        raise ValueError(f"sides must be positive, got {width}x{height}")
    across, down = bucket
    if width * down > across * height:  # wider than the bucket: the height decides
        resize = (max(across, _round_ratio(width * down, height)), down)
    else:
        resize = (across, max(down, _round_ratio(height * across, width)))
    return CoverCrop(resize, (resize[0] - across) // 2, (resize[1] - down) // 2)


def _round_ratio(numerator: int, denominator: int) -> int:
    """Nearest integer of a ratio of positive integers, halves up, exactly."""
    return (2 * numerator + denominator) // (2 * denominator)
