"""Boxes of whatever phrases name: Grounding DINO, MM Grounding DINO, OWL-ViT and OWLv2 through transformers.

Grounding DINO reads all phrases as one text and scores its tokens, OWL reads each phrase by itself
(``phrase_readers.py``).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from flowgrain.pretrained.precision import Precision
from flowgrain.slices.detectors.base import Detector, DetectorConfig, DetectorContext

DEFAULT_MODEL = "IDEA-Research/grounding-dino-tiny"


def _as_phrases(value: Any) -> Any:
    """``upper body, logo`` as a list; a list stays one."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ZeroShotConfig(DetectorConfig):
    """What to look for, in words, and the model that does."""

    short_key: ClassVar[str | None] = "phrases"
    kind: Literal["zero-shot"] = "zero-shot"
    phrases: Annotated[list[str], BeforeValidator(_as_phrases), Field(min_length=1)] = Field(
        description="what belongs to the level, a list or one text with commas; the phrase is the label of its boxes"
    )
    model: str = Field(
        default=DEFAULT_MODEL,
        min_length=1,
        description="Grounding DINO or OWL: folder in transformers layout, or hub id",
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id; null: its main branch")
    confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="boxes that do not score above it are dropped; null: 0.25 with Grounding DINO, 0.1 with OWL",
    )
    text_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Grounding DINO alone: least score of the best token of a box's phrase; null: 0.25",
    )
    iou: float = Field(
        default=0.7, ge=0, le=1, description="of two boxes of one phrase that overlap more, the better stays; 1 = both"
    )
    batch_size: int = Field(default=1, ge=1, le=256, description="pictures of equal size computed together")
    dtype: Precision = Field(default="float32", description="precision on CUDA; the CPU computes in float32")

    @field_validator("phrases")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        plain = [" ".join(phrase.lower().split()) for phrase in value]
        if not all(plain):
            raise ValueError("an empty phrase; write for example 'upper body, logo'")
        twice = next((phrase for phrase in plain if plain.count(phrase) > 1), None)
        if twice is not None:
            raise ValueError(f"phrase '{twice}' is there twice")
        return value

    def build(self, context: DetectorContext) -> Detector:
        """See :class:`DetectorConfig`. Raises :class:`flowgrain.errors.ModelError` for what is no such model."""
        from transformers import AutoModelForZeroShotObjectDetection

        from flowgrain.slices.detectors.hf_detector import HfDetector
        from flowgrain.slices.detectors.hf_models import load_network
        from flowgrain.slices.detectors.phrase_readers import PROCESSORS, open_reader

        network = load_network(
            self.model,
            self.revision,
            AutoModelForZeroShotObjectDetection,
            PROCESSORS,
            "detection by phrases",
            context,
            self.dtype,
        )
        reader = open_reader(network, self.phrases, self.model, self.confidence, self.text_threshold)
        return HfDetector(self.kind, network, reader, self.batch_size, self.iou)
