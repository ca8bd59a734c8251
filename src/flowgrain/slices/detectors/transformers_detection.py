"""Boxes from a model of transformers with classes of its own: DETR, Conditional DETR, RT-DETR, YOLOS and their kin."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.class_names import check_classes

if TYPE_CHECKING:
    from torch import Tensor

    from flowgrain.slices.detectors.hf_models import Found, HfNetwork


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
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32", description="precision on CUDA; the CPU computes in float32"
    )

    def build(self, context: DetectorContext) -> "TransformersDetector":
        """See :class:`DetectorConfig`. Raises :class:`flowgrain.errors.ModelError` for what is no such model."""
        from transformers import AutoModelForObjectDetection
        from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

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
        return TransformersDetector(self, network)


class TransformersDetector(Detector):
    """Scores are the network's; labels the names of its classes in config.json."""

    kind = "transformers-detection"

    def __init__(self, config: TransformersDetectionConfig, network: "HfNetwork"):
        self._config = config
        self._network = network
        self._names: dict[int, str] = network.config.id2label
        wanted = self._names.values() if config.classes is None else config.classes
        self._wanted = check_classes(list(wanted), self._names.values(), config.model)
        self.batch_size = config.batch_size

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; best box first."""
        return self.detect_all([view])[0]

    def detect_all(self, views: Sequence[View]) -> list[list[Detection]]:
        """See :class:`Detector`; pictures that come out of the preparation with equal sizes share batches."""
        from flowgrain.slices.detectors.hf_models import detect_views

        return detect_views(self._network, views, self.batch_size, self._found, self._config.iou)

    def fingerprint(self) -> str:
        """SHA-256 of the model's files."""
        return self._network.digest()

    def _found(self, inputs: "dict[str, Tensor]", sizes: list[tuple[int, int]]) -> "list[Found]":
        from flowgrain.slices.detectors.hf_models import Found

        results = self._network.image_processor.post_process_object_detection(
            self._network.run(inputs), threshold=self._config.confidence, target_sizes=sizes
        )
        found = []
        for result in results:
            labels = [self._names.get(int(number), str(int(number))) for number in result["labels"]]
            kept = [row for row, label in enumerate(labels) if label in self._wanted]
            found.append(Found(result["boxes"][kept], result["scores"][kept], [labels[row] for row in kept]))
        return found
