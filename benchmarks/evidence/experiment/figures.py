"""Pictures of the results: learning curves, heat maps by domain, intervals of effects, sheets of drawn pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .claims import Compared

DPI = 130
COLOURS = ("#444444", "#1f77b4", "#2ca02c", "#9467bd", "#d62728", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22")
MARKERS = "osD^vP*X<>"
_TILE = 96
_LABEL = 132


def learning_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], x_title: str, path: Path
) -> None:
    """One panel for each title: arm -> (x, loss)."""
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for number, (arm, (x, y)) in enumerate(curves.items()):
            axis.plot(x, y, label=arm, color=COLOURS[number], marker=MARKERS[number], markersize=4, linewidth=1.3)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_title, fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("held-out loss", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=DPI)


def heat_map(found: Sequence[Compared], title: str, path: Path) -> None:
    """Measures by domains; blue where the second arm is better, the difference over its standard error as colour."""
    domains = list(found[0].by_domain)
    scores = np.array([[_score(one, domain) for domain in domains] for one in found])
    figure = Figure(figsize=(2.6 + 1.35 * len(domains) + 2.6, 0.8 + 0.34 * len(found)), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(np.clip(scores, -4, 4), cmap="RdBu", vmin=-4, vmax=4, aspect="auto")
    axis.set_xticks(range(len(domains)), domains, fontsize=9)
    axis.set_yticks(range(len(found)), [one.measure.name for one in found], fontsize=8)
    for row, one in enumerate(found):
        for column, domain in enumerate(domains):
            part = one.by_domain[domain]
            mark = "*" if part.excludes_zero else ""
            colour = "white" if abs(scores[row, column]) > 2.6 else "black"
            text = f"{part.value:+.{min(one.measure.digits, 4)}f}{mark}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_title(title, fontsize=10)
    bar = figure.colorbar(shown, ax=axis)
    bar.set_label("better by so many standard errors", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=DPI)


def effects(groups: Mapping[str, Sequence[Compared]], path: Path) -> None:
    """Intervals of differences, one panel a measure, one line a comparison; to the left the second arm is better."""
    measures = list(dict.fromkeys(one.measure.name for found in groups.values() for one in found))
    figure = Figure(figsize=(3.3 * len(measures) + 1.5, 0.9 + 0.3 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, measures, strict=True):
        for place, found in enumerate(groups.values()):
            one = next((one for one in found if one.measure.name == name), None)
            if one is None:
                continue
            sign = 1 if one.measure.better == "lower" else -1
            value, ends = sign * one.whole.value, sorted((sign * one.whole.low, sign * one.whole.high))
            colour = "#777777" if not one.whole.excludes_zero else ("#1f77b4" if value < 0 else "#d62728")
            axis.plot(ends, [place, place], color=colour, linewidth=2)
            axis.plot([value], [place], "o", color=colour, markersize=5)
            for part in one.by_domain.values():
                axis.plot([sign * part.value], [place], "|", color=colour, markersize=9, alpha=0.6)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(groups)), list(groups), fontsize=8)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=DPI)


def sheet(rows: Sequence[tuple[str, Sequence[Path | None]]], columns: Sequence[str], path: Path) -> None:
    """Pictures in a grid, a prompt a row."""
    font = ImageFont.load_default(11)
    canvas = Image.new("RGB", (_LABEL + _TILE * len(columns), 18 + _TILE * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, name in enumerate(columns):
        draw.text((_LABEL + column * _TILE + _TILE / 2, 9), name, fill="black", font=font, anchor="mm")
    for row, (prompt, pictures) in enumerate(rows):
        top = 18 + row * _TILE
        draw.multiline_text((4, top + _TILE / 2), _wrapped(prompt), fill="black", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            if picture is not None:
                with Image.open(picture) as image:
                    tile = image.convert("RGB").resize((_TILE - 2, _TILE - 2), Image.Resampling.LANCZOS)
                canvas.paste(tile, (_LABEL + column * _TILE, top))
    canvas.save(path, optimize=True)


def _wrapped(text: str, width: int = 20) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _score(one: Compared, domain: str) -> float:
    part = one.by_domain[domain]
    sign = 1 if one.measure.better == "higher" else -1
    return sign * part.value / part.error if part.error > 0 else 0.0
