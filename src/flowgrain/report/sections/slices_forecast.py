"""What all images would give, where only a sample was cut."""

from flowgrain.report.page import Block, Paragraph, Section, Table
from flowgrain.report.wording import NONE, counted, duration, number
from flowgrain.slices.statistics import Statistics
from flowgrain.slices.tuning import Forecast


def forecast_section(statistics: Statistics, forecast: Forecast) -> Section:
    """The sample's counts beside those of all images, if they are like it."""
    factor = forecast.images / max(forecast.sampled, 1)
    counts = [
        ("images", statistics.images),
        ("images not used", statistics.faults.total() + statistics.empty),
        ("roots", statistics.roots),
        ("slices", statistics.slices),
        *((f"slices of level {level.name}", level.slices) for level in statistics.levels.values()),
    ]
    rows = [(name, number(count, 0), number(round(count * factor), 0)) for name, count in counts]
    rows.append(("time of one process", duration(forecast.seconds / factor), duration(forecast.seconds)))
    if forecast.bytes is not None:
        rows.append(("on the disk", _room(forecast.bytes / factor), _room(forecast.bytes)))
    elif not statistics.slices:
        rows.append(("on the disk", NONE, NONE))
    blocks: tuple[Block, ...] = (
        Table(
            "Forecast.",
            "The sample was drawn by a hash of the names: the same images every time, whatever the settings.",
            ("", "this sample", "all images, about"),
            tuple(rows),
            numeric=frozenset({1, 2}),
        ),
        Paragraph(
            "To compare two settings, cut the same sample into two folders and open both reports side by side:\n"
            "flowgrain decompose SRC --out try-a --sample N …, then --out try-b with the other settings. Everything "
            "below is about the sample alone.",
            "note",
        ),
    )
    return Section(
        "forecast",
        "What all images would give",
        f"{counted(forecast.sampled, 'image')} of {number(forecast.images, 0)} were cut.",
        blocks,
    )


def _room(size: float | int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{number(size / scale, 1)} {unit}"
    return f"{number(size / 1e3, 1)} kB"
