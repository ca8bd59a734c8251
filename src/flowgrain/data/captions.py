"""Captions of images and of their slices.

The caption of ``fox.png`` is ``fox.txt`` or ``fox.caption`` (kohya's name for it) beside it. A slice takes the first
of: its own caption (written by hand, in ``fox.micro.txt`` or with its box), its level's template over the caption of
the whole image, that caption itself. So a close-up is called a close-up, and training does not teach that every
picture of the subject is one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from string import Formatter
from typing import Literal

from flowgrain.data.collections import Folder, Item
from flowgrain.errors import DataError
from flowgrain.rng import numpy_generator

CaptionSource = Literal["sidecar", "template", "root", "none"]
CaptionExtension = Literal[".txt", ".caption"]
CAPTION_EXTENSIONS: tuple[CaptionExtension, ...] = (".txt", ".caption")
PLACEHOLDERS = ("caption", "trigger", "label")


@dataclass(frozen=True)
class SliceCaption:
    """A slice's caption and where it comes from."""

    text: str
    source: CaptionSource


@dataclass(frozen=True)
class TagVariation:
    """What is drawn anew of a caption that is a list of tags."""

    shuffle: bool
    dropout: float
    """Probability in [0, 1) that a tag is left out."""
    separator: str = ","


class CaptionConflict(DataError):
    """A picture has two caption files that say different things."""


def read_caption(image_path: Path, extension: CaptionExtension | None = None) -> str | None:
    """:func:`caption_beside` of a picture in a folder."""
    return caption_beside(Item(Folder(image_path.parent), image_path.name), extension)


def caption_beside(item: Item, extension: CaptionExtension | None = None) -> str | None:
    """Caption in the ``.txt`` or ``.caption`` of the same stem, or in that of ``extension`` alone; None without one.

    Runs of white space become one space and a byte-order mark is dropped. An empty file counts only where it is the
    only one. Raises :class:`DataError` with the byte offset where a file is not UTF-8, :class:`CaptionConflict` where
    both are there and differ.
    """
    if extension is not None:
        return _text_beside(item, extension)
    texts = [text for ending in CAPTION_EXTENSIONS if (text := _text_beside(item, ending)) is not None]
    different = sorted({text for text in texts if text})
    if len(different) > 1:
        raise CaptionConflict(
            f"{item.place('.txt')} and {PurePath(item.place('.caption')).name} hold different captions of "
            f"{PurePath(item.name).name}; remove one, or choose with data.caption_extension"
        )
    return different[0] if different else "" if texts else None


def decorate(caption: str, prefix: str, suffix: str) -> str:
    """Prefix, caption and suffix with one space between them, none before a comma, semicolon, colon or full stop."""
    if not (prefix or suffix):
        return caption
    text = ""
    for part in (prefix.strip(), caption, suffix.strip()):
        text += part if not text or part[:1] in (",", ";", ":", ".", "") else f" {part}"
    return text


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with ``trigger`` put before it, unless it occurs there as a word."""
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def vary_tags(caption: str, variation: TagVariation, keep: int, *identity: int | str) -> str:
    """The caption with tags left out and in another order, drawn from ``identity`` alone; tags are joined by ', '.

    The first ``keep`` tags stay in front and are never left out: kohya's keep_tokens, shuffle_caption and
    caption_tag_dropout_rate. Empty tags (two separators in a row) are no tags.
    """
    tags = [tag for part in caption.split(variation.separator) if (tag := part.strip())]
    draws = numpy_generator(*identity)
    kept, rest = tags[:keep], tags[keep:]
    if variation.dropout:
        rest = [tag for tag, u in zip(rest, draws.random(len(rest)), strict=True) if u >= variation.dropout]
    if variation.shuffle:
        rest = [rest[index] for index in draws.permutation(len(rest))]
    return ", ".join(kept + rest)


def slice_caption_beside(item: Item, names: Sequence[str]) -> str | None:
    """Caption written by hand for a slice: the first ``<stem>.<name>.txt`` that exists, for example ``fox.micro.txt``.

    Raises :class:`DataError` as :func:`read_caption` does.
    """
    for name in names:
        text = _text_beside(item, f".{name}.txt")
        if text is not None:
            return text
    return None


def check_template(template: str) -> str:
    """The template itself; raises ValueError where it is malformed or names an unknown placeholder."""
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ValueError(f"caption template '{template}': {error}; write literal braces as {{{{ and }}}}") from None
    unknown = sorted(fields - set(PLACEHOLDERS))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ValueError(f"caption template '{template}': unknown placeholder {{{unknown[0]}}}; known: {known}")
    return template


def slice_caption(own: str | None, template: str, root: str | None, trigger: str, label: str) -> SliceCaption:
    """Resolve a slice's caption: its own, else its level's template, else the root's caption.

    The trigger word is appended to the root's caption unless it already occurs there or the template places it.
    A template that asks for a caption is not used where the root has none and there is no trigger word.
    """
    if own:
        return SliceCaption(own, "sidecar")
    base = root or ""
    if trigger and "{trigger}" not in template and trigger not in base:
        base = f"{base}, {trigger}" if base else trigger
    if template == "{caption}" or (not base and "{caption}" in template):
        return SliceCaption(base, "root") if base else SliceCaption("", "none")
    text = template.format(caption=base, trigger=trigger, label=label)
    return SliceCaption(" ".join(text.split()), "template")


def _text_beside(item: Item, suffix: str) -> str | None:
    data = item.beside(suffix)
    if data is None:
        return None
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        place = item.place(suffix)
        raise DataError(f"{place}: caption is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
