"""One picture of a data set: a row a root, from macro to micro, with the finer crops outlined on the macro slice."""

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from flowgrain.config import printable
from flowgrain.data.images import Colour
from flowgrain.data.records import Box, SliceRecord
from flowgrain.files import atomic_write_bytes
from flowgrain.granularity import Granularity
from flowgrain.slices.pictures import SlicePictures

CONTACT_SHEET_NAME = "contact_sheet.png"
MAX_ROOTS = 24

GRANULARITY_COLOURS: dict[Granularity, Colour] = {
    "macro": (71, 85, 105),
    "meso": (217, 119, 6),
    "micro": (13, 148, 136),
}
_PAGE: Colour = (248, 250, 252)
_CARD: Colour = (255, 255, 255)
_EDGE: Colour = (226, 232, 240)
_INK: Colour = (15, 23, 42)
_FAINT: Colour = (100, 116, 139)
_THUMB = 176
"""Side of the square that a thumbnail is fitted in, pixels."""
_TEXT = 52
_GAP = 14
_TITLE = 30
_MAX_COLUMNS = 6
"""Slices shown per root; more are counted in the title."""


def update_contact_sheet(folder: Path, records: list[SliceRecord]) -> None:
    """Write the contact sheet of the first roots of a data set, unless the one there is of the same slices."""
    path = folder / CONTACT_SHEET_NAME
    buffer = io.BytesIO()
    contact_sheet(folder, records).save(buffer, "PNG", compress_level=4)
    if not path.exists() or path.read_bytes() != buffer.getvalue():
        atomic_write_bytes(path, buffer.getvalue())


def contact_sheet(folder: Path, records: list[SliceRecord], max_roots: int = MAX_ROOTS) -> Image.Image:
    """The sheet of the first ``max_roots`` roots in manifest order, up to three roots abreast."""
    roots: dict[str, list[SliceRecord]] = {}
    for record in records:
        roots.setdefault(record.root, []).append(record)
    shown = list(roots.values())[:max_roots]
    columns = max(min(len(root), _MAX_COLUMNS) for root in shown)
    abreast = max(min(9 // columns, -(-len(shown) // 4)), 1)
    row_width, row_height = columns * (_THUMB + _GAP) + _GAP, _TITLE + _THUMB + _TEXT + _GAP
    lines = -(-len(shown) // abreast)
    size = abreast * (row_width + _GAP) + _GAP, lines * (row_height + _GAP) + _GAP
    sheet, pictures = Image.new("RGB", size, _PAGE), SlicePictures(folder)
    for index, root in enumerate(shown):
        line, column = divmod(index, abreast)
        corner = _GAP + column * (row_width + _GAP), _GAP + line * (row_height + _GAP)
        _draw_root(sheet, pictures, root, corner, (row_width, row_height))
    return sheet


def _draw_root(
    sheet: Image.Image,
    pictures: SlicePictures,
    root: list[SliceRecord],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    draw.rounded_rectangle((x, y, x + size[0], y + size[1]), 8, fill=_CARD, outline=_EDGE)
    hidden = len(root) - _MAX_COLUMNS
    title = root[0].root + (f"  (+ {hidden} more)" if hidden > 0 else "")
    _text(draw, (x + _GAP, y + 9), title, 13, _INK, size[0] - 2 * _GAP)
    for index, record in enumerate(root[:_MAX_COLUMNS]):
        left = x + _GAP + index * (_THUMB + _GAP)
        _draw_slice(sheet, pictures, record, root, (left, y + _TITLE))


def _draw_slice(
    sheet: Image.Image,
    pictures: SlicePictures,
    record: SliceRecord,
    root: list[SliceRecord],
    corner: tuple[int, int],
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    picture = pictures.open(record)
    ratio = _THUMB / max(picture.size)
    size = max(round(picture.width * ratio), 1), max(round(picture.height * ratio), 1)
    thumb = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = x + (_THUMB - thumb.width) // 2, y + (_THUMB - thumb.height) // 2
    sheet.paste(thumb, (left, top))
    if record is root[0]:
        for finer in root[1:]:
            outline = on_thumbnail(finer.crop, record, ratio, (left, top), thumb.size)
            if outline:
                draw.rectangle(outline, outline=GRANULARITY_COLOURS[finer.granularity], width=2)
    draw.rectangle((left - 1, top - 1, left + thumb.width, top + thumb.height), outline=_EDGE)
    colour, label = GRANULARITY_COLOURS[record.granularity], record.slice_id.rpartition("/")[2]
    draw.rectangle((x, y + _THUMB + 6, x + 5, y + _THUMB + 19), fill=colour)
    _text(draw, (x + 11, y + _THUMB + 4), label, 13, colour, _THUMB - 11)
    line = f"{record.width}x{record.height}   x{record.scale:.2f} {record.action}"
    _text(draw, (x, y + _THUMB + 22), line, 11, _FAINT, _THUMB)
    _text(draw, (x, y + _THUMB + 37), record.caption or "(no caption)", 11, _FAINT, _THUMB)


def on_thumbnail(
    box: Box, record: SliceRecord, ratio: float, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """A box in source pixels as a rectangle on a slice's thumbnail (``ratio`` of its size); None outside of it."""
    scale = record.scale * ratio
    x0, x1 = ((side - record.crop[0]) * scale for side in (box[0], box[2]))
    y0, y1 = ((side - record.crop[1]) * scale for side in (box[1], box[3]))
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, size[0] - 1.0), min(y1, size[1] - 1.0)
    return (corner[0] + x0, corner[1] + y0, corner[0] + x1, corner[1] + y1) if x0 < x1 and y0 < y1 else None


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour, width: int) -> None:
    """One line, shortened with an ellipsis to fit a width in pixels."""
    font, text = ImageFont.load_default(size), printable(text)
    shown = text
    while shown and draw.textlength(shown if shown == text else shown + "…", font=font) > width:
        shown = shown[:-1]
    draw.text(at, shown if shown == text else shown + "…", fill=colour, font=font)
