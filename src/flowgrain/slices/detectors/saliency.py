"""Boxes by visual saliency, without weights: the windows of a given size that hold the most conspicuous content.

The map is the spectral residual of Hou and Zhang (CVPR 2007) in three opponent colours at three scales, times local
contrast, so that flat ground (a white page, a clear sky) counts for nothing. Windows are chosen greedily by their
sum (integral image). The map is quantised to whole numbers first, hence sums are exact and ties are broken by
position, not by rounding.
"""

from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int64
from PIL import Image
from pydantic import Field
from scipy import ndimage

from flowgrain.data.records import Box
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.remember import remembered

_WORKING_SIDE = 192
"""Longer side, in pixels, at which the map is computed and windows are searched."""
_SCALES = (32, 64, 128)
"""Longer sides at which the spectral residual is taken; Hou and Zhang use 64."""
_LEVELS = 65535
_FLAT = 1.5
"""Local standard deviation, in grey levels of 255, below which ground counts as flat (compression noise)."""


class SaliencyConfig(DetectorConfig):
    """Windows of one size, a fraction of the region's sides."""

    short_key: ClassVar[str | None] = "fraction"
    kind: Literal["saliency"] = "saliency"
    fraction: float = Field(default=0.6, gt=0, lt=1, description="window side as a fraction of the region's side")
    max_overlap: float = Field(default=0.3, ge=0, lt=1, description="greatest IoU of two windows of one image")
    centering: float = Field(
        default=0.2, ge=0, le=1, description="preference for windows near the centre of mass of the saliency, 0 = none"
    )

    def build(self, context: DetectorContext) -> "SaliencyDetector":
        """See :class:`DetectorConfig`."""
        return SaliencyDetector(self, context.max_instances)


class SaliencyDetector(Detector):
    """Scores a window by its share of the region's saliency."""

    kind = "saliency"

    def __init__(self, config: SaliencyConfig, windows: int):
        self._config = config
        self._windows = windows

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; best window first. A region without any contrast gives none."""
        x0, y0, x1, y1 = view.region
        scale = max(x1 - x0, y1 - y0) / _WORKING_SIDE
        size = max(round((x1 - x0) / scale), 1), max(round((y1 - y0) / scale), 1)
        saliency = remembered(view.image, ("saliency", view.region), lambda: _map_of(view.image, view.region, size))
        windows = best_windows(saliency, self._config, self._windows)
        across, down = (x1 - x0) / size[0], (y1 - y0) / size[1]
        return [
            Detection((x0 + a * across, y0 + b * down, x0 + c * across, y0 + d * down), "detail", score)
            for (a, b, c, d), score in windows
        ]


def _map_of(image: Image.Image, region: Box, size: tuple[int, int]) -> Int64[np.ndarray, "h w"]:
    """The saliency of a region at a working size."""
    return saliency_map(np.asarray(image.resize(size, Image.Resampling.BOX, region), dtype=np.float64))


def saliency_map(pixels: Float64[np.ndarray, "h w 3"]) -> Int64[np.ndarray, "h w"]:
    """Saliency of RGB pixels in [0, 255] as whole numbers in [0, 65535]; 0 everywhere for a flat image."""
    height, width, _ = pixels.shape
    red, green, blue = np.moveaxis(pixels, -1, 0)
    opponents = ((red + green + blue) / 3, red - green, blue - (red + green) / 2)
    combined = np.zeros((height, width))
    for side in _SCALES:
        factor = min(side / max(height, width), 1.0)
        shape = max(round(height * factor), 4), max(round(width * factor), 4)
        for channel in opponents:
            combined += _resized(_spectral_residual(_resized(channel, shape)), (height, width))
    combined *= _local_contrast(opponents)
    peak = combined.max()
    if peak <= 0:
        return np.zeros((height, width), dtype=np.int64)
    return np.rint(combined / peak * _LEVELS).astype(np.int64)


def best_windows(
    saliency: Int64[np.ndarray, "h w"], config: SaliencyConfig, count: int
) -> list[tuple[tuple[int, int, int, int], float]]:
    """At most ``count`` windows (x0, y0, x1, y1) of greatest sum, in cells, with their share of the total in [0, 1]."""
    height, width = saliency.shape
    total = int(saliency.sum())
    if total == 0:
        return []
    high, wide = max(round(height * config.fraction), 1), max(round(width * config.fraction), 1)
    sums = _window_sums(saliency, high, wide)
    worth = sums * _centre_preference(saliency, sums.shape, high, wide, config.centering)
    found: list[tuple[tuple[int, int, int, int], float]] = []
    for _ in range(count):
        index = int(np.argmax(worth))
        top, left = divmod(index, worth.shape[1])
        if worth[top, left] <= 0:
            break
        found.append(((left, top, left + wide, top + high), float(sums[top, left] / total)))
        worth[_overlaps(worth.shape, top, left, high, wide) > config.max_overlap] = 0
    return found


def _spectral_residual(channel: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """|IFFT(exp(L - mean3x3(L) + i P))|^2, smoothed, of unit mean; 0 for a flat channel (Hou and Zhang, Eq. 1-5)."""
    if np.ptp(channel) < 1e-9:
        return np.zeros_like(channel)
    spectrum = np.fft.fft2(channel)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = log_amplitude - ndimage.uniform_filter(log_amplitude, 3, mode="wrap")
    energy = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth = ndimage.gaussian_filter(energy, max(channel.shape) / 24, mode="reflect")
    return smooth / smooth.mean()


def _local_contrast(channels: tuple[np.ndarray, ...]) -> Float64[np.ndarray, "h w"]:
    """Root of the summed local variances over 7 x 7 cells, 0 where it is below the level of compression noise."""
    variance = np.zeros_like(channels[0])
    for channel in channels:
        mean = ndimage.uniform_filter(channel, 7, mode="nearest")
        variance += np.maximum(ndimage.uniform_filter(channel * channel, 7, mode="nearest") - mean * mean, 0)
    deviation = np.sqrt(variance)
    return np.sqrt(np.maximum(deviation - _FLAT, 0))  # the root keeps one hard edge from outweighing a textured part


def _resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float64)


def _window_sums(saliency: np.ndarray, high: int, wide: int) -> Int64[np.ndarray, "rows columns"]:
    """Sum over every window of ``high`` x ``wide`` cells, by its top left corner."""
    integral = np.zeros((saliency.shape[0] + 1, saliency.shape[1] + 1), dtype=np.int64)
    integral[1:, 1:] = saliency.cumsum(0).cumsum(1)
    return integral[high:, wide:] - integral[:-high, wide:] - integral[high:, :-wide] + integral[:-high, :-wide]


def _centre_preference(
    saliency: np.ndarray, shape: tuple[int, int], high: int, wide: int, strength: float
) -> Float64[np.ndarray, "rows columns"]:
    """1 for a window on the saliency's centre of mass, falling to 1 - strength half a region away."""
    rows = np.arange(shape[0]) + high / 2
    columns = np.arange(shape[1]) + wide / 2
    y, x = ndimage.center_of_mass(saliency + 0.0)
    down, across = (rows - y - 0.5) / saliency.shape[0], (columns - x - 0.5) / saliency.shape[1]
    distance = np.sqrt(down[:, None] ** 2 + across[None, :] ** 2)
    return np.round(1 - strength * np.minimum(2 * distance, 1), 6)


def _overlaps(shape: tuple[int, int], top: int, left: int, high: int, wide: int) -> np.ndarray:
    """IoU of one window with every other of the same size."""
    down = np.maximum(high - np.abs(np.arange(shape[0]) - top), 0)
    across = np.maximum(wide - np.abs(np.arange(shape[1]) - left), 0)
    common = down[:, None] * across[None, :]
    return common / (2 * high * wide - common)
