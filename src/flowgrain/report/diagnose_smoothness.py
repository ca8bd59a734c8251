"""Smoothness of the target field on the page of a diagnosis."""

from collections.abc import Sequence

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_gradients_figures import IntervalCurve, curve_figure, interval_curve
from flowgrain.report.diagnose_values import Values
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import counted, listed, number

ALL, WHOLE = "all slices", "whole pictures"


def sections(values: Values) -> tuple[Section, ...]:
    """The part of the page that comes of the section ``smoothness``."""
    blocks: tuple[Block, ...] = (
        *(Paragraph(text) for text in finding(values)),
        _figures(values),
        _table(values),
        _how(values),
    )
    lead = "Whether more data makes the field that the network is to learn smoother (the paper's E.6.3)."
    return (Section("smoothness", "Smoothness of the target", lead, blocks),)


def finding(values: Values) -> list[str]:
    """Where the most data have a smoother or a steeper field than few, by intervals that do not overlap."""
    smoother, steeper, open_ = [], [], []
    for level in values["curves"][ALL]:
        counts = level["counts"]
        few, many = _few(counts), counts[-1]
        if many["high"] < few["low"]:
            smoother.append(level["t"])
        elif many["low"] > few["high"]:
            steeper.append(level["t"])
        else:
            open_.append(level["t"])
    last = values["curves"][ALL][0]["counts"]
    parts = []
    if smoother:
        parts.append(f"smoother at t = {_levels(smoother)}")
    if steeper:
        parts.append(f"steeper at t = {_levels(steeper)}")
    if open_:
        parts.append(f"not told apart at t = {_levels(open_)}")
    few = _few(last)["count"]
    return [
        f"The target field of {counted(last[-1]['count'], 'slice')} against that of {few}: {'; '.join(parts)}. "
        "E.6.3 expects smoother; it is not a theorem."
    ]


def _few(counts: Sequence[Values]) -> Values:
    """Four latents, or the second number where there are fewer: one latent has a field without any choice."""
    return next((row for row in counts if row["count"] >= 4), counts[min(1, len(counts) - 1)])


def _levels(levels: Sequence[float]) -> str:
    return listed([f"{t:g}" for t in levels])


def _curve(label: str, level: Values, style: Style) -> IntervalCurve:
    counts = level["counts"]
    return interval_curve(label, [row["count"] for row in counts], counts, style)


def _figures(values: Values) -> FigureRow:
    figures = []
    for place, level in enumerate(values["curves"][ALL]):
        curves = [_curve(ALL, level, Style(0, 0))]
        if WHOLE in values["curves"]:
            curves.append(_curve(WHOLE, values["curves"][WHOLE][place], Style(1, 1)))
        floor = values["identity_norm"][place]["norm"]
        if floor is None:
            floor = 0.0
        drawing = curve_figure(
            f"t = {level['t']:g}",
            curves,
            "number of latents",
            "norm of the field's Jacobian",
            lines=((floor, "one latent"),),
            log_x=True,
            log_y=True,
        )
        last = level["counts"][-1]
        told = f"{last['count']} latents: {last['mean']:.3g}, {number(last['neighbours'], 1)} of them decide a point"
        figures.append(
            Figure(drawing, f"Norm of the Jacobian over the number of latents at t = {level['t']:g}. {told}.")
        )
    return FigureRow(
        "How steep the target field is.",
        "The field that the loss asks for on 1, 2, 4, ... latents: how much its value changes with a small step of the "
        "noised picture (local Lipschitz constant, geometric mean over points). Low is smooth. The grey line is the "
        "field of a "
        "single latent. Curves rise where a few latents compete for a point, which makes a switch between them, and "
        "fall "
        "again where many share it. Compare the two curves at one number: slices of many kinds against whole pictures. "
        "Upright lines: 95 % intervals over draws of latents and noise.",
        tuple(figures),
    )


def _table(values: Values) -> Table:
    rows = []
    for name, levels in values["curves"].items():
        for level in levels:
            few, last = _few(level["counts"]), level["counts"][-1]
            rows.append(
                (
                    f"{name}, t = {level['t']:g}",
                    f"{few['count']}: {_ends(few)}",
                    f"{last['count']}: {_ends(last)}",
                    number(last["neighbours"], 1),
                )
            )
    return Table(
        "Few and many latents.",
        "Number of latents: norm of the Jacobian (95 % interval), and how many latents decide a point at the larger "
        "number. Near 1 the field there is that of the nearest latent, however many there are.",
        ("data and noise level", "few", "many", "neighbours"),
        tuple(rows),
        numeric=frozenset({1, 2, 3}),
    )


def _ends(row: Values) -> str:
    return f"{row['mean']:.3g} ({row['low']:.3g} to {row['high']:.3g})"


def _how(values: Values) -> Details:
    shape = "x".join(map(str, values["shape"]))
    text = (
        f"The exact Jacobian of the empirical field (Eq. 12) on the run's own latents of size {shape}, mirror images "
        "left "
        f"out, by power iteration; at {counted(values['points'], 'point')} a draw made of {values['points_from']}, "
        f"never of pictures among the data; {counted(values['draws'], 'draw')}. About the target alone: nothing of the "
        "network is in it."
    )
    return Details("How it was measured", (Paragraph(text, "note"),))
