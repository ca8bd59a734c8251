"""A question as it is sent: the rendered prompt with the pictures where its markers stand, without their names."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flowgrain.evaluate.judge.modes import MODES
from flowgrain.evaluate.judge.pictures import PictureBook
from flowgrain.evaluate.judge.plan import Question
from flowgrain.evaluate.judge.prompts import PICTURES, REFERENCES
from flowgrain.vlm.answers import Query
from flowgrain.vlm.client import Message
from flowgrain.vlm.images import text_part, text_tokens

_MARKERS = re.compile(f"([{PICTURES}{REFERENCES}])")


def make_query(question: Question, book: PictureBook) -> Query:
    """The question with what asking needs: forecast, messages, schema and reader of the answer."""
    mode, prompts = MODES[question.mode], question.prompts
    labels, form = question.labels, prompts.question.answer
    rendered = prompts.question.render(question.values())
    tokens = text_tokens(prompts.system + rendered)
    if REFERENCES in rendered:
        tokens += sum(book.facts(path).tokens for path in question.references)
    tokens += sum(book.facts(path).tokens for path in question.pictures)
    schema = {"name": question.mode, "strict": True, "schema": mode.schema(labels)} if form == "json" else None
    return Query(
        key=question.key,
        about=question.about(),
        estimated_in=tokens,
        messages=partial(build_messages, question, rendered, book),
        schema=schema,
        read=partial(mode.read, labels=labels, form=form),
        repair=prompts.repaired,
    )


def build_messages(question: Question, rendered: str, book: PictureBook) -> list[Message]:
    """System and user message; raises DataError for a picture that cannot be read any more."""
    parts: list[dict[str, object]] = []
    for piece in _MARKERS.split(rendered):
        if piece == PICTURES:
            parts += _shown(question.pictures, [MODES[question.mode].caption(label) for label in question.labels], book)
        elif piece == REFERENCES:
            captions = [f"Reference {number}:" for number in range(1, len(question.references) + 1)]
            parts += _shown(question.references, captions, book)
        elif piece.strip():
            parts.append(text_part(piece.strip()))
    system = question.prompts.system
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": parts}]


def _shown(paths: Sequence[Path], captions: Sequence[str], book: PictureBook) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = []
    for path, caption in zip(paths, captions, strict=True):
        parts += [*([text_part(caption)] if caption else []), book.part(path)]
    return parts
