"""What came out of a decomposition, and every warning: the head of a data report."""

from collections.abc import Sequence

from flowgrain.report.page import Block, Details, Numbers, Paragraph, Section, Warned
from flowgrain.report.slices_tiles import Tiles, plain
from flowgrain.report.wording import counted, number
from flowgrain.slices.advising import Advice
from flowgrain.slices.statistics import Statistics

_SHOWN = 8
_LONGEST = 600


def summary_section(statistics: Statistics, advice: Sequence[Advice], tiles: Tiles) -> Section:
    """Counts, then what wastes data and what to do about it."""
    unused = statistics.faults.total() + statistics.empty
    by_level = [(number(level.slices, 0), f"{level.name} slices") for level in statistics.levels.values()]
    blocks: list[Block] = [
        Numbers(
            (
                (number(statistics.images, 0), "images in"),
                (number(statistics.roots, 0), "roots"),
                (number(statistics.slices, 0), "slices"),
                *(by_level if len(by_level) > 1 else ()),
                (number(unused, 0), "images not used"),
            )
        )
    ]
    warned: list[Block] = [
        Warned(plain(each.title, _LONGEST), plain(each.numbers, _LONGEST), each.remedy, tiles.examples(each.examples))
        for each in advice
    ]
    blocks += warned[:_SHOWN]
    if len(warned) > _SHOWN:
        blocks.append(Details(f"{counted(len(warned) - _SHOWN, 'more warning')}", tuple(warned[_SHOWN:])))
    if not warned:
        blocks.append(
            Paragraph("No warning: levels are filled, boxes are large enough, nothing repeats, captions are there.")
        )
    lead = f"{counted(len(warned), 'warning')}, the gravest kind first." if warned else "Nothing to warn about."
    return Section("summary", "What came out", lead, tuple(blocks))
