"""The figure of the Gram experiment: what arms come to as the weight of their term rises, by weight and by pull."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .claims import Compared, Measure, Store
from .figures import COLOURS, DPI, MARKERS
from .gram_design import BASELINE, LADDERS, TERMS, Kind, by_weight
from .gram_measures import COSINE, KERNEL, LOSS, STRUCTURE, difference

PANELS = (LOSS, COSINE, KERNEL, *STRUCTURE)
STYLES = {kind: (COLOURS[place + 1], MARKERS[place]) for place, kind in enumerate(LADDERS)}


def ladders(store: Store, pulls: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Differences to the baseline with their intervals; above over the weight, below over the pull at the end."""
    figure = Figure(figsize=(3.3 * len(PANELS), 6.2), layout="constrained")
    rows = figure.subplots(2, len(PANELS), squeeze=False)
    for column, measure in enumerate(PANELS):
        for kind in LADDERS:
            found = ladder(store, kind, measure)
            _line(rows[0, column], kind, found)
            by_pull = {
                pulls[arm]["end ratio"]: one
                for weight, one in found.items()
                if (arm := by_weight(kind, weight)) in pulls
            }
            _line(rows[1, column], kind, dict(sorted(by_pull.items())))
        rows[0, column].set_title(f"{measure.name}\n({measure.better} is better)", fontsize=9)
    for row, title in zip(rows, ("weight of the term", "pull: |g term| / |g error| at the end"), strict=True):
        for axis in row:
            axis.axhline(0, color="black", linewidth=0.8)
            axis.set_xscale("log")
            axis.set_xlabel(title, fontsize=9)
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=8)
        row[0].set_ylabel("less the baseline", fontsize=9)
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LADDERS), fontsize=9)
    figure.savefig(path, dpi=DPI)


def ladder(store: Store, kind: Kind, measure: Measure) -> dict[float, Compared]:
    """Weight -> difference to the baseline, where there are runs."""
    found = {w: difference(store, TERMS, BASELINE, by_weight(kind, w), measure) for w in LADDERS[kind]}
    return {weight: one for weight, one in found.items() if one is not None}


def _line(axis: Axes, kind: Kind, found: Mapping[float, Compared]) -> None:
    if not found:
        return
    colour, marker = STYLES[kind]
    values = [one.whole.value for one in found.values()]
    below = [one.whole.value - one.whole.low for one in found.values()]
    above = [one.whole.high - one.whole.value for one in found.values()]
    axis.errorbar(
        list(found), values, yerr=[below, above], label=kind, color=colour, marker=marker, markersize=5, capsize=3,
        linewidth=1.4,
    )  # fmt: skip
