"""Upscalers: a window of the source image, brought to a slice's size.

Masks never go through a network, which would invent edges in them: whoever cuts a mask calls :func:`resample`.
"""

from flowgrain.slices.upscalers.base import Upscaler as Upscaler
from flowgrain.slices.upscalers.base import UpscalerConfig as UpscalerConfig
from flowgrain.slices.upscalers.base import UpscalerContext as UpscalerContext
from flowgrain.slices.upscalers.lanczos import LanczosUpscaler as LanczosUpscaler
from flowgrain.slices.upscalers.lanczos import resample as resample
