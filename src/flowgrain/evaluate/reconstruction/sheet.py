"""The sheet that shows numbers as pictures: the worst and the best reconstructions, at the pixels that differ most."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from flowgrain.data.images import Colour

WINDOW = 256
"""Side of the window that is shown of larger pictures, in their own pixels."""
_GAP, _HEAD, _TEXT = 14, 34, 40
_PAGE: Colour = (248, 250, 252)
_INK: Colour = (15, 23, 42)
_FAINT: Colour = (100, 116, 139)
_MARK: Colour = (220, 38, 38)


@dataclass(frozen=True)
class Example:
    """One line of the sheet."""

    title: str
    original: Image.Image
    reconstructions: Sequence[Image.Image]
    """One for each column, all of the original's size."""
    captions: Sequence[str]
    """Below each reconstruction, for example its values: up to two lines."""


def reconstruction_sheet(
    columns: Sequence[str], worst: Sequence[Example], best: Sequence[Example], ranked_by: str
) -> Image.Image:
    """Whole originals with a marked window, then the window of the original and of every reconstruction."""
    heads = ["picture", "original", *columns]
    lines = [*((f"worst by {ranked_by}", example) for example in worst)]
    lines += [(f"best by {ranked_by}", example) for example in best]
    width = _GAP + len(heads) * (WINDOW + _GAP)
    sheet = Image.new("RGB", (width, _HEAD + len(lines) * (WINDOW + _TEXT) + _GAP), _PAGE)
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        _write(draw, (_GAP + column * (WINDOW + _GAP), 9), head, 14, _INK)
    for line, (note, example) in enumerate(lines):
        _draw_example(sheet, example, note, _HEAD + line * (WINDOW + _TEXT))
    return sheet


def worst_window(
    original: Image.Image, reconstructions: Sequence[Image.Image], side: int = WINDOW
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the window with the largest absolute error over all reconstructions."""
    reference = np.asarray(original, dtype=np.float32)
    error = sum(np.abs(np.asarray(picture, dtype=np.float32) - reference).sum(axis=2) for picture in reconstructions)
    width, height = min(side, original.width), min(side, original.height)
    sums = _window_sums(np.asarray(error, dtype=np.float64), height, width)
    top, left = (int(place) for place in np.unravel_index(np.argmax(sums), sums.shape))
    return left, top, left + width, top + height


def _window_sums(values: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "i j"]:
    total = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]


def _draw_example(sheet: Image.Image, example: Example, note: str, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    box = worst_window(example.original, example.reconstructions)
    whole, ratio = _fitted(example.original)
    sheet.paste(whole, (_GAP, top))
    if example.original.width > WINDOW or example.original.height > WINDOW:
        corners = [(_GAP + box[0] * ratio, top + box[1] * ratio), (_GAP + box[2] * ratio, top + box[3] * ratio)]
        draw.rectangle(corners, outline=_MARK, width=2)
    captions = [f"{example.title}\n{note}", "", *example.captions]
    for column, picture in enumerate([example.original, *example.reconstructions], start=1):
        sheet.paste(picture.crop(box), (_GAP + column * (WINDOW + _GAP), top))
    for column, caption in enumerate(captions):
        for line, text in enumerate(caption.split("\n")):
            place = _GAP + column * (WINDOW + _GAP), top + WINDOW + 3 + 16 * line
            _write(draw, place, text, 12, _FAINT if line else _INK)


def _fitted(picture: Image.Image) -> tuple[Image.Image, float]:
    """The picture scaled down into the window, and the factor."""
    ratio = min(1.0, WINDOW / max(picture.size))
    size = tuple(max(round(side * ratio), 1) for side in picture.size)
    return (picture if ratio == 1 else picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)), ratio


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour) -> None:
    """One line, shortened in its middle to the width of a column: the end of a path tells more than its start."""
    font = ImageFont.load_default(size)
    shown, cut = text, 0
    while draw.textlength(shown, font=font) > WINDOW:
        cut += 1
        half = (len(text) - cut) // 2
        shown = f"{text[:half]}…{text[len(text) - half :]}"
    draw.text(at, shown, fill=colour, font=font)
