"""Square windows of a picture at the size that a network looks at."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flowgrain.data.records import Box


def around(x: float, y: float, side: float) -> Box:
    """The square of this side about (x, y)."""
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def window(image: Image.Image, region: Box, square: Box, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The pixels of ``square`` as ``side`` x ``side``, antialiased; black where it reaches beyond ``region``."""
    canvas = np.zeros((side, side, 3), dtype=np.uint8)
    unit = (square[2] - square[0]) / side
    x0, y0 = max(square[0], region[0]), max(square[1], region[1])
    x1, y1 = min(square[2], region[2]), min(square[3], region[3])
    if x0 >= x1 or y0 >= y1:
        return canvas
    left, top = min(round((x0 - square[0]) / unit), side - 1), min(round((y0 - square[1]) / unit), side - 1)
    right, bottom = max(round((x1 - square[0]) / unit), left + 1), max(round((y1 - square[1]) / unit), top + 1)
    part = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, (x0, y0, x1, y1))
    canvas[top:bottom, left:right] = np.asarray(part)
    return canvas
