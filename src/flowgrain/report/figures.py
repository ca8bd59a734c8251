"""Figures in one style: matplotlib to SVG, drawn once for light and once for dark pages.

Colours are from palettes that stay apart for colour-blind readers (Okabe and Ito 2008; Tol 2021), and every line also
has its own dash and marker. Figures are small on purpose: one panel each, so that a phone shows them readably.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from flowgrain.report.pictures import Drawing, data_uri

WIDTH, HEIGHT = 3.75, 3.1
"""Inches of one panel."""
CSS_PIXELS_PER_INCH = 96
LIGHT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#332288")
DARK_COLOURS = ("#56B4E9", "#F28E4B", "#3FD0A5", "#E58AD0", "#F0E442", "#A9A3F0")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SMOOTHING_PARTS = 15
"""A loss curve is smoothed over a window of one such part of its points."""


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance of the page."""

    paper: str
    ink: str
    soft: str
    grid: str
    colours: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1b1f24", "#59636e", "#e3e7eb", LIGHT_COLOURS)
DARK = Theme("#14171c", "#e4e8ed", "#9da7b3", "#2b3138", DARK_COLOURS)


@dataclass(frozen=True)
class Style:
    """Looks of one arm in every figure: number of its colour (None = grey) and of its dash and marker."""

    colour: int | None
    dash: int = 0

    def shade(self, theme: Theme) -> str:
        """The colour in a theme."""
        return theme.soft if self.colour is None else theme.colours[self.colour % len(theme.colours)]

    def plot(self, axes: Axes, theme: Theme, curve: "Curve", y: Sequence[float], marked: bool = False) -> None:
        """Draw ``y`` over the curve's x under the curve's name."""
        (line,) = axes.plot(curve.x, y, color=self.shade(theme), label=curve.label)
        line.set_linestyle(DASHES[self.dash % len(DASHES)])
        if marked:
            line.set_marker(MARKERS[self.dash % len(MARKERS)])


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
            curve.style.plot(axes, theme, curve, average.tolist())
        axes.set(xlabel="slices seen in training", ylabel="loss (mean squared error)")
        _legend(axes)

    return _render(title, draw)


def density_figure(title: str, neutral: Curve, modulated: Sequence[Curve]) -> Drawing:
    """Densities of the noise level: the law without modulation in grey, with it in colour."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.fill_between(neutral.x, neutral.y, color=theme.soft, alpha=0.18, linewidth=0)
        axes.plot(neutral.x, neutral.y, color=theme.soft, linewidth=1.2, label=neutral.label)
        for curve in modulated:
            curve.style.plot(axes, theme, curve, curve.y)
        axes.set(xlabel="noise level t (0 = data, 1 = noise)", ylabel="probability density", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _render(title, draw)


def noise_level_figure(title: str, curves: Sequence[Curve], ylabel: str, zero: str | None = None) -> Drawing:
    """Values at fixed noise levels; ``zero`` names a line at 0, for changes against something."""

    def draw(axes: Axes, theme: Theme) -> None:
        if zero is not None:
            axes.axhline(0, color=theme.soft, linewidth=1.2, label=zero)
        for curve in curves:
            curve.style.plot(axes, theme, curve, curve.y, marked=True)
        axes.set(xlabel="noise level t (0 = data, 1 = noise)", ylabel=ylabel, xlim=(0, 1))
        _legend(axes)

    return _render(title, draw)


def interval_figure(title: str, rows: Sequence[IntervalRow], xlabel: str) -> Drawing:
    """Differences with intervals, one line a row, first row on top, and the line of no difference."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(0, color=theme.soft, linewidth=1.2)
        for index, row in enumerate(rows):
            colour = row.style.shade(theme)
            fill = theme.paper if row.hollow else colour
            axes.plot([row.low, row.high], [index, index], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([row.value], [index], color=colour, marker="o", markersize=7, markerfacecolor=fill)
        axes.set_yticks(range(len(rows)), [_wrapped(row.label) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.set_xlabel(xlabel)

    return _render(title, draw, height=1.25 + 0.42 * len(rows))


def bar_figure(title: str, bars: Mapping[str, int], xlabel: str, ylabel: str) -> Drawing:
    """Counts of a few named things, each bar with its number."""

    def draw(axes: Axes, theme: Theme) -> None:
        drawn = axes.bar(list(bars), list(bars.values()), width=0.6, color=theme.colours[0])
        axes.bar_label(drawn, padding=2, color=theme.ink)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.14)
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return _render(title, draw, height=2.7)


def moving_average(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centred mean over about ``window`` points; at the ends over those that exist."""
    half = max(window, 1) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _wrapped(label: str, width: int = 18) -> str:
    """A label on two lines at most, broken at the space nearest to its middle."""
    spaces = [index for index, letter in enumerate(label) if letter == " "]
    if len(label) <= width or not spaces:
        return label
    middle = min(spaces, key=lambda index: abs(index - len(label) / 2))
    return f"{label[:middle]}\n{label[middle + 1 :]}"


def _legend(axes: Axes) -> None:
    # below the panel: never on the data, and as wide as it needs to be
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, handlelength=2.4)


def _render(title: str, draw: Callable[[Axes, Theme], None], height: float = HEIGHT) -> Drawing:
    light, width_px, height_px = _svg(title, draw, LIGHT, height)
    dark, _, _ = _svg(title, draw, DARK, height)
    return Drawing(data_uri("image/svg+xml", light), data_uri("image/svg+xml", dark), width_px, height_px)


def _svg(title: str, draw: Callable[[Axes, Theme], None], theme: Theme, height: float) -> tuple[bytes, int, int]:
    with mpl.rc_context(_style(theme)):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes, theme)
        canvas.suptitle(title, x=0.015, horizontalalignment="left")
        buffer = io.BytesIO()
        # no date and a fixed salt: the same data give the same bytes
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue(), round(WIDTH * CSS_PIXELS_PER_INCH), round(height * CSS_PIXELS_PER_INCH)


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.soft,
        "axes.labelcolor": theme.ink,
        "figure.titlesize": 10.5,
        "figure.titleweight": "bold",
        "axes.labelsize": 9.5,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=theme.colours),
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.labelcolor": theme.ink,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "text.color": theme.ink,
        "text.parse_math": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "flowgrain",
    }
