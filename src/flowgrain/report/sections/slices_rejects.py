"""What was not used, and why."""

from collections import Counter

from flowgrain.report.page import Block, Details, GridRow, Paragraph, PictureStrips, Section, Table
from flowgrain.report.slices_tiles import ABREAST, Tiles, plain
from flowgrain.report.wording import counted, number
from flowgrain.slices.reject_codes import meaning_of
from flowgrain.slices.statistics import MOST_LISTED, Statistics

_OPEN = 20
"""Images that are listed without a click."""
_REASON = 300


def rejects_section(statistics: Statistics, tiles: Tiles) -> Section:
    """Codes with their meanings, every image that gave nothing, and examples of refused boxes."""
    boxes = sum(level.rejects.total() for level in statistics.levels.values())
    images = statistics.faults.total() + statistics.empty
    blocks: list[Block] = []
    if boxes or statistics.faults:
        blocks.append(_codes(statistics))
    if images:
        blocks.append(_images(statistics, images))
    examples = _examples(statistics, tiles)
    if examples is not None:
        blocks.append(examples)
    if not blocks:
        blocks.append(Paragraph("Every image gave a slice and no box was refused."))
    return Section(
        "rejects",
        "Not used",
        f"{counted(images, 'image')} and {counted(boxes, 'box', 'boxes')} became no slice; rejects.jsonl in the data "
        "set holds all of them with their numbers.",
        tuple(blocks),
    )


def _codes(statistics: Statistics) -> Table:
    levels = list(statistics.levels.values())
    total: Counter[str] = Counter(statistics.faults)
    for level in levels:
        total.update(level.rejects)
    rows = []
    for code, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])):
        meaning = meaning_of(code)
        by_level = [f"{level.name} {number(level.rejects[code], 0)}" for level in levels if level.rejects[code]]
        if statistics.faults[code]:
            by_level.insert(0, f"images {number(statistics.faults[code], 0)}")
        rows.append((plain(code), ", ".join(by_level), meaning.meaning, meaning.remedy))
    return Table(
        "Reasons.",
        "Boxes by level and images by the code that rejects.jsonl gives.",
        ("code", "how many", "what it means", "what to do"),
        tuple(rows),
    )


def _images(statistics: Statistics, images: int) -> Block:
    rest = images - len(statistics.unused)
    table = Table(
        "Images that gave no slice.",
        f"The first {MOST_LISTED}; {counted(rest, 'more is', 'more are')} in rejects.jsonl." if rest > 0 else "All.",
        ("image", "code", "reason"),
        tuple((plain(each.image), plain(each.code), plain(each.reason, _REASON)) for each in statistics.unused),
    )
    if len(statistics.unused) <= _OPEN:
        return table
    return Details(f"{counted(images, 'image')} that gave no slice", (table,))


def _examples(statistics: Statistics, tiles: Tiles) -> PictureStrips | None:
    rows = []
    for level in statistics.levels.values():
        for code in sorted(level.rejects):
            shown = tiles.examples(level.examples_of(f"reject {code}")[:ABREAST])
            if shown:
                label = f"{level.name}: {code}, {counted(level.rejects[code], 'box', 'boxes')}"
                rows.append(GridRow(plain(label), shown))
    if not rows:
        return None
    return PictureStrips(
        "Refused boxes.",
        "Examples of each reason, in red on the coarsest slice of their root; what lies outside of that slice is not "
        "seen.",
        tuple(rows),
    )
