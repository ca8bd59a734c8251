"""How slices came to their sizes, and how sharp they are."""

from flowgrain.report.page import Block, Figure, FigureRow, GridRow, PictureStrips, Section, Table
from flowgrain.report.slices_figures import histogram_figure
from flowgrain.report.slices_tiles import Tiles
from flowgrain.report.wording import NONE, counted, number, whole_percent
from flowgrain.slices.level_advice import blurred
from flowgrain.slices.statistics import LevelStatistics, Statistics

_SHARPEST_BAR = 4
"""Bins of sixteenths of an octave in a bar of the figure."""


def sizes_section(statistics: Statistics, tiles: Tiles) -> Section:
    """Scale factors, source sizes and sharpness by level, with the least sharp slices."""
    levels = [level for level in statistics.levels.values() if level.slices]
    blocks: list[Block] = [_figures(statistics, levels), _scales(levels), _sharpness(levels)]
    rows = tuple(
        GridRow(level.name, tiles.examples(level.examples_of("least sharp")))
        for level in levels
        if level.sharpness.total
    )
    if rows:
        blocks.append(
            PictureStrips(
                "The least sharp.",
                "The slices of each level with the lowest sharpness in the whole set: blurred ones teach blur, empty "
                "ones teach nothing.",
                rows,
            )
        )
    enlarged = sum(level.actions["upscale"] for level in levels)
    return Section(
        "sizes",
        "Sizes and sharpness",
        f"{counted(enlarged, 'slice')} of {number(statistics.slices, 0)} "
        f"({whole_percent(enlarged / max(statistics.slices, 1))}) {'is' if enlarged == 1 else 'are'} enlarged.",
        tuple(blocks),
    )


def _figures(statistics: Statistics, levels: list[LevelStatistics]) -> FigureRow:
    figures = [
        Figure(
            histogram_figure(
                "Scale factors",
                {level.name: level.scales.bars(2) for level in levels},
                "slice pixels per source pixel",
                octaves=True,
                mark=1.0,
            ),
            "Histogram of the scale factors by level; their medians are in the table.",
        )
    ]
    sides = {"source images": statistics.sides.bars(2)} if statistics.sides.total else {}
    boxes = levels[1:] if statistics.config.mode == "whole_image" else levels  # the first level is the image itself
    sides |= {f"{level.name} boxes": level.sides.bars(2) for level in boxes}
    figures.append(
        Figure(
            histogram_figure("Sizes in the source", sides, "shorter side, source pixels", octaves=True),
            "Histogram of the shorter sides of source images and of the boxes of each level.",
        )
    )
    sharp = {level.name: level.sharpness.bars(_SHARPEST_BAR) for level in levels if level.sharpness.total}
    if sharp:
        figures.append(
            Figure(
                histogram_figure("Sharpness", sharp, "standard deviation of the Laplacian", octaves=True),
                "Histogram of the sharpness by level; the medians are in the table.",
            )
        )
    return FigureRow(
        "Sizes.",
        "Left of 1 slices are shrunk, at 1 they are cropped at native scale, right of it they are enlarged. Shares "
        "are of each level's own slices.",
        tuple(figures),
    )


def _scales(levels: list[LevelStatistics]) -> Table:
    rows = []
    for level in levels:
        by = ", ".join(f"{name or 'unknown'} {number(count, 0)}" for name, count in level.upscalers.most_common())
        rows.append(
            (
                level.name,
                *(number(level.actions[action], 0) for action in ("downscale", "native", "upscale")),
                f"×{number(level.scales.quantile(0.5), 2)}",
                f"×{number(level.scales.least, 2)} to ×{number(level.scales.greatest, 2)}",
                by or NONE,
                f"{number(level.sides.least, 0)} to {number(level.sides.greatest, 0)}",
            )
        )
    return Table(
        "Scales.",
        "What was done to bring each level's boxes to their sizes.",
        ("level", "shrunk", "native", "enlarged", "median scale", "scales", "enlarged by", "box sides, px"),
        tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )


def _sharpness(levels: list[LevelStatistics]) -> Table:
    rows = [
        (
            level.name,
            number(level.sharpness.quantile(0.5), 1),
            number(level.sharpness.quantile(0.05), 1),
            number(level.sharpness.least, 1),
            number(blurred(level), 0),
        )
        for level in levels
        if level.sharpness.total
    ]
    return Table(
        "Sharpness.",
        "Standard deviation of the Laplacian of the grey values (0 to 255) of the finished slices. “Blurred” counts "
        "slices with less than a quarter of their level's median.",
        ("level", "median", "5 % are below", "least", "blurred"),
        tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )
