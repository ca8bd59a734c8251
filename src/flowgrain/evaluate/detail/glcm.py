"""Grey-level co-occurrence of 64 x 64 patches: the GLCM Score of Diffusion-4K, and the textbook entropy.

A co-occurrence matrix (Haralick et al. 1973) holds the joint frequencies of the grey levels of two pixels at one
offset. Diffusion-4K (arXiv 2503.18352; its published ``eval.py``) takes 64 grey levels, distances 1 to 4 and four
angles of non-overlapping 64 x 64 patches.

Its score is scikit-image's ``shannon_entropy`` of the whole 64 x 64 x 4 x 4 array. That function is the entropy of the
histogram of *distinct entry values*, not -sum p log2 p of the co-occurrence probabilities. Published values (0.38 to
0.81) only come about this way, so :func:`glcm_score` does the same, and :func:`glcm_entropy` is the textbook quantity.

Matrices are counted for many patches at once, and only for distinct offsets: scikit-image rounds d * (sin a, cos a),
so that d = 1 and d = 2 are one offset on the diagonals.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import open_rgb

PATCH = 64
"""Side of a patch, pixels."""
LEVELS = 64
DISTANCES = (1, 2, 3, 4)
ANGLES = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
MATRICES = len(DISTANCES) * len(ANGLES)
_PATCHES_AT_ONCE = 16
"""Patches counted together: few enough for their counts (half a megabyte) to stay in the cache."""


@dataclass(frozen=True)
class _CountHistogram:
    """How often each count occurs in the co-occurrence matrices that have one number of pixel pairs."""

    pairs: int
    """Pixel pairs of one matrix: what normalises its counts."""
    matrices: int
    entries: Int[np.ndarray, "patches _"]
    """Column c: entries with the count c + 1, over all these matrices. Empty entries are not listed."""


def glcm_score(grey: UInt8[np.ndarray, "h w"]) -> float:
    """GLCM Score of a grey picture (0..255) as Diffusion-4K publishes it, mean over patches, in bits.

    0.0033 for a constant patch, about 3.53 for uniform noise. What is left over to the right of and below whole
    patches is not read. Raises :class:`DataError` for a side below 64 pixels.
    """
    return float(np.concatenate([_entropy_of_values(chunk) for chunk in _counted(grey)]).mean())


def glcm_entropy(grey: UInt8[np.ndarray, "h w"]) -> float:
    """Joint entropy -sum p log2 p (Haralick et al. 1973, feature 9), mean over 16 matrices and patches, in bits.

    0 for a constant patch, at most 12. Patches and errors as in :func:`glcm_score`.
    """
    return float(np.concatenate([_joint_entropy(chunk) for chunk in _counted(grey)]).mean())


def opencv_grey(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """Grey values of RGB pixels, bit for bit those of OpenCV (Rec. 601 in 15-bit fixed point)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
    return ((red * 9798 + green * 19235 + blue * 3735 + (1 << 14)) >> 15).astype(np.uint8)


class GlcmScore(PictureScore):
    """:func:`glcm_score` of pictures. Diffusion-4K reads higher as better; noise is highest of all.

    ``size`` None takes every whole patch of a picture; a number takes the top-left square of that side, which is what
    the published script does. Raises :class:`ConfigError` for a size below 64.
    """

    title = "GLCM Score"
    higher_is_better = None

    def __init__(self, size: int | None = None):
        self.size = size
        self.version = f"entropy of distinct GLCM entries as in Diffusion-4K, {_layout(size)}"

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; one picture is in memory at a time."""
        return np.array([glcm_score(_grey(picture, self.size)) for picture in pictures], dtype=np.float64)


class GlcmEntropy(PictureScore):
    """:func:`glcm_entropy` of pictures; ``size`` and errors as in :class:`GlcmScore`."""

    title = "GLCM entropy"
    higher_is_better = None

    def __init__(self, size: int | None = None):
        self.size = size
        self.version = f"joint entropy, {_layout(size)}"

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; one picture is in memory at a time."""
        return np.array([glcm_entropy(_grey(picture, self.size)) for picture in pictures], dtype=np.float64)


def _layout(size: int | None) -> str:
    if size is not None and size < PATCH:
        raise ConfigError(f"GLCM size {size}: a patch has {PATCH} pixels a side, give at least that or none")
    area = "whole patches of the picture" if size is None else f"top-left {size} x {size} pixels"
    return f"{LEVELS} levels, {PATCH} px patches, distances 1-4, 4 angles, {area}"


def _grey(picture: ImageLike, size: int | None) -> UInt8[np.ndarray, "h w"]:
    grey = opencv_grey(np.asarray(open_rgb(picture)))
    needed = size or PATCH
    if min(grey.shape) < needed:
        raise DataError(
            f"{picture}: {grey.shape[1]}x{grey.shape[0]} pixels, but the GLCM is taken of at least {needed} x {needed}"
        )
    return grey[:size, :size]


def _counted(grey: UInt8[np.ndarray, "h w"]) -> Iterator[list[_CountHistogram]]:
    """The histograms of up to ``_PATCHES_AT_ONCE`` patches at a time, one for each number of pixel pairs."""
    rows, columns = grey.shape[0] // PATCH, grey.shape[1] // PATCH
    if not rows * columns:
        raise DataError(f"{grey.shape[1]}x{grey.shape[0]} pixels: a GLCM patch has {PATCH} a side")
    whole = grey[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH)
    levels = (whole // (256 // LEVELS)).transpose(0, 2, 1, 3).reshape(-1, PATCH, PATCH).astype(np.int64)
    for start in range(0, len(levels), _PATCHES_AT_ONCE):
        by_pairs: dict[int, list[tuple[int, Int[np.ndarray, "patches _"]]]] = defaultdict(list)
        for offset, times in _offsets().items():
            pairs, entries = _count(levels[start : start + _PATCHES_AT_ONCE], offset)
            by_pairs[pairs].append((times, entries))
        yield [_merged(pairs, parts) for pairs, parts in by_pairs.items()]


def _offsets() -> Counter[tuple[int, int]]:
    """(rows, columns) of every offset, and how many of the 16 matrices have it."""
    return Counter((round(d * np.sin(a)), round(d * np.cos(a))) for d in DISTANCES for a in ANGLES)


def _count(
    patches: Int[np.ndarray, "patches side side"], offset: tuple[int, int]
) -> tuple[int, Int[np.ndarray, "patches _"]]:
    """Pixel pairs at an offset, and how often each count occurs in the patches' matrices."""
    down, right = offset
    left, width = max(-right, 0), PATCH - abs(right)
    near = patches[:, : PATCH - down, left : left + width]
    far = patches[:, down:, left + right : left + right + width]
    entries, number = LEVELS * LEVELS, len(patches)
    patch = np.arange(number)[:, None]
    pairs = near * LEVELS + far + patch[:, :, None] * entries
    counts = np.bincount(pairs.ravel(), minlength=number * entries).reshape(number, entries)
    bins = int(counts.max()) + 1
    histogram = np.bincount((counts + patch * bins).ravel(), minlength=number * bins).reshape(number, bins)
    return pairs[0].size, histogram[:, 1:]


def _merged(pairs: int, parts: list[tuple[int, Int[np.ndarray, "patches _"]]]) -> _CountHistogram:
    entries = np.zeros((len(parts[0][1]), max(part.shape[1] for _, part in parts)), dtype=np.int64)
    for times, part in parts:
        entries[:, : part.shape[1]] += times * part
    return _CountHistogram(pairs, sum(times for times, _ in parts), entries)


def _entropy_of_values(histograms: list[_CountHistogram]) -> Float[np.ndarray, " patches"]:
    """Entropy of the distinct values among all entries of a patch's matrices, in bits."""
    # count / pairs is correctly rounded: two entries are the same float exactly where they are the same fraction
    values = np.concatenate([np.arange(1, h.entries.shape[1] + 1) / h.pairs for h in histograms])
    entries = np.concatenate([h.entries for h in histograms], axis=1)
    used = np.flatnonzero(entries.any(axis=0))
    order = used[np.argsort(values[used], kind="stable")]
    starts = np.flatnonzero(np.diff(values[order], prepend=-1.0))
    multiplicity = np.add.reduceat(entries[:, order], starts, axis=1)
    total = MATRICES * LEVELS * LEVELS
    zeros = total - multiplicity.sum(axis=1, keepdims=True)
    multiplicity = np.concatenate([zeros, multiplicity], axis=1)
    p = multiplicity / total
    return -np.sum(p * np.log2(p, out=np.zeros_like(p), where=p > 0), axis=1)


def _joint_entropy(histograms: list[_CountHistogram]) -> Float[np.ndarray, " patches"]:
    """Entropy of each matrix from the counts of its entries, mean over a patch's matrices, in bits."""
    total = np.zeros(len(histograms[0].entries))
    for histogram in histograms:
        counts = np.arange(1, histogram.entries.shape[1] + 1)
        surprise = histogram.entries @ (counts * np.log2(counts)) / histogram.pairs
        total += histogram.matrices * np.log2(histogram.pairs) - surprise
    return np.maximum(total / MATRICES, 0.0)
