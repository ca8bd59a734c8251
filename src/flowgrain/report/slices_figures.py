"""Histograms by level, one line a level, so that levels are compared on one axis."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from flowgrain.report.canvas import Style, Theme, render
from flowgrain.report.figures import DASHES
from flowgrain.report.pictures import Drawing
from flowgrain.slices.tallies import Bar

_MOST_TICKS = 7


def histogram_figure(
    title: str, curves: Mapping[str, Sequence[Bar]], xlabel: str, *, octaves: bool = False, mark: float | None = None
) -> Drawing:
    """Shares of each curve's own total, in percent, as steps; ``octaves``: a logarithmic axis; ``mark``: a line."""

    def draw(axes: Axes, theme: Theme) -> None:
        if mark is not None:
            axes.axvline(mark, color=theme.soft, linewidth=1.0)
        for index, (label, bars) in enumerate(curves.items()):
            total = sum(bar.count for bar in bars)
            edges = [bars[0].low, *(bar.high for bar in bars)]
            colour = Style(index).shade(theme)
            drawn = axes.stairs([100 * bar.count / total for bar in bars], edges, color=colour, label=label)
            drawn.set(linewidth=1.8, linestyle=DASHES[index % len(DASHES)])
        if octaves:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(_ticks([bar for bars in curves.values() for bar in bars])))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
        axes.set(xlabel=xlabel, ylabel="share in %")
        if len(curves) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, handlelength=2.4)

    return render(title, draw)


def _ticks(bars: Sequence[Bar]) -> list[float]:
    """Powers of two over the bars, thinned to a number that fits; halves between them where there are few."""
    low, high = min(bar.low for bar in bars), max(bar.high for bar in bars)
    powers = [2.0**power for power in range(-10, 21) if low <= 2.0**power <= high]
    if len(powers) < 3:
        powers = [value for half in range(-20, 41) if low <= (value := float(f"{2.0 ** (half / 2):.2g}")) <= high]
    powers = powers or [float(f"{(low * high) ** 0.5:.2g}")]
    return powers[:: -(-len(powers) // _MOST_TICKS)]
