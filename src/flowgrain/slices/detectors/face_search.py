"""Faces of any size in a picture: BlazeFace at several scales, and a second look at each find.

BlazeFace short range knows faces of a tenth of its 128 pixels and more. So the region is shrunk until its longer side
is 128 times 1, 2, 4 (and 8, if asked) pixels, and the network looks at each of these pictures as a whole. Every find
is then looked at again in a square of its own, in which a face has the size that the network knows best; that look
gives the box and the points, drops what is no face, and has half the say in the score.
"""

import numpy as np
from PIL import Image

from flowgrain.data.records import Box
from flowgrain.slices.detectors.blazeface import INPUT_SIDE, SAME_FACE, SIDE_STEP, BlazeFace, Faces, find_faces, overlap
from flowgrain.slices.detectors.windows import around, window

_FIRST_LOOK = 0.5
"""Score that asks for a second look: MediaPipe's own threshold."""
_CLOSE_UP = 2.5
"""Side of the second look over the face's longer side."""
_BATCH = 16
"""Second looks that are taken together, so that memory stays bounded in a crowd."""


def faces_in(model: BlazeFace, image: Image.Image, region: Box, depth: int, min_score: float) -> Faces:
    """Faces in ``region`` of ``image``, in pixels of the image, best first.

    ``depth`` is the number of scales: the smallest face that is found has about 1/10, 1/20, 1/40, 1/80 of the
    region's longer side. The same pixels always give the same faces.
    """
    first = _distinct(_joined([_at_scale(model, image, region, 2**power) for power in range(depth)]))
    found = _distinct(_looked_at_again(model, image, region, first))
    return found.take(found.scores >= min_score)


def _at_scale(model: BlazeFace, image: Image.Image, region: Box, factor: int) -> Faces:
    """Faces in the region, shrunk or enlarged to a longer side of 128 ``factor`` pixels."""
    x0, y0, x1, y1 = region
    unit = max(x1 - x0, y1 - y0) / (INPUT_SIDE * factor)
    width, height = max(round((x1 - x0) / unit), 1), max(round((y1 - y0) / unit), 1)
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, region))
    if factor == 1:  # exactly what MediaPipe shows the network: a square with the picture in its middle
        sides, left, top = (INPUT_SIDE, INPUT_SIDE), (INPUT_SIDE - width) // 2, (INPUT_SIDE - height) // 2
    else:
        sides, left, top = (_multiple(height), _multiple(width)), 0, 0
    canvas = np.zeros((1, *sides, 3), dtype=np.uint8)
    canvas[0, top : top + height, left : left + width] = small
    (faces,) = find_faces(model, canvas, _FIRST_LOOK)
    scale = (x1 - x0) / width, (y1 - y0) / height
    return faces.moved(scale, (x0 - left * scale[0], y0 - top * scale[1]))


def _looked_at_again(model: BlazeFace, image: Image.Image, region: Box, faces: Faces) -> Faces:
    """Of each face what the second look finds at its place, with the mean of both scores."""
    squares = [_square(box) for box in faces.boxes]
    found = []
    for start in range(0, len(squares), _BATCH):
        batch = squares[start : start + _BATCH]
        looks = find_faces(
            model, np.stack([window(image, region, square, INPUT_SIDE) for square in batch]), _FIRST_LOOK
        )
        for index, (square, look) in enumerate(zip(batch, looks, strict=True), start):
            unit = (square[2] - square[0]) / INPUT_SIDE
            again = look.moved((unit, unit), square[:2])
            shares = overlap(faces.boxes[index], again.boxes)
            if len(shares) and shares.max() > SAME_FACE:
                best = again.take(np.array([int(shares.argmax())]))
                found.append(Faces(best.boxes, best.points, (best.scores + faces.scores[index]) / 2))
    return _joined(found)


def _square(box: np.ndarray) -> Box:
    side = _CLOSE_UP * float(max(box[2] - box[0], box[3] - box[1]))
    return around(float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2, side)


def _distinct(faces: Faces) -> Faces:
    """Best first, without those that overlap a better one."""
    kept: list[int] = []
    for index in np.argsort(-faces.scores, kind="stable"):
        if not kept or overlap(faces.boxes[index], faces.boxes[kept]).max() <= SAME_FACE:
            kept.append(int(index))
    return faces.take(np.array(kept, dtype=np.int64))


def _multiple(length: int) -> int:
    return -(-length // SIDE_STEP) * SIDE_STEP


def _joined(parts: list[Faces]) -> Faces:
    return Faces(
        np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)]),
        np.concatenate([np.zeros((0, 6, 2)), *(part.points for part in parts)]),
        np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
    )
