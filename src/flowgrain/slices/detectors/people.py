"""Persons and their parts without a download: faces by an embedded BlazeFace, bodies by MediaPipe or by rules.

What only a rule says (a body drawn under a face) has a score of at most ``ESTIMATE``; what a model saw has 0.5 or more.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from flowgrain.data.records import Box
from flowgrain.errors import ModelError
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.blazeface import Faces, load_blazeface, weights_path
from flowgrain.slices.detectors.face_search import faces_in
from flowgrain.slices.detectors.pose import Body, Poses, pose_digest, pose_folder
from flowgrain.slices.detectors.remember import remembered
from flowgrain.slices.detectors.windows import around
from flowgrain.slices.framing import clip_box

Part = Literal["person", "upper_body", "head", "face", "eyes", "mouth", "hands"]
ESTIMATE = 0.45
"""Score of an estimated body over that of its face."""
_BODIES: tuple[Part, ...] = ("person", "upper_body", "hands")

# Measures in units of the face's longer side (the middle of the forehead to the chin), read off photographs, with the
# canon of 7.5 heads to a person, of which a head is 1.35 faces.
_HEAD_SIDE, _HEAD_RISE = 1.5, 0.2
"""waifuc's square of 1.5, lifted so that it holds the hair and not the neck."""
_CROWN = 0.5
"""The crown above the top of the face's box."""
_UPPER_WIDTH, _UPPER_HEIGHT = 3.2, 4.8
_PERSON_WIDTH, _PERSON_HEIGHT = 4.0, 10.0
# Measures in units of the distance of the eyes' centres: an eye is half as wide, a mouth 0.8.
_EYE_SIDE = 1.2
"""2.4 times the eye's width, waifuc's factor."""
_MOUTH_WIDTH, _MOUTH_HEIGHT = 1.2, 0.8
_PROFILE = 0.3
"""Least distance of the eyes over the face's side; seen from the side they come together."""


class PeopleConfig(DetectorConfig):
    """Which part of people belongs to the level, and what bodies are found with."""

    short_key: ClassVar[str | None] = "part"
    kind: Literal["people"] = "people"
    part: Part = Field(default="person", description="what the level's boxes are of; eyes and hands: one box each")
    body: Literal["auto", "pose", "face"] = Field(
        default="auto",
        description="persons, upper bodies and hands by MediaPipe's pose models, or persons and upper bodies estimated "
        "from faces; auto: pose where its models and ai-edge-litert are installed",
    )
    weights: str = Field(
        default="", description="folder of MediaPipe's pose_*.tflite; empty: those of an installed mediapipe 0.10"
    )
    min_face_score: float = Field(default=0.7, ge=0.5, lt=1, description="least score of a face, of which all follows")
    scales: int = Field(
        default=3, ge=1, le=5, description="how far down faces are sought: to 1/10, 1/20, 1/40, ... of the longer side"
    )

    @model_validator(mode="after")
    def _read(self) -> "PeopleConfig":
        if self.part == "hands" and self.body == "face":
            raise ValueError("hands are found by the pose models alone; set body to pose, or another part")
        if self.weights and self.body == "face":
            raise ValueError("weights is not read with body face; remove it or set body to pose")
        return self

    def build(self, context: DetectorContext) -> "PeopleDetector":
        """See :class:`DetectorConfig`. Raises :class:`ModelError` where pose models are asked for and missing."""
        folder = self._pose_folder() if self.part in _BODIES else None
        return PeopleDetector(self, folder, context.threads)

    def _pose_folder(self) -> Path | None:
        """Where the pose models are; None where bodies are estimated."""
        if self.body == "face":
            return None
        folder = Path(self.weights).expanduser() if self.weights else pose_folder()
        wanted = self.body == "pose" or bool(self.weights) or self.part == "hands"
        if folder is None and wanted:
            raise ModelError(
                "detector people: no pose models; install mediapipe 0.10 (later ones hold none), set weights to a "
                "folder with its pose_*.tflite, or set body to face, which estimates persons and upper bodies"
            )
        return folder if wanted or find_spec("ai_edge_litert") is not None else None


class PeopleDetector(Detector):
    """Finds faces first; what else is asked for follows from them or, bodies, from the pose models."""

    kind = "people"

    def __init__(self, config: PeopleConfig, poses: Path | None, threads: int | None):
        self._config = config
        self._face_model = load_blazeface(weights_path())
        self._face_digest = hashlib.sha1(weights_path().read_bytes(), usedforsecurity=False).hexdigest()
        self._poses = None if poses is None else Poses(poses, threads)
        self._source = "faces" if poses is None else f"pose {pose_digest(poses)}"

    def fingerprint(self) -> str:
        """Digest of the face model, and what bodies come from: ``faces``, or ``pose`` with that models' digest."""
        return f"blazeface {self._face_digest} {self._source if self._config.part in _BODIES else ''}".rstrip()

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`."""
        faces = self._faces(view.image, view.region)
        if self._config.part in _BODIES:
            return self._bodies(view.image, view.region, faces)
        return [found for index in range(len(faces)) for found in face_parts(faces, index, self._config.part)]

    def _faces(self, image: Image.Image, region: Box) -> Faces:
        settings = self._config.scales, self._config.min_face_score
        key = "faces", self._face_digest, region, settings
        return remembered(image, key, lambda: faces_in(self._face_model, image, region, *settings))

    def _bodies(self, image: Image.Image, region: Box, faces: Faces) -> list[Detection]:
        part, poses = self._config.part, self._poses
        bodies: list[Body] = []
        if poses is not None:
            hints = tuple(_below(box) for box in faces.boxes)
            key = "bodies", self._source, region, hints
            bodies = remembered(image, key, lambda: poses.bodies(image, region, hints))
        if part == "hands":
            return [Detection(box, "hand", body.score) for body in bodies for box in body.hands()]
        label = part.replace("_", " ")
        boxes = [(body.upper() if part == "upper_body" else body.box, body.score) for body in bodies]
        found = [Detection(box, label, score) for box, score in boxes if box is not None]
        for box, score in zip(faces.boxes, faces.scores, strict=True):
            if not any(_belongs(box, body) for body in bodies):
                found.append(Detection(clip_box(estimated(box, part), region), label, ESTIMATE * float(score)))
        return found


def face_parts(faces: Faces, index: int, part: Part) -> list[Detection]:
    """A face, or what lies in or around it, with the face's score."""
    x0, y0, x1, y1 = (float(side) for side in faces.boxes[index])
    score, side = float(faces.scores[index]), max(x1 - x0, y1 - y0)
    if part == "face":
        return [Detection((x0, y0, x1, y1), "face", score)]
    if part == "head":
        return [Detection(around((x0 + x1) / 2, (y0 + y1) / 2 - _HEAD_RISE * side, _HEAD_SIDE * side), "head", score)]
    right, left, _, mouth = faces.points[index, :4]
    distance = max(float(np.hypot(*(left - right))), _PROFILE * side)
    if part == "eyes":
        eyes = (("right eye", right), ("left eye", left))
        return [Detection(around(float(x), float(y), _EYE_SIDE * distance), label, score) for label, (x, y) in eyes]
    x, y, across, down = float(mouth[0]), float(mouth[1]), _MOUTH_WIDTH * distance / 2, _MOUTH_HEIGHT * distance / 2
    return [Detection((x - across, y - down, x + across, y + down), "mouth", score)]


def estimated(face: np.ndarray, part: Part) -> Box:
    """Where an upright person (or the upper body, to the hips) would be, by the size of the face alone."""
    width, height = (_PERSON_WIDTH, _PERSON_HEIGHT) if part == "person" else (_UPPER_WIDTH, _UPPER_HEIGHT)
    side = float(max(face[2] - face[0], face[3] - face[1]))
    middle, top = float(face[0] + face[2]) / 2, float(face[1]) - _CROWN * side
    return (middle - width * side / 2, top, middle + width * side / 2, top + height * side)


def _below(face: np.ndarray) -> Box:
    """A square that holds the person of a face, for the pose models to look at."""
    side = float(max(face[2] - face[0], face[3] - face[1]))
    return around(float(face[0] + face[2]) / 2, float(face[1] + face[3]) / 2 + 3.5 * side, 10 * side)


def _belongs(face: np.ndarray, body: Body) -> bool:
    """Whether the body's nose lies in the middle of the face."""
    middle, side = (face[:2] + face[2:]) / 2, float(max(face[2] - face[0], face[3] - face[1]))
    return float(np.hypot(*(body.landmarks[0, :2] - middle))) < 0.75 * side
