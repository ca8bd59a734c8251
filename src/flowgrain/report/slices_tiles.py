"""Thumbnails of slices for a page, with boxes drawn on them; and foreign text made fit to be shown."""

import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from flowgrain.data.images import Colour
from flowgrain.data.records import Box, SliceRecord
from flowgrain.errors import DataError
from flowgrain.report.pictures import Tile, data_uri
from flowgrain.slices.contact_sheet import GRANULARITY_COLOURS, on_thumbnail
from flowgrain.slices.pictures import SlicePictures
from flowgrain.slices.statistics import Example

SIDE = 208
"""Longest side of a thumbnail in pixels: twice what it takes of the page."""
ABREAST = 3
"""Thumbnails that fit side by side in a strip."""
_REJECTED: Colour = (225, 29, 72)
_LINE = 4
_LONGEST = 180
_BREAKS = re.compile("[\\s\u2028\u2029]+", re.ASCII)
_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
"""Marks that turn the direction of what follows."""


@dataclass(frozen=True)
class Outline:
    """A box in source pixels and the colour to draw it in."""

    box: Box
    colour: Colour


class Tiles:
    """Makes thumbnails of a data set's slices; counts those that cannot be read."""

    def __init__(self, folder: Path):
        self._pictures = SlicePictures(folder)
        self.shown = 0
        self.missing: list[str] = []

    def of(self, record: SliceRecord, caption: str = "", outlines: Sequence[Outline] = ()) -> Tile | None:
        """The thumbnail of a slice; None where its file is missing or damaged."""
        self.shown += 1
        try:
            image = self._pictures.open(record)
        except DataError:
            self.missing.append(record.path)
            return None
        ratio = min(SIDE / max(image.size), 1.0)
        thumb = image.resize(
            (max(round(image.width * ratio), 1), max(round(image.height * ratio), 1)), Image.Resampling.LANCZOS
        )
        draw = ImageDraw.Draw(thumb)
        for outline in outlines:
            place = on_thumbnail(outline.box, record, ratio, (0, 0), thumb.size)
            if place:
                draw.rectangle(place, outline=(255, 255, 255), width=_LINE + 2)
                draw.rectangle(_inset(place), outline=outline.colour, width=_LINE)
        buffer = io.BytesIO()
        thumb.save(buffer, "WEBP", quality=85, method=4)
        name = plain(f"{record.level} slice of {record.image}")
        return Tile(data_uri("image/webp", buffer.getvalue()), name, thumb.width, thumb.height, plain(caption))

    def outlined(self, record: SliceRecord, finer: Sequence[SliceRecord]) -> Tile | None:
        """A slice with the crops of finer ones on it, in the colours of their granularities."""
        return self.of(record, "", [Outline(other.crop, GRANULARITY_COLOURS[other.granularity]) for other in finer])

    def example(self, example: Example) -> Tile | None:
        """An example with its note; the box of a rejected one in red."""
        if example.record is None:
            return None
        name = f"{example.view.image} {example.record.slice_id.rpartition('/')[2]}"
        if example.box is not None:
            name = example.view.image  # the slice only shows where the box is
        caption = f"{plain(name, 60)}: {example.note}" if example.note else plain(name, 60)
        outlines = [] if example.box is None else [Outline(example.box, _REJECTED)]
        return self.of(example.record, caption, outlines)

    def examples(self, examples: Sequence[Example]) -> tuple[Tile, ...]:
        """Those that have a picture."""
        return tuple(tile for example in examples if (tile := self.example(example)) is not None)


def plain(text: str, longest: int = _LONGEST) -> str:
    """Foreign text on one line, cut where it is long, without control characters and marks that turn its direction."""
    text = _BREAKS.sub(" ", text).strip()
    kept = "".join(
        "\ufffd" if letter in _CONTROLS or unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in text
    )
    return kept if len(kept) <= longest else f"{kept[: longest - 1]}…"


def _inset(box: Box) -> Box:
    """One pixel smaller on each side where it is large enough for that."""
    x0, y0, x1, y1 = box
    return (x0 + 1, y0 + 1, x1 - 1, y1 - 1) if x1 - x0 > 3 and y1 - y0 > 3 else box
