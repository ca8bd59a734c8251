"""Figures of a diagnosis: small matrices by noise level and state in diverging colours, curves over noise levels."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from flowgrain.report.canvas import HEIGHT, Style, Theme, ink_on, render
from flowgrain.report.figures import DASHES, MARKERS, wrapped
from flowgrain.report.pictures import Drawing

GAP = 0.7
"""Space between matrices, in cells."""
CELL = 0.33
"""Inches of a cell."""
MOST_LABELLED = 4
"""Groups up to which cells carry their number."""
FAINT = 0.35


@dataclass(frozen=True)
class MatrixCell:
    """An entry of a matrix, in [-1, 1] after scaling."""

    value: float | None
    supported: bool
    """Whether the interval excludes 0: only then the number is written."""


@dataclass(frozen=True)
class MatrixColumn:
    """A noise level of a matrix figure."""

    title: str
    note: str
    """A second line under the title."""
    faint: bool = False
    """Whether nothing of it is in the loss."""


Matrix = Sequence[Sequence[MatrixCell]]


@dataclass(frozen=True)
class LevelCurve:
    """A named line over noise levels; None leaves an interval out."""

    label: str
    y: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    style: Style


def matrix_figure(
    title: str,
    groups: Sequence[str],
    columns: Sequence[MatrixColumn],
    rows: Sequence[str],
    matrices: Sequence[Sequence[Matrix | None]],
    ends: tuple[str, str],
) -> Drawing:
    """A matrix of groups for each row (state) and column (noise level), from ``ends[0]`` (-1) to ``ends[1]`` (1)."""
    size, step = len(groups), len(groups) + GAP

    def draw(axes: Axes, theme: Theme) -> None:
        for y, row in enumerate(matrices):
            axes.text(
                -2.6, y * step + size / 2, wrapped(rows[y]), ha="right", va="center", fontweight="bold", fontsize=8.5
            )
            for k, name in enumerate(groups):
                axes.text(-0.25, y * step + k + 0.5, name, ha="right", va="center", fontsize=7, color=theme.soft)
            for x, matrix in enumerate(row):
                if matrix is None:
                    middle = (x * step + size / 2, y * step + size / 2)
                    axes.text(*middle, "–", ha="center", va="center", color=theme.soft)
                else:
                    _matrix(axes, theme, (x * step, y * step), matrix, columns[x].faint)
        for x, column in enumerate(columns):
            middle = x * step + size / 2
            axes.text(middle, -1.15, column.title, ha="center", va="center", fontsize=9)
            axes.text(middle, -0.45, column.note, ha="center", va="center", fontsize=7, color=theme.soft)
            for k, name in enumerate(groups):
                bottom = len(matrices) * step - GAP + 0.2
                place = (x * step + k + 0.5, bottom)
                axes.text(*place, name, ha="center", va="top", rotation=90, fontsize=7, color=theme.soft)
        _scale(axes, theme, (0.0, len(matrices) * step + _names(groups)), len(columns) * step - GAP, ends)
        axes.set_xlim(-2.7 - _longest(rows), len(columns) * step)
        axes.set_ylim(len(matrices) * step + _names(groups) + 2.2, -1.6)
        axes.set_aspect("equal")
        axes.set_axis_off()

    across = 2.7 + _longest(rows) + len(columns) * step
    down = 3.8 + _names(groups) + len(matrices) * step
    return render(title, draw, width=max(3.75, CELL * across), height=0.35 + CELL * down)


def _longest(rows: Sequence[str]) -> float:
    """Cells that the names of the rows take."""
    return 0.23 * max(len(line) for row in rows for line in wrapped(row).split("\n"))


def _names(groups: Sequence[str]) -> float:
    """Cells that the names of the groups take below a matrix."""
    return 0.3 + 0.2 * max(map(len, groups))


def _matrix(axes: Axes, theme: Theme, place: tuple[float, float], matrix: Matrix, faint: bool) -> None:
    left, top = place
    for y, row in enumerate(matrix):
        for x, cell in enumerate(row):
            corner = (left + x, top + y)
            if cell.value is None:
                axes.text(corner[0] + 0.5, corner[1] + 0.5, "–", ha="center", va="center", fontsize=7, color=theme.soft)
                continue
            colour = theme.shade_of((min(max(cell.value, -1.0), 1.0) + 1) / 2, balanced=True)
            axes.add_patch(
                Rectangle(
                    corner, 1, 1, facecolor=colour, edgecolor=theme.paper, linewidth=0.6, alpha=FAINT if faint else 1
                )
            )
            if cell.supported and not faint and len(matrix) <= MOST_LABELLED:
                text = short_number(cell.value)
                axes.text(
                    corner[0] + 0.5, corner[1] + 0.5, text, ha="center", va="center", fontsize=6.5, color=ink_on(colour)
                )
    axes.add_patch(Rectangle((left, top), len(matrix), len(matrix), fill=False, edgecolor=theme.soft, linewidth=0.5))


def _scale(axes: Axes, theme: Theme, place: tuple[float, float], width: float, ends: tuple[str, str]) -> None:
    """The colours' meaning, below the matrices."""
    steps, left, top = 41, place[0], place[1] + 0.5
    for step in range(steps):
        colour = theme.shade_of(step / (steps - 1), balanced=True)
        axes.add_patch(Rectangle((left + step * width / steps, top), width / steps, 0.5, facecolor=colour, linewidth=0))
    for part, text, side in ((0, f"−1 {ends[0]}", "left"), (0.5, "0", "center"), (1, f"{ends[1]} 1", "right")):
        axes.text(left + part * width, top + 0.65, text, ha=side, va="top", fontsize=8)


def short_number(value: float) -> str:
    """Two digits without the leading zero: .45, −.07, 1."""
    text = f"{abs(value):.2f}"
    body = "1" if text == "1.00" else text.removeprefix("0")
    return f"−{body}" if value < 0 and body != ".00" else body


def level_figure(
    title: str,
    levels: Sequence[float],
    curves: Sequence[LevelCurve],
    ylabel: str,
    *,
    zero: bool = False,
    log: bool = False,
) -> Drawing:
    """Values at noise levels that stand at equal distances, with upright intervals."""

    def draw(axes: Axes, theme: Theme) -> None:
        if zero:
            axes.axhline(0, color=theme.soft, linewidth=1.2)
        for index, curve in enumerate(curves):
            shift = 0.08 * (index - (len(curves) - 1) / 2)
            _curve(axes, theme, curve, shift)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set(xlabel="noise level t (not to scale)", ylabel=ylabel)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if len(curves) > 1:
            handles, names = axes.get_legend_handles_labels()
            axes.figure.legend(
                handles, names, loc="outside lower center", ncols=2, frameon=False, handlelength=1.6, columnspacing=0.9
            )

    return render(title, draw, height=HEIGHT + 0.2 * ((len(curves) + 1) // 2))


def _curve(axes: Axes, theme: Theme, curve: LevelCurve, shift: float) -> None:
    colour, dash = curve.style.shade(theme), curve.style.dash
    places = [(index + shift, value) for index, value in enumerate(curve.y) if value is not None]
    axes.plot(
        [x for x, _ in places],
        [y for _, y in places],
        color=colour,
        linestyle=DASHES[dash % len(DASHES)],
        marker=MARKERS[dash % len(MARKERS)],
        label=curve.label,
    )
    for index, (low, high) in enumerate(zip(curve.low, curve.high, strict=True)):
        if low is not None and high is not None:
            axes.plot([index + shift] * 2, [low, high], color=colour, linewidth=1.6, alpha=0.6)
