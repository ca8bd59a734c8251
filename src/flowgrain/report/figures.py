"""Lines, intervals and bars: small figures of one panel each, so that a phone shows them readably.

Every line has its own colour, dash and marker.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from flowgrain.report.canvas import Style, Theme, render
from flowgrain.report.pictures import Drawing

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SMOOTHING_PARTS = 15
"""A loss curve is smoothed over a window of one such part of its points."""

LONGEST_LINE = 26
"""Letters of a label's line; the tables hold names in full."""


@dataclass(frozen=True)
class Curve:
    """A named line."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float]
    style: Style


@dataclass(frozen=True)
class IntervalRow:
    """A named value with its interval; ``hollow`` marks one that supports nothing."""

    label: str
    value: float
    low: float
    high: float
    style: Style
    hollow: bool


def loss_figure(title: str, curves: Sequence[Curve]) -> Drawing:
    """Training loss over slices: each update faint, a moving average on top."""

    def draw(axes: Axes, theme: Theme) -> None:
        for curve in curves:
            average = moving_average(np.asarray(curve.y, dtype=np.float64), len(curve.y) // SMOOTHING_PARTS)
            axes.plot(curve.x, curve.y, color=curve.style.shade(theme), linewidth=0.7, alpha=0.25)
            _plot(axes, theme, curve, average.tolist())
        axes.set(xlabel="slices seen in training", ylabel="loss (mean squared error)")
        _legend(axes)

    return render(title, draw)


def progress_figure(title: str, curves: Sequence[Curve], ylabel: str) -> Drawing:
    """Measurements over slices, one marker each."""

    def draw(axes: Axes, theme: Theme) -> None:
        for curve in curves:
            _plot(axes, theme, curve, curve.y, marked=True)
        axes.set(xlabel="slices seen in training", ylabel=ylabel)
        _legend(axes)

    return render(title, draw)


def modulation_figure(
    title: str, neutral: Curve, modulated: Sequence[Curve], ylabel: str, filled: bool = False
) -> Drawing:
    """Curves over the noise level: what all levels share in grey, perhaps ``filled``, each level's own in colour."""

    def draw(axes: Axes, theme: Theme) -> None:
        if filled:
            axes.fill_between(neutral.x, neutral.y, color=theme.soft, alpha=0.18, linewidth=0)
        axes.plot(neutral.x, neutral.y, color=theme.soft, linewidth=1.2, label=neutral.label)
        for curve in modulated:
            _plot(axes, theme, curve, curve.y)
        axes.set(xlabel="noise level t (0 = data, 1 = noise)", ylabel=ylabel, xlim=(0, 1))
        axes.set_ylim(bottom=0)
        _legend(axes)

    return render(title, draw)


def noise_level_figure(title: str, curves: Sequence[Curve], ylabel: str, zero: str | None = None) -> Drawing:
    """Values at fixed noise levels; ``zero`` names a line at 0, for changes against something."""

    def draw(axes: Axes, theme: Theme) -> None:
        if zero is not None:
            axes.axhline(0, color=theme.soft, linewidth=1.2, label=zero)
        for curve in curves:
            _plot(axes, theme, curve, curve.y, marked=True)
        axes.set(xlabel="noise level t (0 = data, 1 = noise)", ylabel=ylabel, xlim=(0, 1))
        _legend(axes)

    return render(title, draw)


def interval_figure(title: str, rows: Sequence[IntervalRow], xlabel: str) -> Drawing:
    """Differences with intervals, one line a row, first row on top, and the line of no difference."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(0, color=theme.soft, linewidth=1.2)
        for index, row in enumerate(rows):
            colour = row.style.shade(theme)
            fill = theme.paper if row.hollow else colour
            axes.plot([row.low, row.high], [index, index], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([row.value], [index], color=colour, marker="o", markersize=7, markerfacecolor=fill)
        axes.set_yticks(range(len(rows)), [wrapped(row.label) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        label_below(axes, xlabel)

    return render(title, draw, height=1.25 + 0.42 * len(rows))


def bar_figure(title: str, bars: Mapping[str, int], xlabel: str, ylabel: str) -> Drawing:
    """Counts of a few named things, each bar with its number."""

    def draw(axes: Axes, theme: Theme) -> None:
        drawn = axes.bar(list(bars), list(bars.values()), width=0.6, color=theme.colours[0])
        axes.bar_label(drawn, padding=2, color=theme.ink)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.14)
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return render(title, draw, height=2.7)


def moving_average(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centred mean over about ``window`` points; at the ends over those that exist."""
    half = max(window, 1) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _plot(axes: Axes, theme: Theme, curve: Curve, y: Sequence[float], marked: bool = False) -> None:
    (line,) = axes.plot(curve.x, y, color=curve.style.shade(theme), label=curve.label)
    line.set_linestyle(DASHES[curve.style.dash % len(DASHES)])
    if marked:
        line.set_marker(MARKERS[curve.style.dash % len(MARKERS)])


def label_below(axes: Axes, text: str) -> None:
    """A label of the x axis that may be wider than the panel, as long names of rows leave little of it."""
    axes.figure.supxlabel(text, fontsize=9.5)


def wrapped(label: str, width: int = 18) -> str:
    """A label on two lines at most, broken at the space nearest to its middle; a line that is too long is cut."""
    spaces = [index for index, letter in enumerate(label) if letter == " "]
    if len(label) <= width or not spaces:
        return shortened(label)
    middle = min(spaces, key=lambda index: abs(index - len(label) / 2))
    return f"{shortened(label[:middle])}\n{shortened(label[middle + 1 :])}"


def shortened(line: str) -> str:
    """A line that fits beside a panel; the tables hold names in full."""
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def _legend(axes: Axes) -> None:
    # below the panel: never on the data, and as wide as it needs to be
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, handlelength=2.4)
