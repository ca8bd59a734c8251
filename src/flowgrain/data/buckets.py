"""Aspect-ratio buckets: the shapes that pictures are brought to, and how.

The list is the one of kohya's sd-scripts (area at most that of the resolution, every width from ``min_side`` to
``max_side``); the choice compares logarithms of aspect ratios, as NovelAI does, so that a landscape picture and
its transpose get transposed buckets. :func:`shrink_crop` is the other rule of kohya's: shapes without a list, from
the pictures themselves. :func:`long_edge_list` is the rule of 2K and 4K training: every shape has the same longer side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowgrain.errors import ConfigError, DataError

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
    resolution: int | tuple[int, int],
    step: int = 64,
    min_side: int | None = None,
    max_side: int | None = None,
    square: int | None = None,
) -> tuple[Bucket, ...]:
    """Sorted (width, height) shapes of at most the resolution's area, sides multiples of ``step`` pixels.

    ``resolution`` is the side of a square or (width, height). ``min_side`` and ``max_side`` default to half and
    twice the square's side. ``square`` is the side of the square that is always there: kohya's is the largest of the
    area (default), NovelAI's the base resolution, 512 for 768x512. Raises :class:`ConfigError` where no shape fits
    or a side is no multiple of ``step``.
    """
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    if step < 1 or width < step or height < step:
        raise ConfigError(f"resolution {width}x{height}: both sides must be at least the bucket step ({step} px, >= 1)")
    area = width * height
    side = math.isqrt(area) // step * step if square is None else square
    smallest = max(side // 2 // step, 1) * step if min_side is None else min_side
    largest = 2 * side if max_side is None else max_side
    for name, value in (("square", side), ("min_side", smallest), ("max_side", largest)):
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


def shrink_crop(width: int, height: int, resolution: int | tuple[int, int], step: int = 64) -> tuple[Bucket, CoverCrop]:
    """The bucket of a picture that is never enlarged, and its resize and crop: kohya's ``bucket_no_upscale``.

    A picture above the resolution's area is shrunk to it, with the side that fits the steps better a multiple of
    ``step``; any other keeps its size. Both sides are then trimmed, centred, to multiples of ``step``, so that
    buckets follow the pictures and no list is needed. Raises :class:`DataError` for a side below ``step`` pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"sides must be positive, got {width}x{height}")
    across, down = (resolution, resolution) if isinstance(resolution, int) else resolution
    resize = (width, height) if width * height <= across * down else _shrunk(width, height, across * down, step)
    return _trimmed(width, height, resize, step)


def _trimmed(width: int, height: int, resize: tuple[int, int], step: int) -> tuple[Bucket, CoverCrop]:
    """A resized picture cut, centred, to multiples of ``step``."""
    bucket = (resize[0] // step * step, resize[1] // step * step)
    if not all(bucket):
        raise DataError(
            f"{width}x{height} px becomes {resize[0]}x{resize[1]} without enlarging, below the bucket step of {step} "
            "px; allow enlarging, lower the step or leave the picture out"
        )
    return bucket, CoverCrop(resize, (resize[0] - bucket[0]) // 2, (resize[1] - bucket[1]) // 2)


def long_edge_list(long_edge: int, step: int = 64, max_aspect: float = 4.0) -> tuple[Bucket, ...]:
    """Sorted (width, height) shapes whose longer side is ``long_edge`` pixels, the shorter one a multiple of ``step``.

    ``max_aspect`` is the greatest ratio of the longer to the shorter side. Raises :class:`ConfigError` for a long edge
    that is no multiple of ``step``.
    """
    _check_edge(long_edge, step)
    shortest = -(-math.ceil(long_edge / max_aspect) // step) * step
    sides = range(min(shortest, long_edge), long_edge + 1, step)
    return tuple(sorted({shape for side in sides for shape in ((side, long_edge), (long_edge, side))}))


def long_edge_crop(
    width: int, height: int, long_edge: int, step: int = 64, max_aspect: float = 4.0
) -> tuple[Bucket, CoverCrop]:
    """The shape of :func:`long_edge_list` for a picture, and its resize and crop.

    At most half a step of the shorter side, and its share of the longer one, is cut off: a picture longer than
    ``max_aspect`` would lose more and is refused. Raises :class:`DataError` for such a one.
    """
    _check_aspect(width, height, long_edge, max_aspect)
    bucket = best_aspect_match(width, height, long_edge_list(long_edge, step, max_aspect))
    return bucket, cover_crop(width, height, bucket)


def long_edge_shrink(
    width: int, height: int, long_edge: int, step: int = 64, max_aspect: float = 4.0
) -> tuple[Bucket, CoverCrop]:
    """The same for a picture that is never enlarged: its own size, or shrunk to ``long_edge``, trimmed to steps.

    Raises :class:`DataError` for a picture longer than ``max_aspect`` and for a side below ``step`` pixels.
    """
    _check_edge(long_edge, step)
    _check_aspect(width, height, long_edge, max_aspect)
    longer = max(width, height)
    resize = (width, height)
    if longer > long_edge:
        resize = (max(_round_ratio(width * long_edge, longer), 1), max(_round_ratio(height * long_edge, longer), 1))
    return _trimmed(width, height, resize, step)


def fitted_margins(width: int, height: int, bucket: Bucket) -> tuple[int, int, int]:
    """(left, top, right) margins in pixels of a picture fitted inside ``bucket`` undistorted and centred.

    What kohya's trainer tells SDXL of whole pictures, "according to the preprocessing of Stability AI"
    (get_crop_ltrb): never negative, 0 and 0 for a picture of the bucket's aspect.
    """
    across, down = bucket
    if across * height > width * down:  # the bucket is wider: the height decides
        fitted = (down * width / height, float(down))
    else:
        fitted = (float(across), across * height / width)
    left, top = int((across - fitted[0]) // 2), int((down - fitted[1]) // 2)
    return left, top, round(across - fitted[0] - left)


def _check_edge(long_edge: int, step: int) -> None:
    if step < 1 or long_edge < step or long_edge % step:
        near = long_edge // step * step if step >= 1 else 0
        raise ConfigError(
            f"long_edge {long_edge} px must be a positive multiple of the bucket step ({step} px): take "
            + (f"{near} or {near + step}" if near else f"{max(step, 1)}")
        )


def _check_aspect(width: int, height: int, long_edge: int, max_aspect: float) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"sides must be positive, got {width}x{height}")
    if max(width, height) > max_aspect * min(width, height):
        raise DataError(
            f"{width}x{height} px is longer than the buckets of long edge {long_edge} (aspect {max_aspect:g} at most) "
            "and would lose much of itself; raise resolution.max_aspect, or cut the picture yourself"
        )


def _shrunk(width: int, height: int, area: int, step: int) -> tuple[int, int]:
    """Size of about ``area`` pixels and the picture's aspect, one side a multiple of ``step``."""
    aspect = width / height
    wide = math.sqrt(area * aspect)
    across, down = _round_down(wide, step), _round_down(area / wide, step)
    if across and down:
        other_down, other_across = _round_down(across / aspect, step), _round_down(down * aspect, step)
        if other_down and abs(across / other_down - aspect) < abs(other_across / down - aspect):
            return across, int(across / aspect + 0.5)
    return (int(down * aspect + 0.5), down) if down else (across, int(across / aspect + 0.5))


def _round_down(length: float, step: int) -> int:
    """Nearest pixel, then down to a multiple of ``step``."""
    pixels = int(length + 0.5)
    return pixels - pixels % step


def _round_ratio(numerator: int, denominator: int) -> int:
    """Nearest integer of a ratio of positive integers, halves up, exactly."""
    return (2 * numerator + denominator) // (2 * denominator)
