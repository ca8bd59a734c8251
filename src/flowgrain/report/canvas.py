"""The canvas of every figure: matplotlib to SVG, drawn once for light and once for dark pages.

Colours are from palettes that stay apart for colour-blind readers (Okabe and Ito 2008; Tol 2021). Ramps change in
lightness, so that they read without any colour.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure as Canvas

from flowgrain.report.pictures import Drawing, data_uri

WIDTH, HEIGHT = 3.75, 3.1
"""Inches of one panel: small, so that a phone shows it readably."""
CSS_PIXELS_PER_INCH = 96
LIGHT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#332288")
DARK_COLOURS = ("#56B4E9", "#F28E4B", "#3FD0A5", "#E58AD0", "#F0E442", "#A9A3F0")


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance of the page."""

    paper: str
    ink: str
    soft: str
    grid: str
    colours: tuple[str, ...]
    ramp: tuple[str, ...]
    """From little to much."""
    balance: tuple[str, ...]
    """From low over even to high."""

    def shades(self, count: int) -> list[str]:
        """``count`` colours of the ramp, the strongest first."""
        ramp = LinearSegmentedColormap.from_list("ramp", self.ramp)
        return [to_hex(ramp(1 - index / max(count - 1, 1))) for index in range(count)]

    def shade_of(self, part: float, *, balanced: bool = False) -> str:
        """The colour of a number in [0, 1] on the ramp, or on the scale around one half."""
        stops = self.balance if balanced else self.ramp
        return to_hex(LinearSegmentedColormap.from_list("ramp", stops)(part))


LIGHT = Theme(
    "#ffffff",
    "#1b1f24",
    "#59636e",
    "#e3e7eb",
    LIGHT_COLOURS,
    ("#e3eef6", "#6aaed6", "#0b4a84"),
    ("#c75b12", "#f7f7f7", "#2b6ca3"),
)
DARK = Theme(
    "#14171c",
    "#e4e8ed",
    "#9da7b3",
    "#2b3138",
    DARK_COLOURS,
    ("#1d2a36", "#3579a8", "#bfe0f7"),
    ("#e08a48", "#2b3138", "#63aee3"),
)


@dataclass(frozen=True)
class Style:
    """Looks of one arm in every figure: number of its colour (None = grey) and of its dash and marker."""

    colour: int | None
    dash: int = 0

    def shade(self, theme: Theme) -> str:
        """The colour in a theme."""
        return theme.soft if self.colour is None else theme.colours[self.colour % len(theme.colours)]


def ink_on(colour: str) -> str:
    """Black or white, whichever stands out more from ``colour`` (WCAG 2.1 contrast)."""
    level = luminance(colour)
    return "#000000" if (level + 0.05) / 0.05 > 1.05 / (level + 0.05) else "#ffffff"


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, 0 (black) to 1 (white), as WCAG 2.1 defines it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def render(title: str, draw: Callable[[Axes, Theme], None], *, width: float = WIDTH, height: float = HEIGHT) -> Drawing:
    """One panel of ``width`` x ``height`` inches, for light and for dark pages."""
    light = _svg(title, draw, LIGHT, width, height)
    dark = _svg(title, draw, DARK, width, height)
    return Drawing(
        data_uri("image/svg+xml", light),
        data_uri("image/svg+xml", dark),
        round(width * CSS_PIXELS_PER_INCH),
        round(height * CSS_PIXELS_PER_INCH),
    )


def _svg(title: str, draw: Callable[[Axes, Theme], None], theme: Theme, width: float, height: float) -> bytes:
    with mpl.rc_context(_style(theme)):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.add_subplot()
        draw(axes, theme)
        canvas.suptitle(title, x=0.015, horizontalalignment="left")
        buffer = io.BytesIO()
        # no date and a fixed salt: the same data give the same bytes
        FigureCanvasSVG(canvas).print_svg(buffer, metadata={"Date": None})
    return compact(buffer.getvalue().decode("utf-8")).encode("utf-8")


def compact(svg: str) -> str:
    """The same drawing in fewer bytes: hundredths of a point in paths, no comments, one space where there were many."""
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")


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
