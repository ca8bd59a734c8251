"""From what a model answers to a caption: one line, no quotes, no "The image shows", what it must say said."""

import re
from typing import Literal

from flowgrain.data.captions import with_trigger
from flowgrain.vlm.answers import AnswerError

CaptionStyle = Literal["sentence", "tags"]

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}
_LABEL = re.compile(r"^\s*(?:\*\*)?(?:caption|tags)(?:\*\*)?\s*[:：](?:\*\*)?\s*", re.IGNORECASE)
_PICTURE = r"(?:image|picture|photo(?:graph)?|illustration|drawing|close[- ]?up|crop|caption)"
_OPENING = re.compile(
    rf"^(?:(?:this|the)\s+(?:[\w-]+\s+)?{_PICTURE}\s+(?:shows|depicts|features|displays|captures|presents|is\s+of)\s+"
    rf"|(?:this|it|here)\s+is\s+an?\s+(?:image|picture)\s+(?:of|showing)\s+"
    rf"|in\s+(?:this|the)\s+{_PICTURE}\s*,\s*(?:we\s+(?:can\s+)?see\s+|there\s+(?:is|are)\s+)?"
    r"|we\s+(?:can\s+)?see\s+)",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"\bbounding box|\b(?:first|second|larger|other|reference|context|cropped)\s+(?:image|picture)\b"
    r"|\bcropped (?:from|out of|part|section|view)\b|\bpicture [12]\b",
    re.IGNORECASE,
)
_CLOSE_UP = re.compile(r"\b(?:an?\s+)?close[- ]?up\b(?!\s*-)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:A|An|The|Two|Three|Several|Some)\b")
_SLACK = 1.5
"""Share by which a caption may be longer than was asked for before it is sent back."""


def clean(text: str, style: CaptionStyle, begins: bool = True) -> str:
    """One line without markdown, quotes around it and openings such as "The image shows"; may be empty.

    ``begins``: what follows an opening that is taken off gets a capital, as nothing is put before it.
    """
    line = re.sub(r"\*\*|__|^#+\s*", "", " ".join(text.split()))
    opened = False
    before = None
    while before != line:
        before = line
        line = _unquoted(_LABEL.sub("", line).strip())
        line, openings = _OPENING.subn("", line)
        opened |= bool(openings)
    if style == "tags":
        tags = [tag.strip(" .;\"'") for tag in re.split(r"[,;\n]", line)]
        return ", ".join(dict.fromkeys(tag for tag in tags if tag))
    return line[:1].upper() + line[1:] if opened and begins else line


def check(caption: str, max_words: int) -> None:
    """Raise AnswerError, which tells the model what is wrong, for what cleaning cannot mend."""
    if not caption:
        raise AnswerError("the caption is empty")
    words = len(caption.split())
    if words > max_words * _SLACK:
        raise AnswerError(f"the caption has {words} words, at most {max_words} were asked for")
    mention = _MENTION.search(caption)
    if mention is not None:
        raise AnswerError(f"the caption mentions '{mention[0]}': say only what is visible, not how it was cut or shown")


def with_view(caption: str, view: str, style: CaptionStyle) -> str:
    """The caption with ``view`` (such as ``extreme close-up``) said, unless it says so already."""
    if not view or _plain(view) in _plain(caption):
        return caption
    if _plain(view).endswith("closeup") and _CLOSE_UP.search(caption):
        return _CLOSE_UP.sub(view, caption, count=1)
    if style == "tags":
        return f"{view}, {caption}"
    lowered = caption[:1].lower() + caption[1:] if _ARTICLE.match(caption) else caption
    return f"{view} of {lowered}"


def finished(caption: str, view: str, trigger: str, style: CaptionStyle) -> str:
    """The caption with its view and the trigger word, which every caption holds."""
    caption = with_view(caption, view, style)
    return with_trigger(caption, trigger) if trigger else caption


def _plain(text: str) -> str:
    return re.sub(r"[\s-]+", "", text).lower()


def _unquoted(line: str) -> str:
    if len(line) > 1 and _QUOTES.get(line[0]) == line[-1] and line[0] not in line[1:-1]:
        return line[1:-1].strip()
    return line
