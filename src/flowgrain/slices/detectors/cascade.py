"""Haar and LBP cascades through OpenCV: faces, profiles, eyes, bodies, cats' faces, or any cascade of one's own.

Viola and Jones (2001). A cascade is tried at every place and scale; overlapping hits are grouped, and a group of fewer
than ``min_neighbors`` hits is dropped.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View

NAMES = {
    "face": ("haarcascade_frontalface_default.xml", "face"),
    "face-alt": ("haarcascade_frontalface_alt2.xml", "face"),
    "profile": ("haarcascade_profileface.xml", "face"),
    "eye": ("haarcascade_eye.xml", "eye"),
    "eye-glasses": ("haarcascade_eye_tree_eyeglasses.xml", "eye"),
    "smile": ("haarcascade_smile.xml", "smile"),
    "upper-body": ("haarcascade_upperbody.xml", "upper body"),
    "lower-body": ("haarcascade_lowerbody.xml", "lower body"),
    "person": ("haarcascade_fullbody.xml", "person"),
    "cat-face": ("haarcascade_frontalcatface_extended.xml", "cat face"),
}
"""Short name -> (file of OpenCV's package, label)."""
_HALF_WAY = 4.0
"""Margin at which the score is 0.75."""
_THRESHOLD = re.compile(rb"<stage_?[tT]hreshold>\s*([-+.\deE]+)\s*</stage_?[tT]hreshold>")


class CascadeConfig(DetectorConfig):
    """Which cascade, and how strict it is."""

    short_key: ClassVar[str | None] = "name"
    kind: Literal["cascade"] = "cascade"
    name: str = Field(default="face", description=f"one of {', '.join(NAMES)}, or the path of an XML file")
    label: str | None = Field(default=None, description="label of the boxes; null: by the name, or the file's stem")
    scale_factor: float = Field(default=1.1, gt=1, le=2, description="ratio of one searched size to the next")
    min_neighbors: int = Field(default=5, ge=1, description="hits that must agree; more drops more that is no face")
    min_size: float = Field(
        default=0.04, ge=0, lt=1, description="smallest searched side as a fraction of the region's shorter side"
    )
    working_side: int = Field(
        default=1024, ge=64, description="longer side, in pixels, to which greater regions are shrunk before the search"
    )

    def build(self, context: DetectorContext) -> "CascadeDetector":
        """See :class:`DetectorConfig`. Raises :class:`ModelError` for a file that is missing or no cascade."""
        cv2 = _opencv()
        if self.name in NAMES:
            file, label = NAMES[self.name]
            path = Path(cv2.data.haarcascades) / file
        else:
            path, label = Path(self.name).expanduser(), Path(self.name).stem
            path = path if path.is_absolute() else context.folder / path
            if not path.is_file():
                known = ", ".join(NAMES)
                raise ModelError(f"detector cascade: no file {path}; name an XML file, or one of {known}")
        return CascadeDetector(self, path, self.label if self.label is not None else label, context.threads)


class CascadeDetector(Detector):
    """The score grows with the margin by which a hit passes the cascade's last stage (:func:`score_of`)."""

    kind = "cascade"

    def __init__(self, config: CascadeConfig, path: Path, label: str, threads: int | None):
        self._cv2 = _opencv()
        if threads is not None:
            self._cv2.setNumThreads(threads)
        self._config = config
        self._label = label
        self._digest, self._cascade, self._threshold = _loaded(self._cv2, path)

    def fingerprint(self) -> str:
        """Digest of the XML file, and OpenCV's version, whose grouping of hits is part of the result."""
        return f"{self._digest} opencv {self._cv2.__version__}"

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; best score first."""
        x0, y0, x1, y1 = view.region
        config = self._config
        shrink = min(config.working_side / max(x1 - x0, y1 - y0), 1.0)
        size = max(round((x1 - x0) * shrink), 1), max(round((y1 - y0) * shrink), 1)
        grey = np.asarray(view.image.crop(view.region).convert("L").resize(size))
        smallest = round(min(size) * config.min_size)
        boxes, _, weights = self._cascade.detectMultiScale3(
            self._cv2.equalizeHist(grey),
            scaleFactor=config.scale_factor,
            minNeighbors=config.min_neighbors,
            minSize=(smallest, smallest),
            outputRejectLevels=True,
        )
        across, down = (x1 - x0) / size[0], (y1 - y0) / size[1]
        found = []
        for (x, y, w, h), weight in zip(boxes, np.ravel(weights), strict=True):
            left, top = float(x0 + x * across), float(y0 + y * down)
            box = (left, top, left + float(w * across), top + float(h * down))
            found.append(Detection(box, self._label, score_of(float(weight) - self._threshold)))
        return sorted(found, key=lambda detection: (-detection.score, detection.box))


def score_of(margin: float) -> float:
    """1 - 2^(-1 - margin / 4), in [0.5, 1): 0.5 at the last stage's threshold, which every hit passes."""
    return 1.0 - 0.5 * math.exp2(-max(margin, 0.0) / _HALF_WAY)


def _loaded(cv2: Any, path: Path) -> tuple[str, Any, float]:
    """SHA-1 of the file, the cascade in it, and the threshold of its last stage."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    thresholds = _THRESHOLD.findall(data)
    cascade = cv2.CascadeClassifier()
    try:
        usable = cascade.load(str(path)) and bool(thresholds)
    except cv2.error:
        usable = False
    if not usable:
        raise ModelError(f"{path}: OpenCV finds no cascade in it (Haar or LBP, XML)")
    return hashlib.sha1(data, usedforsecurity=False).hexdigest(), cascade, float(thresholds[-1])


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("opencv-python-headless<5", "cascade", "detector cascade") from None
    if int(cv2.__version__.split(".")[0]) >= 5:
        purpose = f"detector cascade (OpenCV {cv2.__version__} has no cascades)"
        raise MissingExtraError("opencv-python-headless<5", "cascade", purpose)
    return cv2
