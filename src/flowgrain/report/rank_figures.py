"""Figures of rankings: rank distributions as stacked bars, rates as heat maps, strengths as a forest plot."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from flowgrain.report.canvas import HEIGHT, WIDTH, Style, Theme, ink_on, render
from flowgrain.report.figures import DASHES, label_below, shortened, wrapped
from flowgrain.report.pictures import Drawing

SMALLEST_LABELLED = 0.08
"""A segment of a bar narrower than this share carries no number; the table beside it does."""
MOST_IN_LEGEND = 6
LEVEL_LABEL = 5
"""Letters of a column's name that stay level; longer names are slanted."""
LETTER, CELL = 0.075, 0.47
"""Inches of a letter of a row's name, and of a cell of a heat map."""


@dataclass(frozen=True)
class RankBar:
    """How often a variant took rank 1, 2, ...; shares that sum to 1."""

    label: str
    shares: Sequence[float]


@dataclass(frozen=True)
class HeatCell:
    """A share in [0, 1] of a heat map; ``strong`` writes it bold."""

    value: float
    strong: bool = False


@dataclass(frozen=True)
class ForestRow:
    """A value and, where there is one, its interval."""

    label: str
    value: float
    low: float | None
    high: float | None
    style: Style


@dataclass(frozen=True)
class ErrorCurve:
    """A named line with an interval at each point; None where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    style: Style
    dash: int


def ordinal(rank: int) -> str:
    """1st, 2nd, 3rd, 4th, ..."""
    if rank % 100 in (11, 12, 13):
        return f"{rank}th"
    return f"{rank}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(rank % 10, 'th') }"


def rank_bars(title: str, bars: Sequence[RankBar]) -> Drawing:
    """One horizontal bar a variant, first on top, cut into the shares of rank 1 (left), 2, ..."""
    ranks = max(len(bar.shares) for bar in bars)

    def draw(axes: Axes, theme: Theme) -> None:
        colours = theme.shades(ranks)
        for rank in range(ranks):
            shares = [100 * bar.shares[rank] if rank < len(bar.shares) else 0.0 for bar in bars]
            starts = [100 * sum(bar.shares[:rank]) for bar in bars]
            axes.barh(
                range(len(bars)),
                shares,
                left=starts,
                height=0.68,
                color=colours[rank],
                edgecolor=theme.paper,
                linewidth=0.8,
                label=ordinal(rank + 1),
            )
            for row, (share, start) in enumerate(zip(shares, starts, strict=True)):
                if share >= 100 * SMALLEST_LABELLED:
                    axes.text(
                        start + share / 2,
                        row,
                        f"{share:.0f}",
                        color=ink_on(colours[rank]),
                        fontsize=8.5,
                        ha="center",
                        va="center",
                    )
        _rows(axes, [bar.label for bar in bars])
        axes.set(xlim=(0, 100), xlabel="share of answers (%)")
        axes.grid(visible=False)
        if ranks > MOST_IN_LEGEND:
            axes.set_xlabel(f"share of answers (%), 1st place (left) to {ordinal(ranks)}")
        else:
            _legend_below(axes, ranks)

    return render(title, draw, height=(1.2 if ranks > MOST_IN_LEGEND else 1.5) + 0.4 * len(bars))


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[HeatCell | None]],
    *,
    balanced: bool = False,
) -> Drawing:
    """Shares as colours with their percent written on them; None leaves a cell empty.

    ``balanced`` centres the colours on one half; otherwise they run from 0 to the largest value.
    """
    top = max((cell.value for row in cells for cell in row if cell is not None), default=1.0) or 1.0
    names = [shortened(column) for column in columns]
    slanted = len(columns) > 1 and max(map(len, names)) > LEVEL_LABEL

    def draw(axes: Axes, theme: Theme) -> None:
        for y, row in enumerate(cells):
            for x, cell in enumerate(row):
                _draw_cell(axes, theme, (x, y), cell, None if balanced else top)
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(columns)), names)
        if slanted:
            axes.tick_params(axis="x", labelrotation=40)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("left")
                label.set_rotation_mode("anchor")
        axes.set_xlim(-0.5, len(columns) - 0.5)
        _rows(axes, rows)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    letters = max(len(line) for row in rows for line in wrapped(row).split("\n"))
    width = max(WIDTH, 0.5 + LETTER * letters + CELL * len(columns))
    return render(
        title, draw, width=width, height=1.0 + (0.05 * max(map(len, names)) if slanted else 0) + 0.4 * len(rows)
    )


def _draw_cell(axes: Axes, theme: Theme, place: tuple[int, int], cell: HeatCell | None, top: float | None) -> None:
    """A coloured square with its percent; colours run from 0 to ``top``, or around one half where that is None."""
    x, y = place
    if cell is None:
        axes.text(x, y, "–", color=theme.soft, ha="center", va="center", fontsize=9)
        return
    colour = theme.shade_of(cell.value if top is None else cell.value / top, balanced=top is None)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=theme.paper))
    weight = "bold" if cell.strong else "normal"
    text = f"{100 * cell.value:.0f}"
    axes.text(x, y, text, color=ink_on(colour), ha="center", va="center", fontsize=9, fontweight=weight)


def forest(title: str, rows: Sequence[ForestRow], xlabel: str, zero: float | None = 0.0) -> Drawing:
    """Values with intervals, one line a row, first row on top; ``zero`` draws a line there."""

    def draw(axes: Axes, theme: Theme) -> None:
        if zero is not None:
            axes.axvline(zero, color=theme.soft, linewidth=1.2)
        for index, row in enumerate(rows):
            colour = row.style.shade(theme)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [index, index], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([row.value], [index], color=colour, marker="o", markersize=7)
        _rows(axes, [row.label for row in rows])
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        label_below(axes, xlabel)

    return render(title, draw, height=1.25 + 0.36 * len(rows))


def error_curves(title: str, curves: Sequence[ErrorCurve], xlabel: str, ylabel: str) -> Drawing:
    """Values over checkpoints with their intervals as upright lines."""
    reach = max((x for curve in curves for x in curve.x), default=1.0)

    def draw(axes: Axes, theme: Theme) -> None:
        for index, curve in enumerate(curves):
            # intervals of two runs at one checkpoint stand side by side
            shift = 0.008 * reach * (index - (len(curves) - 1) / 2)
            places = [x + shift for x in curve.x]
            colour = curve.style.shade(theme)
            dash = DASHES[curve.dash % len(DASHES)]
            axes.plot(places, curve.y, color=colour, marker="o", label=curve.label, linestyle=dash)
            for x, low, high in zip(places, curve.low, curve.high, strict=True):
                if low is not None and high is not None:
                    axes.plot([x, x], [low, high], color=colour, linewidth=1.6, alpha=0.75)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(curves) > 1:
            _legend_below(axes, 2)

    return render(title, draw, height=HEIGHT)


def _legend_below(axes: Axes, columns: int) -> None:
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=1.2,
        columnspacing=0.9,
        handletextpad=0.4,
    )


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [wrapped(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
