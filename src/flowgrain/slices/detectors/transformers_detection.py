"""Boxes from a model of transformers with classes of its own: DETR, Conditional DETR, RT-DETR, YOLOS and their kin."""

from typing import ClassVar, Literal

from pydantic import Field

from flowgrain.pretrained.precision import Precision
from flowgrain.slices.detectors.base import Detector, DetectorConfig, DetectorContext


class TransformersDetectionConfig(DetectorConfig):
    """A detection model and which of its classes belong to the level."""

    short_key: ClassVar[str | None] = "model"
    kind: Literal["transformers-detection"] = "transformers-detection"
    model: str = Field(min_length=1, description="folder in transformers layout, or hub id")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id; null: its main branch")
    classes: list[str] | None = Field(default=None, description="classes that belong to the level; null: all")
    confidence: float = Field(default=0.5, ge=0, le=1, description="boxes that do not score above it are dropped")
    iou: float = Field(
        default=0.7, ge=0, le=1, description="of two boxes of one class that overlap more, the better stays; 1 = both"
    )
    batch_size: int = Field(default=1, ge=1, le=256, description="pictures of equal size computed together")
    dtype: Precision = Field(default="float32", description="precision on CUDA; the CPU computes in float32")

    def build(self, context: DetectorContext) -> Detector:
        """See :class:`DetectorConfig`. Raises :class:`flowgrain.errors.ModelError` for what is no such model."""
        from transformers import AutoModelForObjectDetection
        from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

        from flowgrain.slices.detectors.class_reader import ClassReader
        from flowgrain.slices.detectors.hf_detector import HfDetector
        from flowgrain.slices.detectors.hf_models import load_network

        network = load_network(
            self.model,
            self.revision,
            AutoModelForObjectDetection,
            MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
            "detection by classes",
            context,
            self.dtype,
        )
        reader = ClassReader(network, self.classes, self.model, self.confidence)
        return HfDetector(self.kind, network, reader, self.batch_size, self.iou)
