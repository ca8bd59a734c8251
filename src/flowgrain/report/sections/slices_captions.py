"""What the slices are said to show."""

from flowgrain.report.page import Block, GridRow, Paragraph, PictureStrips, Section, Table
from flowgrain.report.slices_tiles import ABREAST, Tiles, plain
from flowgrain.report.wording import NONE, counted, number
from flowgrain.slices.statistics import LevelStatistics, Statistics

_MOST_COMMON = 5
_SOURCES = {
    "sidecar": "its own file or its box",
    "template": "the level's template",
    "root": "the image's caption",
    "model": "written by a model",
    "none": "none",
}


def captions_section(statistics: Statistics, tiles: Tiles) -> Section:
    """Where captions come from, how long they are, which are common, which are missing."""
    levels = [level for level in statistics.levels.values() if level.slices]
    missing = sum(level.uncaptioned for level in levels)
    blocks: list[Block] = [_sources(levels), _common(levels)]
    rows = []
    for level in levels:
        for kind, name in (("uncaptioned", "no caption"), ("same caption", "captioned like the whole")):
            shown = tiles.examples(level.examples_of(kind)[:ABREAST])
            if shown:
                rows.append(GridRow(f"{level.name}: {name}", shown))
    if rows:
        blocks.append(PictureStrips("Examples.", "Slices whose captions are missing or say nothing new.", tuple(rows)))
    if any(not level.captions.exact for level in levels):
        blocks.append(
            Paragraph("Where a level has very many different captions, the counts above are lower bounds.", "note")
        )
    return Section(
        "captions",
        "Captions",
        f"{counted(missing, 'slice')} of {number(statistics.slices, 0)} {'has' if missing == 1 else 'have'} none.",
        tuple(blocks),
    )


def _sources(levels: list[LevelStatistics]) -> Table:
    rows = []
    for level in levels:
        sources = ", ".join(
            f"{_SOURCES.get(source, plain(source, 40))} {number(count, 0)}"
            for source, count in level.caption_sources.most_common()
        )
        different = number(level.captions.different, 0) if level.captions.exact else "very many"
        rows.append(
            (
                level.name,
                sources,
                different,
                number(int(level.words.quantile(0.5)), 0),
                f"{number(level.words.least, 0)} to {number(level.words.greatest, 0)}",
                number(level.uncaptioned, 0),
                number(level.same_caption, 0) if level is not levels[0] else NONE,
            )
        )
    return Table(
        "Sources.",
        "Where each level's captions come from, how many are different, and their length in words. "
        "“Like the whole” counts close-ups with exactly the caption of their root's coarsest slice.",
        ("level", "source", "different", "words, median", "words", "missing", "like the whole"),
        tuple(rows),
        numeric=frozenset({2, 3, 5, 6}),
    )


def _common(levels: list[LevelStatistics]) -> Table:
    rows = [
        (level.name, f"{number(count, 0)}{'' if level.captions.exact else ' or more'}", plain(text) or "(empty)")
        for level in levels
        for text, count in level.captions.most_common(_MOST_COMMON)
    ]
    return Table(
        "Most common.",
        f"The {_MOST_COMMON} most common captions of each level.",
        ("level", "slices", "caption"),
        tuple(rows),
    )
