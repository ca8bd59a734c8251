"""Boxes by a vision-language model behind any OpenAI-compatible endpoint: words in, boxes out.

The region is sent as a picture, scaled down, and the model answers with boxes as JSON, which is checked, sent back
with what is wrong where it is, and kept on disk: the same picture is never paid for twice (:mod:`flowgrain.vlm`).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field

from flowgrain.data.records import Box
from flowgrain.slices.detectors import vlm_prompts as prompts
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.vlm_boxes import (
    LIST_NAME,
    STYLES,
    Coordinates,
    CoordinateStyle,
    Size,
    answer_schema,
    read_boxes,
)
from flowgrain.vlm.answers import Query
from flowgrain.vlm.asker import Asker, AskingForecast, forecast, question_key, required_endpoint
from flowgrain.vlm.images import encode_picture, picture_part, picture_tokens, text_part, text_tokens
from flowgrain.vlm.settings import AskingSettings, VlmConfig, shared_with


class VlmDetectorConfig(DetectorConfig, AskingSettings):
    """What to look for, how boxes are written, and whom to ask."""

    short_key: ClassVar[str | None] = "find"
    asks_others: ClassVar[bool] = True
    kind: Literal["vlm"] = "vlm"
    find: str = Field(pattern=r"\S", max_length=2000, description="what to look for, for example: the product's logo")
    coordinates: CoordinateStyle = Field(
        default="thousandths",
        description="how the model writes boxes: thousandths of the picture (the convention of most), pixels, "
        "fractions, or the way that qwen2.5-vl, qwen3-vl or gemini was trained to",
    )
    most: int = Field(default=20, ge=1, le=200, description="boxes that are asked for at most")
    captions: bool = Field(default=False, description="ask for a caption with each box; it becomes the slice's own")

    def with_defaults(self, shared: VlmConfig | None) -> "VlmDetectorConfig":
        """With what this says nothing about taken from the data set's vlm settings."""
        return self.model_copy(update=shared_with(self, shared))

    def build(self, context: DetectorContext) -> "VlmDetector":
        """See :class:`DetectorConfig`. Raises ConfigError where no model is named; asks and opens nothing yet."""
        required_endpoint(self, f"levels.{context.level}.detector: ")
        return VlmDetector(self, Asker(self, LIST_NAME, context.cache))

    def forecast(self, sizes: Iterable[Size]) -> AskingForecast:
        """What regions of these (width, height) would take if none had been asked about; nothing is sent."""
        coordinates = STYLES[self.coordinates]
        tokens = [self._tokens(coordinates.sent_size(size, self.pictures.max_side)) for size in sizes]
        return forecast(len(tokens), sum(tokens), self.budget)

    def question(self, sent: Size) -> str:
        """What the model is told about a picture that is sent at this size."""
        style = STYLES[self.coordinates]
        return prompts.QUESTION.format(
            find=self.find,
            most=self.most,
            name=style.name,
            corners="[y0, x0, y1, x1]" if style.down_first else "[x0, y0, x1, y1]",
            coordinates=style.describe(sent),
            caption_form=prompts.CAPTION_FORM if self.captions else "",
            caption_rule=prompts.CAPTION_RULE if self.captions else "",
        )

    def query(self, picture: Image.Image, about: dict[str, Any]) -> Query:
        """The question about a picture; ``about`` is for readers of the stored answers."""
        style = STYLES[self.coordinates]
        sent = style.sent_size(picture.size, self.pictures.max_side)
        if style.multiple > 1:  # sides that are no multiples are stretched a little; fractions of a side stay the same
            picture = picture.resize(sent, Image.Resampling.LANCZOS)
        data = encode_picture(picture, self.pictures)
        question = self.question(sent)
        return Query(
            key=question_key(LIST_NAME, (prompts.SYSTEM, question, prompts.REPAIR), [data], self),
            about={"find": self.find, **about},
            estimated_in=self._tokens(sent),
            messages=partial(self._messages, data, question),
            schema=answer_schema(style, self.captions),
            read=_reader(style, sent, self.find, self.captions),
            repair=lambda problem: prompts.REPAIR.format(problem=problem),
        )

    def _tokens(self, sent: Size) -> int:
        words = text_tokens(prompts.SYSTEM + self.question(sent))
        return picture_tokens(sent, self.pictures.max_side) + words

    def _messages(self, data: bytes, question: str) -> list[dict[str, Any]]:
        parts = [picture_part(data, self.pictures), text_part(question)]
        return [{"role": "system", "content": prompts.SYSTEM}, {"role": "user", "content": parts}]


class VlmDetector(Detector):
    """Asks about several regions at once. What has no usable answer has no boxes: `asker.take_unanswered` tells.

    Answers of a model differ from call to call; a stored one is the same for ever, so that a repeated run is.
    """

    kind = "vlm"

    def __init__(self, config: VlmDetectorConfig, asker: Asker):
        self._config = config
        self.asker = asker
        """Knows what was spent and what has no answer, and can be closed."""
        self.batch_size = config.asking.concurrency

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`."""
        return self.detect_all([view])[0]

    def detect_all(self, views: Sequence[View]) -> list[list[Detection]]:
        """See :class:`Detector`: all views are asked about together.

        Raises EndpointError where the endpoint cannot be used, BudgetError at a limit of cost or questions, ConfigError
        for a missing key, StoreError for a cache that cannot be used; all that was answered is kept.
        """
        answers = self.asker.answers([(view.name, self._query(view)) for view in views])
        return [
            [_detection(entry, view.region) for entry in answer[LIST_NAME]] if answer else []
            for view, answer in zip(views, answers, strict=True)
        ]

    def fingerprint(self) -> str:
        """Digest of what the model is told; which model it is, the configuration says."""
        style = STYLES[self._config.coordinates]
        said = (prompts.SYSTEM, self._config.question((1000, 1000)), prompts.REPAIR, repr(style))
        return hashlib.sha1(repr(said).encode()).hexdigest()

    def _query(self, view: View) -> Query:
        x0, y0, x1, y1 = (round(side) for side in view.region)
        return self._config.query(view.image.crop((x0, y0, x1, y1)), {"image": view.name, "region": [x0, y0, x1, y1]})


def _reader(style: Coordinates, sent: Size, find: str, captions: bool) -> Callable[[str], dict[str, Any]]:
    label = " ".join(find.split())[:100]
    return partial(read_boxes, coordinates=style, size=sent, fallback_label=label, captions=captions)


def _detection(entry: dict[str, Any], region: Box) -> Detection:
    left, top, right, bottom = region
    x0, y0, x1, y1 = entry["box"]
    width, height = right - left, bottom - top
    box = (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
    return Detection(box, entry["label"], entry["score"], entry["caption"])
