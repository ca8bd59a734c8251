"""Curves with upright intervals over any axis: updates, slices of a batch, sizes of a data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from flowgrain.report.canvas import HEIGHT, Style, Theme, render
from flowgrain.report.figures import DASHES, MARKERS
from flowgrain.report.pictures import Drawing

SPREAD = 0.012
"""Part of the axis by which curves stand apart, so that their intervals do not cover each other."""


@dataclass(frozen=True)
class IntervalCurve:
    """A named line; None leaves a point or an interval out."""

    label: str
    x: Sequence[float | int]
    y: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    style: Style


def interval_curve(
    label: str, x: Sequence[float | int], found: Sequence[Mapping[str, Any] | None], style: Style, mean: str = "mean"
) -> IntervalCurve:
    """The line of estimates ``{mean, low, high}``; None where there is none."""
    y, low, high = ([None if item is None else item[key] for item in found] for key in (mean, "low", "high"))
    return IntervalCurve(label, x, y, low, high, style)


def curve_figure(
    title: str,
    curves: Sequence[IntervalCurve],
    xlabel: str,
    ylabel: str,
    *,
    lines: Sequence[tuple[float, str]] = (),
    log_x: bool = False,
    log_y: bool = False,
) -> Drawing:
    """``lines`` are named levels to read the curves against."""

    def draw(axes: Axes, theme: Theme) -> None:
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if log_y:
            _log_scale(
                axes, [*(y for curve in curves for y in (*curve.y, *curve.low, *curve.high)), *(y for y, _ in lines)]
            )
        for place, (level, name) in enumerate(lines):
            axes.axhline(level, color=theme.soft, linewidth=1.2, linestyle=DASHES[place], label=name)
        known = [x for curve in curves for x in curve.x]
        width = (max(known) - min(known)) if known else 0.0
        for index, curve in enumerate(curves):
            shift = SPREAD * (index - (len(curves) - 1) / 2)
            _draw(axes, theme, curve, 0.0 if log_x else shift * width, 1 + 4 * shift if log_x else 1.0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        handles, names = axes.get_legend_handles_labels()
        if len(handles) > 1:
            axes.figure.legend(
                handles, names, loc="outside lower center", ncols=2, frameon=False, handlelength=1.8, columnspacing=0.9
            )

    entries = len(curves) + len(lines)
    return render(title, draw, height=HEIGHT + (0.2 * ((entries + 1) // 2) if entries > 1 else 0.0))


def _log_scale(axes: Axes, values: Sequence[float | None]) -> None:
    """A logarithmic axis over at least a factor of 4, with plain numbers."""
    known = [value for value in values if value is not None and value > 0]
    axes.set_yscale("log")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    if known:
        low, high = min(known), max(known)
        room = max(1.3, 2 * (low / high) ** 0.5)
        axes.set_ylim(low / room, high * room)


def _draw(axes: Axes, theme: Theme, curve: IntervalCurve, shift: float, factor: float) -> None:
    colour, dash = curve.style.shade(theme), curve.style.dash
    rows = [
        (x * factor + shift, y, low, high)
        for x, y, low, high in zip(curve.x, curve.y, curve.low, curve.high, strict=True)
        if y is not None
    ]
    axes.plot(
        [row[0] for row in rows],
        [row[1] for row in rows],
        color=colour,
        linestyle=DASHES[dash % len(DASHES)],
        marker=MARKERS[dash % len(MARKERS)],
        label=curve.label,
    )
    for x, _, low, high in rows:
        if low is not None and high is not None:
            axes.plot([x, x], [low, high], color=colour, linewidth=1.6, alpha=0.55, label="_interval")
