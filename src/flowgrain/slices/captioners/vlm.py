"""Captions by a vision-language model behind any OpenAI-compatible endpoint."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from flowgrain.slices.captioners import vlm_prompts as prompts
from flowgrain.slices.captioners.base import Captioner, CaptionerConfig, CaptionerContext, CaptionRequest
from flowgrain.slices.captioners.cleaning import CaptionStyle, check, clean, finished
from flowgrain.vlm.answers import AnswerError, Query, read_object
from flowgrain.vlm.asker import Asker, AskingForecast, forecast, question_key, required_endpoint
from flowgrain.vlm.images import encode_picture, picture_part, picture_tokens, text_part, text_tokens
from flowgrain.vlm.settings import AskingSettings, VlmConfig, shared_with

_KIND = "caption"
_SCHEMA = {
    "name": _KIND,
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {_KIND: {"type": "string"}},
        "required": [_KIND],
        "additionalProperties": False,
    },
}
_LONGEST_KNOWN = 2000
"""Characters of the whole picture's caption that are passed on."""
_SAMPLE = "x" * 200
"""Stands for a caption of usual length in a forecast."""
_BLANK = Image.new("RGB", (1, 1))

Size = tuple[int, int]


class VlmCaptionsConfig(CaptionerConfig, AskingSettings):
    """What is captioned, how captions read, and whom to ask."""

    kind: Literal["vlm"] = "vlm"
    style: CaptionStyle = Field(default="sentence", description="sentence: plain text; tags: words between commas")
    max_words: int = Field(default=60, ge=3, le=500, description="longest caption that is asked for, in words")
    instructions: str = Field(
        default="", max_length=4000, description="said to the model in addition, for example what to pay attention to"
    )
    views: dict[str, str] = Field(
        default_factory=dict,
        description="what a slice of a level is called, for example head: head shot; by default close-up (meso) and "
        "extreme close-up (micro); empty text: nothing",
    )
    context_side: int = Field(
        default=512,
        ge=0,
        le=8192,
        description="longer side at which the whole picture is sent along with a slice; 0: it is not",
    )
    trigger: str | None = Field(
        default=None, description="words that every caption holds; null: the data set's trigger, empty text: none"
    )

    def with_defaults(self, shared: VlmConfig | None) -> "VlmCaptionsConfig":
        """With what this says nothing about taken from the data set's vlm settings."""
        return self.model_copy(update=shared_with(self, shared))

    def build(self, context: CaptionerContext) -> "VlmCaptioner":
        """See :class:`CaptionerConfig`. Raises ConfigError where no model is named; asks and opens nothing yet."""
        required_endpoint(self, "captioner: ")
        trigger = context.trigger if self.trigger is None else self.trigger
        return VlmCaptioner(self, trigger, Asker(self, _KIND, context.cache))

    def forecast(self, roots: Iterable[Size], slices: Iterable[tuple[Size, Size]]) -> AskingForecast:
        """What whole pictures and slices of these (width, height) would take; nothing is sent.

        ``slices``: pairs of the slice's size and that of the picture it is cut from.
        """
        whole = CaptionRequest("", _BLANK)
        part = CaptionRequest("", _BLANK, _BLANK, _SAMPLE, "level", "label", "micro")
        tokens = [self._tokens(whole, "trigger", size, None) for size in roots if self.roots]
        tokens += [self._tokens(part, "trigger", size, root) for size, root in slices if self.slices]
        return forecast(len(tokens), sum(tokens), self.budget)

    def view(self, request: CaptionRequest) -> str:
        """What the picture of a request is called; empty for a whole one."""
        if request.root is None:
            return ""
        return self.views.get(request.level, prompts.VIEWS[request.granularity])

    def question(self, request: CaptionRequest, trigger: str) -> str:
        """What the model is told about a request."""
        view, known = self.view(request), " ".join((request.root_caption or "").split())[:_LONGEST_KNOWN]
        trigger = prompts.TRIGGER.format(trigger=trigger) if trigger else ""
        if request.root is None:
            caption = prompts.KNOWN.format(what="This", caption=known) if known else ""
            asked = prompts.WHOLE.format(known=caption, trigger=trigger)
        else:
            article = "an" if view[:1].lower() in "aeiou" else "a"
            rule = prompts.VIEW_RULE_TAGS if self.style == "tags" else prompts.VIEW_RULE
            asked = prompts.SLICE.format(
                first="The first picture is the one" if self.context_side else "This is the picture",
                view_of=f"{article} {view} " if view else "a picture ",
                label=f", found as '{request.label}'" if request.label else "",
                context=prompts.CONTEXT if self.context_side else "",
                view_rule=rule.format(article=article, view=view) if view else "",
                known=prompts.KNOWN.format(what="The larger", caption=known) if known else "",
                trigger=trigger,
            )
        sentences = "one or two sentences" if self.max_words >= 25 else "one sentence"
        form = (
            prompts.TAGS.format(words=self.max_words)
            if self.style == "tags"
            else prompts.SENTENCE.format(sentences=sentences, words=self.max_words)
        )
        return "\n\n".join(part for part in (asked, form, self.instructions.strip(), prompts.ANSWER) if part)

    def query(self, request: CaptionRequest, trigger: str) -> Query:
        """The question about a request."""
        question = self.question(request, trigger)
        pictures = [encode_picture(request.picture, self.pictures)]
        root_size = None
        if request.root is not None and self.context_side:
            root_size = request.root.size
            small = self.pictures.model_copy(update={"max_side": self.context_side})
            pictures.append(encode_picture(request.root, small))
        return Query(
            key=question_key(_KIND, (prompts.SYSTEM, question, prompts.REPAIR), pictures, self),
            about={"image": request.name, "level": request.level, "label": request.label},
            estimated_in=self._tokens(request, trigger, request.picture.size, root_size),
            messages=partial(self._messages, pictures, question),
            schema=_SCHEMA,
            read=self._read,
            repair=lambda problem: prompts.REPAIR.format(problem=problem),
        )

    def finish(self, request: CaptionRequest, text: str, trigger: str) -> str:
        """The caption in what the model answered."""
        view = self.view(request)
        return finished(clean(text, self.style, begins=not view), view, trigger, self.style)

    def _read(self, text: str) -> dict[str, Any]:
        value = read_object(text, {_KIND: "the caption, a text"})[_KIND]
        if not isinstance(value, str):
            raise AnswerError(f'"{_KIND}" is no text')
        check(clean(value, self.style), self.max_words)
        return {_KIND: value}  # cleaned when it is used, so that better cleaning costs no new answers

    def _tokens(self, request: CaptionRequest, trigger: str, size: Size, root: Size | None) -> int:
        tokens = text_tokens(prompts.SYSTEM + self.question(request, trigger))
        tokens += picture_tokens(size, self.pictures.max_side)
        if root is not None and self.context_side:
            tokens += picture_tokens(root, self.context_side)
        return tokens

    def _messages(self, pictures: Sequence[bytes], question: str) -> list[dict[str, Any]]:
        parts = [*(picture_part(data, self.pictures) for data in pictures), text_part(question)]
        return [{"role": "system", "content": prompts.SYSTEM}, {"role": "user", "content": parts}]


class VlmCaptioner(Captioner):
    """Asks about several pictures at once. What has no usable answer has no caption: `asker.take_unanswered` tells."""

    def __init__(self, config: VlmCaptionsConfig, trigger: str, asker: Asker):
        self._config, self._trigger = config, trigger
        self.asker = asker
        """Knows what was spent and what has no answer, and can be closed."""
        self.roots, self.slices, self.when = config.roots, config.slices, config.when
        self.batch_size = config.asking.concurrency

    def caption_all(self, requests: Sequence[CaptionRequest]) -> list[str | None]:
        """See :class:`Captioner`: all are asked about together.

        Raises EndpointError where the endpoint cannot be used, BudgetError at a limit of cost or questions, ConfigError
        for a missing key, StoreError for a cache that cannot be used; all that was answered is kept.
        """
        queries = [(request.name, self._config.query(request, self._trigger)) for request in requests]
        return [
            self._config.finish(request, answer[_KIND], self._trigger) if answer else None
            for request, answer in zip(requests, self.asker.answers(queries), strict=True)
        ]

    def fingerprint(self) -> str:
        """Digest of what the model is told; which model it is, the configuration says."""
        part = CaptionRequest("", _BLANK, _BLANK, "caption", "level", "label", "micro")
        said = (prompts.SYSTEM, prompts.REPAIR, self._trigger, prompts.VIEWS)
        asked = (self._config.question(CaptionRequest("", _BLANK), self._trigger), self._config.question(part, "x"))
        return hashlib.sha1(repr((said, asked)).encode()).hexdigest()
