"""Bodies by MediaPipe's pose models (BlazePose): a person detector, then 33 landmarks and a mask of each person.

Bazarevsky et al., "BlazePose: On-device Real-time Body Pose Tracking" (2020). Anchors, decoding and regions as in
MediaPipe's graphs ``pose_detection`` and ``pose_landmark``. The TFLite files (Apache-2.0) are not embedded: they are
read from an installed ``mediapipe`` (which is never imported) or from a folder, and run by ``ai-edge-litert``.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.special import expit

from flowgrain.data.records import Box
from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.detectors.blazeface import anchors_of, overlap
from flowgrain.slices.detectors.windows import around, window
from flowgrain.slices.framing import clip_box, iou

DETECTION = "pose_detection.tflite"
LANDMARKS = "pose_landmark_full.tflite"
_DETECTION_SIDE, _LANDMARK_SIDE = 224, 256
_GRIDS = ((8, 2), (16, 2), (32, 6))
_MIN_SCORE = 0.5
"""MediaPipe's threshold, of the detector and of the flag that says whether the landmarks show a person."""
_SAME_PERSON = 0.3
_MARGIN = 1.25
"""Side of the landmarks' region over that of the circle around a person."""
_SAME_BODY = 0.6
"""IoU above which two bodies are one. Neighbours in a group overlap, so this is more than for faces."""
_VISIBLE = 0.5
_FLESH = 0.5
"""How far a body goes beyond its landmarks (the crown above the eyes), over the length of its trunk."""
_WRISTS_AND_FINGERS = ((15, 17, 19, 21), (16, 18, 20, 22))
_SHOULDERS, _HIPS = (11, 12), (23, 24)


@dataclass(frozen=True)
class Body:
    """One person, in pixels of the image."""

    box: Box
    """What the mask covers, as far as the landmarks reach."""
    landmarks: np.ndarray
    """x, y and the probability of being in the picture and not hidden, of 33 points."""
    score: float

    def upper(self) -> Box | None:
        """From the head to the hips, as wide as the body is there; None where shoulders or hips are not seen."""
        points = self.landmarks[list(_SHOULDERS + _HIPS)]
        if points[:, 2].max() < _VISIBLE or self.landmarks[list(_SHOULDERS), 2].max() < _VISIBLE:
            return None
        x0, y0, x1, y1 = self.box
        hips = float(self.landmarks[list(_HIPS), 1].mean())
        return (x0, y0, x1, min(hips, y1)) if hips > y0 else None

    def hands(self) -> list[Box]:
        """A square around each hand of which the wrist and the fingers' roots are seen."""
        found: list[Box] = []
        for numbers in _WRISTS_AND_FINGERS:
            points = self.landmarks[list(numbers)]
            if points[:, 2].min() < _VISIBLE:
                continue
            wrist, fingers = points[0, :2], points[1:, :2].mean(0)
            centre = wrist + 1.25 * (fingers - wrist)  # the landmarks end at the knuckles
            half = 1.6 * float(np.hypot(*(fingers - wrist)))
            found.append((centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half))
        return found


class Poses:
    """Both models. Raises :class:`ModelError` for files that are missing or no such models."""

    def __init__(self, folder: Path, threads: int | None):
        self._detector = _interpreter(_file(folder, DETECTION, "pose_detection"), threads)
        self._landmarks = _interpreter(_file(folder, LANDMARKS, "pose_landmark"), threads)
        self._anchors = anchors_of(_DETECTION_SIDE, _DETECTION_SIDE, _GRIDS)

    def bodies(self, image: Image.Image, region: Box, hints: Sequence[Box]) -> list[Body]:
        """Persons in ``region``, best first, looked for in the region as a whole and in each of ``hints`` (squares)."""
        x0, y0, x1, y1 = region
        whole = around((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0))
        rois = [roi for square in (whole, *hints) for roi in self._regions(image, region, square)]
        rois.sort(key=lambda roi: -roi.score)
        kept: list[Body] = []
        for roi in rois:
            body = self._body(image, region, roi)
            if body is not None and all(iou(body.box, other.box) <= _SAME_BODY for other in kept):
                kept.append(body)
        return kept

    def _regions(self, image: Image.Image, region: Box, square: Box) -> list["_Roi"]:
        """Where the person detector sees persons in a square."""
        pixels = window(image, region, square, _DETECTION_SIDE).astype(np.float32)[None] / 127.5 - 1.0
        numbers, logits = _run(self._detector, pixels)
        scores = expit(np.clip(logits[0, :, 0].astype(np.float64), -100, 100))
        likely = np.flatnonzero(scores >= _MIN_SCORE)
        likely = likely[np.argsort(-scores[likely], kind="stable")]
        values = numbers[0, likely].astype(np.float64).reshape(-1, 6, 2)
        values[:, [0, 2, 3, 4, 5]] += self._anchors[likely, None]
        boxes = np.concatenate([values[:, 0] - values[:, 1] / 2, values[:, 0] + values[:, 1] / 2], 1)
        unit = (square[2] - square[0]) / _DETECTION_SIDE
        found = []
        rest = np.arange(len(likely))
        while len(rest):
            group = overlap(boxes[rest[0]], boxes[rest]) > _SAME_PERSON
            group[0] = True
            weights = scores[likely[rest[group]]]
            hip, rim = np.tensordot(weights / weights.sum(), values[rest[group]][:, 2:4], 1)
            centre = hip * unit + np.array(square[:2])
            side = 2 * float(np.hypot(*(rim - hip))) * unit * _MARGIN
            turn = math.pi / 2 - math.atan2(hip[1] - rim[1], rim[0] - hip[0])
            found.append(_Roi(float(centre[0]), float(centre[1]), side, turn, float(weights[0])))
            rest = rest[~group]
        return found

    def _body(self, image: Image.Image, region: Box, roi: "_Roi") -> Body | None:
        """The person in a turned square, None where the landmark model sees none."""
        if roi.side < 2:
            return None
        pixels = roi.pixels(image, region).astype(np.float32)[None] / 255.0
        outputs = {tuple(part.shape): part[0] for part in _run(self._landmarks, pixels)}
        flag = float(outputs[(1, 1)][0])
        mask = outputs[(1, _LANDMARK_SIDE, _LANDMARK_SIDE, 1)][..., 0] > 0
        if flag < _MIN_SCORE or not mask.any():
            return None
        rows, columns = _main_part(mask)
        corners = roi.placed(np.stack([columns, rows], 1))
        low, high = corners.min(0), corners.max(0)
        numbers = outputs[(1, 195)].reshape(39, 5)[:33].astype(np.float64)
        landmarks = np.concatenate([roi.placed(numbers[:, :2]), expit(numbers[:, 3:].min(1, keepdims=True))], 1)
        reach = _reach(landmarks)
        low, high = np.maximum(low, reach[0]), np.minimum(high, reach[1])
        box = clip_box((float(low[0]), float(low[1]), float(high[0]), float(high[1])), region)
        empty = box[2] - box[0] < 1 or box[3] - box[1] < 1
        return None if empty else Body(box, landmarks, (roi.score + flag) / 2)


@dataclass(frozen=True)
class _Roi:
    """A square about (x, y), turned clockwise by ``turn`` radians so that the person stands upright in it."""

    x: float
    y: float
    side: float
    turn: float
    score: float

    def pixels(self, image: Image.Image, region: Box) -> np.ndarray:
        """256 x 256 pixels."""
        outer = math.ceil(_LANDMARK_SIDE * math.sqrt(2))
        upright = window(image, region, around(self.x, self.y, self.side * outer / _LANDMARK_SIDE), outer)
        cos, sin, half, middle = math.cos(self.turn), math.sin(self.turn), _LANDMARK_SIDE / 2, outer / 2
        matrix = (cos, -sin, middle - cos * half + sin * half, sin, cos, middle - sin * half - cos * half)
        size = (_LANDMARK_SIDE, _LANDMARK_SIDE)
        turned = Image.fromarray(upright).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return np.asarray(turned)

    def placed(self, points: np.ndarray) -> np.ndarray:
        """Points of the 256 x 256 pixels in pixels of the image."""
        x, y = ((points - _LANDMARK_SIDE / 2) * (self.side / _LANDMARK_SIDE)).T
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.stack([self.x + cos * x - sin * y, self.y + sin * x + cos * y], 1)


def pose_folder() -> Path | None:
    """The models of an installed mediapipe, None where there is none or it holds no models (1.x)."""
    spec = find_spec("mediapipe")
    places = spec.submodule_search_locations if spec is not None else None
    folders = [Path(place) / "modules" for place in places or ()]
    return next((folder for folder in folders if (folder / "pose_detection" / DETECTION).is_file()), None)


def pose_digest(folder: Path) -> str:
    """SHA-1 of both models. Raises :class:`ModelError` where one is missing."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, parent in ((DETECTION, "pose_detection"), (LANDMARKS, "pose_landmark")):
        digest.update(_file(folder, name, parent).read_bytes())
    return digest.hexdigest()


def _reach(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners beyond which a body with these landmarks does not go, so that the mask of a neighbour is cut off."""
    places = landmarks[:, :2]
    torso = places[list(_SHOULDERS)].mean(0) - places[list(_HIPS)].mean(0)
    margin = _FLESH * float(np.hypot(*torso))
    return places.min(0) - margin, places.max(0) + margin


def _file(folder: Path, name: str, parent: str) -> Path:
    """A model in the folder itself or where mediapipe keeps it below ``modules``."""
    for path in (folder / name, folder / parent / name):
        if path.is_file():
            return path
    raise ModelError(
        f"{folder}: no {name} in it; it is in the wheel of mediapipe 0.10 (mediapipe/modules/{parent}/{name})"
    )


def _interpreter(path: Path, threads: int | None) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise MissingExtraError("ai-edge-litert", "people", "finding bodies by MediaPipe's pose models") from None
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not a TFLite model ({str(error).splitlines()[0]})") from None
    return interpreter


def _run(interpreter: Any, pixels: np.ndarray) -> list[np.ndarray]:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def _main_part(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the mask's pixels (their corners too), without specks below a twentieth of it."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    rows, columns = np.nonzero((sizes >= sizes.sum() / 20)[parts])
    return np.concatenate([rows, rows + 1]), np.concatenate([columns, columns + 1])
