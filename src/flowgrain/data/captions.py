"""Captions of images and of their slices.

The caption of ``fox.png`` is ``fox.txt`` beside it. A slice takes the first of: its own caption (written by hand, in
``fox.micro.txt`` or with its box), its level's template over the caption of the whole image, that caption itself. So
a close-up is called a close-up, and training does not teach that every picture of the subject is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal

from flowgrain.errors import DataError

CaptionSource = Literal["sidecar", "template", "root", "none"]
PLACEHOLDERS = ("caption", "trigger", "label")


@dataclass(frozen=True)
class SliceCaption:
    """A slice's caption and where it comes from."""

    text: str
    source: CaptionSource


def read_caption(image_path: Path) -> str | None:
    """Caption in the ``.txt`` of the same stem, with runs of white space made one space; None without such a file.

    A byte-order mark is dropped. Raises :class:`DataError` with the byte offset where the file is not UTF-8.
    """
    return _read_text(image_path.with_suffix(".txt"))


def read_slice_caption(image_path: Path, names: Sequence[str]) -> str | None:
    """Caption written by hand for a slice: the first ``<stem>.<name>.txt`` that exists, for example ``fox.micro.txt``.

    Raises :class:`DataError` as :func:`read_caption` does.
    """
    for name in names:
        text = _read_text(image_path.with_name(f"{image_path.stem}.{name}.txt"))
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


def _read_text(path: Path) -> str | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: caption cannot be read ({error.strerror})") from None
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: caption is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
