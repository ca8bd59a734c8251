"""What the output of a YOLO network means: three layouts, told apart by shape.

With C classes and N candidates, boxes in pixels of the network's frame:

* ``v8`` (YOLOv8, v9, v11, v12): (b, 4 + C, N), rows cx, cy, w, h and a score a class;
* ``v5`` (YOLOv5, v6, v7): (b, N, 5 + C), columns cx, cy, w, h, objectness and a score a class;
* ``end-to-end`` (YOLOv10, YOLO26, and exports with their own suppression): (b, N, 6), columns x0, y0, x1, y1, score
  and number of the class; rows that stand for nothing have score 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from flowgrain.errors import ModelError

Layout = Literal["v8", "v5", "end-to-end"]

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Of the grids that YOLO networks predict on: usual, large pictures (P6), small objects (P2), tiny."""
_ANCHORS = (1, 3)
"""Boxes a cell where the grids are read as ``v5``: YOLOv6's and YOLOv5's."""


@dataclass(frozen=True)
class Candidates:
    """Boxes (x0, y0, x1, y1) in pixels of the frame, each with its best class and that class's score."""

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]


def recognise(shape: tuple[int, ...], frame: tuple[int, int], classes: int | None, model: str) -> Layout:
    """The layout of an output of this shape from a network with ``classes`` classes (None: unknown).

    The number of classes decides; where it leaves two (a network of one class may have six columns in two layouts), the
    number of candidates that a YOLO of this frame has. Raises :class:`ModelError` where nothing or more than one fits.
    """
    fitting = _fitting(shape, classes)
    if len(fitting) > 1:
        usual: list[Layout] = [layout for layout in fitting if _usual(layout, shape, frame)]
        fitting = usual if len(usual) == 1 else fitting
    if len(fitting) == 1:
        return fitting[0]
    known = "an unknown number of" if classes is None else str(classes)
    found = "no known layout fits" if not fitting else f"{' and '.join(fitting)} both fit"
    raise ModelError(
        f"{model}: its output is {shape} and it has {known} classes: {found}; set layout to v8 (b, 4 + classes, n), v5 "
        "(b, n, 5 + classes) or end-to-end (b, n, 6), and class_names where the classes are not those of the file"
    )


def check_layout(layout: Layout, shape: tuple[int, ...], classes: int | None, model: str) -> None:
    """Raises :class:`ModelError` for an output that cannot be read by a layout that was asked for.

    What follows the classes' scores (masks, key points) is allowed where their number is known.
    """
    least = {"v8": 4 + (classes or 1), "v5": 5 + (classes or 1), "end-to-end": 6}[layout]
    width = 0 if len(shape) != 3 else shape[1] if layout == "v8" else shape[2]
    if width < least or (layout == "end-to-end" and width != least):
        raise ModelError(
            f"{model}: its output is {shape}, which layout {layout} with {classes or 'any'} classes is not"
        )


def decode(output: Float[np.ndarray, "rows columns"], layout: Layout, classes: int | None) -> Candidates:
    """The candidates in the output for one picture, a batch's entry; nothing is dropped.

    A candidate has its best class, the first of equals; in ``v5`` the score is objectness x class.
    """
    if layout == "end-to-end":
        return Candidates(output[:, :4], output[:, 4], output[:, 5].astype(np.int64))
    columns = output.T if layout == "v8" else output
    first = 4 if layout == "v8" else 5
    scores = columns[:, first : first + classes] if classes is not None else columns[:, first:]
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(scores)), best]
    centre, half = columns[:, :2], columns[:, 2:4] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    return Candidates(boxes, highest if layout == "v8" else highest * columns[:, 4], best)


def _fitting(shape: tuple[int, ...], classes: int | None) -> list[Layout]:
    if len(shape) != 3:
        return []
    _, rows, columns = shape
    found: list[Layout] = []
    if rows == 4 + classes if classes is not None else 5 <= rows < columns:
        found.append("v8")
    if columns == 5 + classes if classes is not None else 6 <= columns < rows:
        found.append("v5")
    if columns == 6:
        found.append("end-to-end")
    return found


def _usual(layout: Layout, shape: tuple[int, ...], frame: tuple[int, int]) -> bool:
    """Whether a YOLO with this layout has so many candidates; end-to-end ones keep fewer than there are cells."""
    cells = [sum(-(-frame[0] // s) * -(-frame[1] // s) for s in strides) for strides in _STRIDES]
    if layout == "v8":
        return shape[2] in cells
    grids = {count * anchors for count in cells for anchors in _ANCHORS}
    return (shape[1] in grids) == (layout == "v5")
