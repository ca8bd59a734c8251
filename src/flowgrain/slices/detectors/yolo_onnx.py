"""Boxes from a YOLO network in an ONNX file (YOLOv5, v8, v11 and their kin), computed by onnxruntime.

The picture is letterboxed into the network's frame, candidates above ``confidence`` go through class-aware
suppression, and boxes are mapped back to the pixels of the source. No network is included: ultralytics' own weights are
under the AGPL-3.0, others under licences of their own.
"""

import ast
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flowgrain.errors import ConfigError, ModelError
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.class_names import check_classes
from flowgrain.slices.detectors.letterbox import GREY, Letterbox
from flowgrain.slices.detectors.nms import suppress
from flowgrain.slices.detectors.onnx_model import OnnxModel, open_onnx
from flowgrain.slices.detectors.yolo_layouts import Candidates, Layout, check_layout, decode, recognise

LABELS_NAME = "labels.json"
_USUAL_SIDE = 640
"""Side of the frame where neither the network, its metadata nor the configuration names one."""


class YoloOnnxConfig(DetectorConfig):
    """A YOLO export and which of its classes belong to the level."""

    short_key: ClassVar[str | None] = "model"
    kind: Literal["yolo-onnx"] = "yolo-onnx"
    model: str = Field(min_length=1, description="the .onnx file, relative to where flowgrain is run")
    classes: list[str] | None = Field(default=None, description="classes that belong to the level; null: all")
    confidence: float = Field(default=0.25, ge=0, le=1, description="candidates that do not score above it are dropped")
    iou: float = Field(
        default=0.7, ge=0, le=1, description="of two boxes of one class that overlap more, the better stays; 1 = both"
    )
    class_names: list[str] | None = Field(
        default=None,
        description="names of the classes by number; null: those in the file, else in labels.json beside it, else "
        "the numbers themselves",
    )
    input_size: int | None = Field(
        default=None,
        ge=32,
        le=4096,
        multiple_of=32,
        description="side of the square that the network looks at, where it takes several; null: what it was exported "
        "for, else 640",
    )
    layout: Literal["auto", "v8", "v5", "end-to-end"] = Field(
        default="auto", description="what the output means (docs/detectors.md); auto: told by its shape"
    )
    batch_size: int = Field(
        default=1, ge=1, le=256, description="pictures computed together, where the network takes any number"
    )

    def build(self, context: DetectorContext) -> "YoloOnnxDetector":
        """See :class:`DetectorConfig`. Raises :class:`ModelError` for a file that is no such network."""
        model = open_onnx(Path(self.model).expanduser(), context.device, context.threads)
        return YoloOnnxDetector(self, model)


class YoloOnnxDetector(Detector):
    """Scores are the network's; labels the names of its classes."""

    kind = "yolo-onnx"

    def __init__(self, config: YoloOnnxConfig, model: OnnxModel):
        self._config = config
        self._model = model
        self._names = _class_names(config, model)
        self._count = len(self._names) if self._names else None
        self._frame = _frame(config, model)
        self._layout: Layout = self._settled_layout()
        self._wanted = None if config.classes is None else self._numbers(config.classes)
        self.batch_size = config.batch_size if model.batch is None else model.batch

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; best box first."""
        return self.detect_all([view])[0]

    def detect_all(self, views: Sequence[View]) -> list[list[Detection]]:
        """See :class:`Detector`; ``batch_size`` views at a time."""
        starts = range(0, len(views), self.batch_size)
        return [found for start in starts for found in self._detect_batch(views[start : start + self.batch_size])]

    def fingerprint(self) -> str:
        """SHA-256 of the file and of the names in use."""
        return hashlib.sha256(f"{self._model.digest()} {self._names}".encode()).hexdigest()

    def _detect_batch(self, views: Sequence[View]) -> list[list[Detection]]:
        boxes = [Letterbox(_size(view), self._frame) for view in views]
        frames = np.stack([_looked_at(view, box) for view, box in zip(views, boxes, strict=True)])
        outputs = self._run(frames)
        return [self._found(output, view, box) for output, view, box in zip(outputs, views, boxes, strict=True)]

    def _run(self, frames: np.ndarray) -> np.ndarray:
        """Outputs for frames (b, h, w, 3) of uint8; a network of a fixed batch gets grey frames for those it lacks."""
        lacking = (self._model.batch or len(frames)) - len(frames)
        if lacking:
            frames = np.concatenate([frames, np.full((lacking, *frames.shape[1:]), GREY, dtype=np.uint8)])
        pixels = frames.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return self._model.run(pixels)[: len(frames) - lacking]

    def _found(self, output: np.ndarray, view: View, box: Letterbox) -> list[Detection]:
        candidates = self._chosen(decode(output, self._layout, self._count))
        x, y = view.region[:2]
        corners = box.out_of(candidates.boxes) + np.array([x, y, x, y])
        return [
            Detection((float(x0), float(y0), float(x1), float(y1)), self._name(int(number)), min(float(score), 1.0))
            for (x0, y0, x1, y1), score, number in zip(corners, candidates.scores, candidates.classes, strict=True)
        ]

    def _chosen(self, candidates: Candidates) -> Candidates:
        """Those above the confidence, of wanted classes and not empty, suppressed unless the network has done so."""
        boxes = candidates.boxes
        keep = (candidates.scores > self._config.confidence) & np.isfinite(boxes).all(axis=1)
        keep &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        if self._wanted is not None:
            keep &= np.isin(candidates.classes, self._wanted)
        boxes, scores, classes = boxes[keep], candidates.scores[keep], candidates.classes[keep]
        if self._layout == "end-to-end":
            order = np.argsort(-scores, kind="stable")
        else:
            order = suppress(boxes, scores, classes, self._config.iou)
        return Candidates(boxes[order], scores[order], classes[order])

    def _name(self, number: int) -> str:
        return self._names[number] if self._names and 0 <= number < len(self._names) else str(number)

    def _numbers(self, classes: list[str]) -> list[int]:
        if self._names is None and all(map(str.isdecimal, classes)):
            return [int(name) for name in classes]
        wanted = check_classes(classes, self._names or [], self._config.model)
        return [number for number, name in enumerate(self._names or []) if name in wanted]

    def _settled_layout(self) -> Layout:
        """From the shape that the network states or, where it leaves it open, gives for one grey frame."""
        shape = self._model.output_shape
        if not all(isinstance(side, int) for side in shape[1:]):
            shape = self._run(np.full((1, self._frame[1], self._frame[0], 3), GREY, dtype=np.uint8)).shape
        sizes = (self._model.batch or 1, *shape[1:])
        layout = self._config.layout
        if layout == "auto":
            return recognise(sizes, self._frame, self._count, self._config.model)
        check_layout(layout, sizes, self._count, self._config.model)
        return layout


def _size(view: View) -> tuple[int, int]:
    x0, y0, x1, y1 = view.region
    return round(x1 - x0), round(y1 - y0)


def _looked_at(view: View, box: Letterbox) -> np.ndarray:
    whole = view.region == (0, 0, *view.image.size)
    region = view.image if whole else view.image.crop(view.region)
    return np.asarray(box.pixels(region))


def _frame(config: YoloOnnxConfig, model: OnnxModel) -> tuple[int, int]:
    """(width, height) of what the network looks at."""
    if model.frame is not None:
        wanted = config.input_size
        if wanted is not None and model.frame != (wanted, wanted):
            size = f"{model.frame[0]}x{model.frame[1]}"
            raise ConfigError(f"input_size: {config.model} takes {size} pixels and nothing else; remove input_size")
        return model.frame
    if config.input_size is not None:
        return config.input_size, config.input_size
    size = _literal(model.metadata.get("imgsz"))
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return size[1], size[0]
    return _USUAL_SIDE, _USUAL_SIDE


def _class_names(config: YoloOnnxConfig, model: OnnxModel) -> list[str] | None:
    """Names by number; None where nothing names them."""
    if config.class_names is not None:
        return config.class_names
    if "names" in model.metadata:
        return _listed(_literal(model.metadata["names"]), f"{config.model}: metadata 'names'")
    path = model.path.with_name(LABELS_NAME)
    if not path.is_file():
        return None
    try:
        return _listed(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); mend it or set class_names") from None


def _listed(names: Any, where: str) -> list[str]:
    """A list of names from a list, or from a map by number as ultralytics writes it."""
    if isinstance(names, dict):
        numbered = {int(number): name for number, name in names.items() if str(number).isdigit()}
        names = [numbered.get(number) for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{where}: no list of names and no map of numbers from 0 to names; set class_names")
    return names


def _literal(text: str | None) -> Any:
    """A Python or JSON literal; None for anything else. Nothing is executed."""
    try:
        return ast.literal_eval(text or "None")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
