"""A source image with every slice's box on it: which part of it became what, found by what, inside what.

Boxes are solid, the crop that the slice file shows is thin, a line leads from a box to the box it is part of, and
rejected boxes are dashed. Images are brought to one size first, small ones enlarged by whole pixels, so that lines
and letters are the same on all of them.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from flowgrain.data.images import Colour
from flowgrain.data.records import Box, SliceRecord
from flowgrain.slices.contact_sheet import GRANULARITY_COLOURS
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.framing import area, centre, intersection

MARGIN = 10
"""Pixels around the image, so that a box on its edge is seen whole."""
_PAPER: Colour = (248, 250, 252)
_INK: Colour = (15, 23, 42)
_REJECTED: Colour = (225, 29, 72)
_HALO: Colour = (255, 255, 255)
_GAP = 12


@dataclass(frozen=True)
class Style:
    """Sizes of a picture of a given side, in pixels."""

    letters: int
    box: int
    """Width of the line around a box and of that to its parent; that around a crop is half as wide."""

    @classmethod
    def of(cls, side: int) -> "Style":
        """Letters a 70th of the side, but never too small to read."""
        return cls(max(round(side / 70), 11), max(round(side / 340), 2))

    @property
    def thin(self) -> int:
        """Width of the line around a crop."""
        return max(self.box // 2, 1)

    @property
    def band(self) -> int:
        """Height of the caption above the image."""
        return round(1.9 * self.letters)


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a source image lie on its picture."""

    scale: float
    left: int
    top: int

    def rectangle(self, box: Box) -> Box:
        """A box in source pixels as one on the picture."""
        return (*self.point((box[0], box[1])), *self.point((box[2], box[3])))

    def point(self, at: tuple[float, float]) -> tuple[float, float]:
        """A point in source pixels as one on the picture."""
        return at[0] * self.scale + self.left, at[1] * self.scale + self.top


def placement(size: tuple[int, int], side: int) -> Placement:
    """Where an image of ``size`` lies on a picture whose longer side it fills with ``side`` pixels."""
    return Placement(side / max(size), MARGIN, MARGIN + Style.of(side).band)


def draw_overlay(
    image: Image.Image, caption: str, records: Sequence[SliceRecord], rejects: Sequence[RejectRecord], side: int
) -> Image.Image:
    """An upright RGB source image with the boxes of its slices, its longer side ``side`` pixels."""
    style, place = Style.of(side), placement(image.size, side)
    size = max(round(image.width * place.scale), 1), max(round(image.height * place.scale), 1)
    how = Image.Resampling.NEAREST if place.scale >= 2 else Image.Resampling.LANCZOS
    picture = Image.new("RGB", (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN + style.band), _PAPER)
    picture.paste(image.resize(size, how), (place.left, place.top))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(style.letters)
    shown = shortened(caption, font, size[0])
    draw.text((MARGIN, MARGIN + (style.band - 1.6 * style.letters) / 2), shown, fill=_INK, font=font)
    boxes = {record.slice_id: record.box for record in records}
    for record in records:
        _draw_parent(draw, place, record, boxes, style)
    labels: list[tuple[Box, str, Colour]] = []
    for reject in rejects:
        if reject.box is not None:
            rectangle = place.rectangle(reject.box)
            _dashed(draw, rectangle, _REJECTED, style)
            labels.append((rectangle, reject_label(reject), _REJECTED))
    for record in records:
        colour, rectangle = GRANULARITY_COLOURS[record.granularity], place.rectangle(record.box)
        draw.rectangle(place.rectangle(record.crop), outline=colour, width=style.thin)
        draw.rectangle(rectangle, outline=colour, width=style.box)
        labels.append((rectangle, slice_label(record), colour))
    _draw_labels(draw, picture.size, labels, font, place.top)
    return picture


def slice_label(record: SliceRecord) -> str:
    """Its name in its image, what found it as what, and with which score: 'micro0 boxes head 0.91'."""
    parts = [record.slice_id.removeprefix(record.root).lstrip("/")]
    region = record.root.rpartition("/")[2]
    if region[:1] == "p" and region[1:].isdigit():
        parts = [f"{region}/{parts[0]}"]
    if record.detector == "whole_image":
        return f"{parts[0]} whole image"
    parts.append(record.detector)
    if record.label:
        parts.append(record.label)
    return " ".join([*parts, f"{record.score:.2f}"])


def reject_label(reject: RejectRecord) -> str:
    """Its level, why it was rejected, and what was found with which score: 'micro iou boxes head 0.42'."""
    score = None if reject.score is None else f"{reject.score:.2f}"
    return " ".join(part for part in (reject.level, reject.code, reject.detector, reject.label, score) if part)


def sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """One page of pictures, ``columns`` abreast, each row as high as its highest picture."""
    lines = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in line) for line in lines]
    width = max(sum(picture.width + _GAP for picture in line) for line in lines)
    page = Image.new("RGB", (width + _GAP, sum(heights) + _GAP * (len(lines) + 1)), _PAPER)
    y = _GAP
    for line, height in zip(lines, heights, strict=True):
        x = _GAP
        for picture in line:
            page.paste(picture, (x, y))
            x += picture.width + _GAP
        y += height + _GAP
    return page


def shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """One line of text that fits a width, its end replaced by an ellipsis where it must be."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    letters = bisect.bisect(range(len(text)), width, key=lambda count: font.getlength(text[:count] + "…")) - 1
    return text[:letters] + "…" if letters > 0 else ""


def _draw_parent(
    draw: ImageDraw.ImageDraw, place: Placement, record: SliceRecord, boxes: dict[str, Box], style: Style
) -> None:
    """A line from the middle of a box to that of its parent, with a dot at the child's end."""
    if record.parent is None or record.parent not in boxes:
        return
    x, y = place.point(centre(record.box))
    colour = GRANULARITY_COLOURS[record.granularity]
    line = [(x, y), place.point(centre(boxes[record.parent]))]
    draw.line(line, fill=_HALO, width=style.box + 2)
    draw.line(line, fill=colour, width=style.box)
    dot = 1.5 * style.box
    draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colour, outline=_HALO)


def _dashed(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, style: Style) -> None:
    dash = 4 * style.box
    x0, y0, x1, y1 = box
    for start in range(0, max(math.ceil(x1 - x0), 1), 2 * dash):
        ends = x0 + start, min(x0 + start + dash, x1)
        for y in (y0, y1):
            draw.line([(ends[0], y), (ends[1], y)], fill=colour, width=style.box)
    for start in range(0, max(math.ceil(y1 - y0), 1), 2 * dash):
        ends = y0 + start, min(y0 + start + dash, y1)
        for x in (x0, x1):
            draw.line([(x, ends[0]), (x, ends[1])], fill=colour, width=style.box)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    labels: Sequence[tuple[Box, str, Colour]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    top: int,
) -> None:
    """Each label at a corner of its box, where none of the earlier ones lies; small boxes choose first."""
    taken: list[Box] = []
    height = float(font.getbbox("Ag")[3] + 4)
    room = (0.0, float(top), float(size[0]), float(size[1]))
    for box, text, colour in sorted(labels, key=lambda label: area(label[0])):
        shown = shortened(text, font, size[0] - 8)
        chip = _free_place(box, (font.getlength(shown) + 8, height), room, taken)
        taken.append(chip)
        draw.rectangle(chip, fill=colour)
        draw.text((chip[0] + 4, chip[1] + 1), shown, fill=_HALO, font=font)


def _free_place(box: Box, size: tuple[float, float], room: Box, taken: Sequence[Box]) -> Box:
    """The first place by a corner of ``box``, above it, below it or in it, that lies in ``room`` and on nothing.

    Where each is taken, the one that covers least of the others.
    """
    width, height = size
    candidates: list[Box] = []
    for y in (box[1] - height, box[3], box[1], box[3] - height, box[1] + height, box[3] - 2 * height):
        for x in (box[0], box[2] - width):
            left = min(max(x, room[0]), room[2] - width)
            upper = min(max(y, room[1]), room[3] - height)
            candidates.append((left, upper, left + width, upper + height))
    return min(candidates, key=lambda chip: sum(intersection(chip, other) for other in taken))
