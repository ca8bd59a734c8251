"""Boxes on a regular grid: ``columns`` x ``rows`` cells that overlap. Needs no weights and knows no content."""

from typing import Literal

import numpy as np
from pydantic import Field

from flowgrain.data.records import Box
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View

_NAMES = {1: ("",), 2: ("first", "last"), 3: ("first", "middle", "last")}
_ACROSS = {"first": "left", "middle": "center", "last": "right", "": ""}
_DOWN = {"first": "top", "middle": "middle", "last": "bottom", "": ""}
_HALF_RANGE = 127.5


class GridConfig(DetectorConfig):
    """Cells of equal size; the score of a cell is its contrast, so the busiest cells come first."""

    kind: Literal["grid"] = "grid"
    columns: int = Field(default=2, ge=1, le=32, description="cells across")
    rows: int = Field(default=2, ge=1, le=32, description="cells down")
    overlap: float = Field(default=0.2, ge=0, lt=1, description="share of a cell's side that its neighbour covers too")

    def build(self, context: DetectorContext) -> "GridDetector":
        """See :class:`DetectorConfig`."""
        return GridDetector(self)


class GridDetector(Detector):
    """Labels cells by position (``top left``, ``row 2 column 4``), scores them by contrast in [0, 1]."""

    kind = "grid"

    def __init__(self, config: GridConfig):
        self._config = config

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; cells in reading order."""
        x0, y0, x1, y1 = view.region
        grey = np.asarray(view.image.crop(view.region).convert("L"), dtype=np.float64)
        config = self._config
        found = []
        for row, (top, bottom) in enumerate(_cells(y1 - y0, config.rows, config.overlap)):
            for column, (left, right) in enumerate(_cells(x1 - x0, config.columns, config.overlap)):
                box: Box = (x0 + left, y0 + top, x0 + right, y0 + bottom)
                pixels = grey[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)]
                label = _label(row, column, config.rows, config.columns)
                found.append(Detection(box, label, min(float(pixels.std()) / _HALF_RANGE, 1.0)))
        return found


def _cells(length: float, count: int, overlap: float) -> list[tuple[float, float]]:
    """Intervals of equal length that fill [0, length], each sharing ``overlap`` of its length with the next."""
    side = length / (count - (count - 1) * overlap)
    step = side * (1 - overlap)
    return [(index * step, min(index * step + side, length)) for index in range(count)]


def _label(row: int, column: int, rows: int, columns: int) -> str:
    if rows > 3 or columns > 3:
        return f"row {row + 1} column {column + 1}"
    words = (_DOWN[_NAMES[rows][row]], _ACROSS[_NAMES[columns][column]])
    return " ".join(word for word in words if word) or "center"
