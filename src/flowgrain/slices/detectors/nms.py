"""Greedy non-maximum suppression, class by class."""

import numpy as np
from jaxtyping import Float, Int


def suppress(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    classes: Int[np.ndarray, " n"],
    threshold: float,
) -> Int[np.ndarray, " kept"]:
    """Indices of the boxes (x0, y0, x1, y1) that stay, best score first; ties in the order given.

    A box goes where a better one of its class that stays overlaps it by more than ``threshold`` (IoU, strictly: 1
    keeps everything). Exact in float64, without the offsets that keep classes apart elsewhere and cost precision.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        rival = classes[rest] == classes[best]
        rival[rival] = overlaps(boxes[best], boxes[rest[rival]]) > threshold
        order = rest[~rival]
    return np.array(kept, dtype=np.int64)


def overlaps(box: Float[np.ndarray, "4"], others: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    """IoU of one box with each of the others; 0 with an empty one."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=common > 0)
