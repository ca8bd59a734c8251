"""Figures of a training path: the loss on its plane, and the loss over the distance from the prior."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from flowgrain.report.canvas import Style, Theme, render
from flowgrain.report.diagnose_values import Values
from flowgrain.report.figures import MARKERS
from flowgrain.report.pictures import Drawing

REGIMES = ("underfit", "goal", "out of domain")


def plane_figure(title: str, plane: Values, name: str, limit: float) -> Drawing:
    """Loss minus the last checkpoint's, in colours from -``limit`` to ``limit``, with the path on it."""
    x, y, loss = np.array(plane["x"]), np.array(plane["y"]), np.array(plane["loss"][name])
    error = np.array([[np.nan if v is None else v for v in row] for row in plane["standard_error"]])
    path = np.array(plane["coordinates"])
    difference = loss - plane["last_loss"][name]

    def draw(axes: Axes, theme: Theme) -> None:
        colours = LinearSegmentedColormap.from_list("balance", theme.balance[::-1])
        steps = np.linspace(-limit, limit, 15)
        shown = axes.contourf(x, y, difference, levels=steps, cmap=colours, extend="both")
        axes.contour(x, y, difference, levels=steps, colors=theme.soft, linewidths=0.4, alpha=0.6)
        if name == "all" and np.isfinite(error).all():
            axes.contour(x, y, np.abs(difference) - 2 * error, levels=[0.0], colors=theme.ink, linestyles=":")
        axes.plot(path[:, 0], path[:, 1], color=theme.ink, marker="o", markersize=3.5, linewidth=1.4)
        axes.plot(path[-1:, 0], path[-1:, 1], color=theme.ink, marker="*", markersize=10)
        for (a, b), update in zip(path, plane["updates"], strict=True):
            axes.annotate(str(update), (a, b), textcoords="offset points", xytext=(3, 5), fontsize=7, color=theme.ink)
        bar = axes.figure.colorbar(shown, ax=axes, location="bottom", aspect=28, pad=0.02)
        bar.locator = MaxNLocator(4, symmetric=True)
        bar.update_ticks()
        bar.set_label("loss minus the last checkpoint's", fontsize=8.5)
        axes.grid(visible=False)
        axes.set(xlabel="first direction", ylabel="second direction")

    return render(title, draw, height=3.7)


def regime_figure(points: Sequence[Values], levels: Sequence[str], regimes: Sequence[str] | None) -> Drawing:
    """Held-out loss over the distance of the predictions from the prior's, all and by level."""
    distance = [point["prediction_distance"] for point in points]

    def draw(axes: Axes, theme: Theme) -> None:
        for index, level in enumerate((*levels, "all")):
            style = Style(None) if level == "all" else Style(3 + index, index)
            axes.plot(
                distance,
                [point["loss"][level] for point in points],
                color=style.shade(theme),
                marker=MARKERS[index],
                linewidth=2.4 if level == "all" else 1.3,
                label=level,
            )
        if regimes is not None:
            for point, regime in zip(points, regimes, strict=True):
                colour = theme.colours[REGIMES.index(regime)]
                place = (point["prediction_distance"], point["loss"]["all"])
                axes.plot(*place, color=colour, marker="o", markersize=10, fillstyle="none", markeredgewidth=1.8)
            for regime in dict.fromkeys(regimes):
                (ring,) = axes.plot([], [], linestyle="none", marker="o", markersize=9, fillstyle="none", label=regime)
                ring.set(color=theme.colours[REGIMES.index(regime)], markeredgewidth=1.8)
        least = max(min((d for d in distance if d > 0), default=1e-6), 1e-9)
        axes.set_xscale("symlog", linthresh=least)
        powers = range(math.ceil(math.log10(least)), math.floor(math.log10(max(*distance, least))) + 1)
        axes.set_xticks([0.0, *(10.0**power for power in powers)], ["0", *(f"{10.0**power:g}" for power in powers)])
        axes.minorticks_off()
        axes.set(xlabel="squared distance of predictions from the prior's", ylabel="held-out loss")
        handles, names = axes.get_legend_handles_labels()
        axes.figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, columnspacing=0.9)

    return render("Loss over distance from the prior", draw, height=3.7)


def colour_limit(plane: Values) -> float:
    """The largest difference of any level on the grid, so that all panels share their colours."""
    own: Mapping[str, float] = plane["last_loss"]
    return max(float(np.abs(np.array(grid) - own[name]).max()) for name, grid in plane["loss"].items()) or 1.0
