"""Every detector by its kind. A new one is a module of its own and a line here."""

from typing import Annotated

from pydantic import BeforeValidator, Discriminator, Field, Tag

from flowgrain.slices.detectors.base import DetectorConfig
from flowgrain.slices.detectors.boxes import BoxesConfig
from flowgrain.slices.detectors.cascade import CascadeConfig
from flowgrain.slices.detectors.grid import GridConfig
from flowgrain.slices.detectors.people import PeopleConfig
from flowgrain.slices.detectors.saliency import SaliencyConfig
from flowgrain.slices.detectors.svg import SvgConfig
from flowgrain.slices.detectors.transformers_detection import TransformersDetectionConfig
from flowgrain.slices.detectors.vlm import VlmDetectorConfig
from flowgrain.slices.detectors.yolo_onnx import YoloOnnxConfig
from flowgrain.slices.detectors.zero_shot import ZeroShotConfig
from flowgrain.slices.shorthand import spelled_out

KINDS: dict[str, type[DetectorConfig]] = {
    "boxes": BoxesConfig,
    "cascade": CascadeConfig,
    "grid": GridConfig,
    "people": PeopleConfig,
    "saliency": SaliencyConfig,
    "svg": SvgConfig,
    "transformers-detection": TransformersDetectionConfig,
    "vlm": VlmDetectorConfig,
    "yolo-onnx": YoloOnnxConfig,
    "zero-shot": ZeroShotConfig,
}


_SHORT_KEYS = {kind: config.short_key for kind, config in KINDS.items()}

OneDetector = Annotated[
    Annotated[
        BoxesConfig
        | CascadeConfig
        | GridConfig
        | PeopleConfig
        | SaliencyConfig
        | SvgConfig
        | TransformersDetectionConfig
        | VlmDetectorConfig
        | YoloOnnxConfig
        | ZeroShotConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(lambda value: spelled_out(value, _SHORT_KEYS, "detector")),
]
"""The configuration of a detector: a map, or ``kind``, or ``kind:value``."""

Detectors = Annotated[
    Annotated[OneDetector, Tag("one")] | Annotated[tuple[OneDetector, ...], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]
"""One detector, or several of which the first that finds something usable counts."""
