"""The training path on the page of a diagnosis: how far it went, where it is good, and how straight it was."""

from collections.abc import Sequence
from typing import Any

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_gradients_figures import IntervalCurve, curve_figure, interval_curve
from flowgrain.report.diagnose_path_figures import colour_limit, plane_figure, regime_figure
from flowgrain.report.diagnose_values import Values, estimate, supported
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import NONE, counted, listed, number, whole_percent


def sections(values: Values) -> tuple[Section, ...]:
    """The parts of the page that come of the section ``path``."""
    blocks: tuple[Block, ...] = (
        *(Paragraph(text) for text in finding(values)),
        _distances(values),
        _points(values),
        *_plane(values),
        *_oscillation(values),
        _how(values),
    )
    lead = "How far the run moved from the model that it began with, what it gained there, and by which way."
    return (Section("path", "The path of training", lead, blocks),)


def finding(values: Values) -> list[str]:
    """Gain and regime of the last checkpoint, and whether updates undo one another."""
    last, lines = values["points"][-1], []
    found = last["change"]["all"]
    where = "held-out" if values["held_out"] else "training"
    if len(values["points"]) > 1:
        verdict = "" if supported(found) else ", which the interval does not tell from none"
        lines.append(
            f"Training up to {last['point']} changed the {where} loss by {estimate(found, sign=True)} against no "
            f"adapter{verdict}."
        )
    regimes = values["regimes"]
    if regimes is not None:
        best = _best(values)
        lines.append(
            f"By our rule of regimes (no theorem) {last['point']} is: {regimes['regime'][-1]}; the least loss of the "
            f"measured states is that of {values['points'][best]['point']}."
        )
    logged = values["oscillation"]
    if logged:
        row = logged[-1]
        if row["mean_cosine"] is not None:
            way = "go on the same way" if row["mean_cosine"] > 0 else "undo one another"
            lines.append(
                f"Before update {row['update']} successive parameter updates {way} (mean cosine "
                f"{number(row['mean_cosine'], 2, True)}; momentum alone makes it positive)."
            )
    return lines


def _best(values: Values) -> int:
    losses = [point["loss"]["all"] for point in values["points"]]
    return losses.index(min(losses))


def _distances(values: Values) -> FigureRow:
    points, levels = values["points"], values["level_names"]
    regimes = None if values["regimes"] is None else values["regimes"]["regime"]
    updates = [point["update"] for point in points]
    curves = []
    for index, level in enumerate((*levels, "all")):
        found = [point["change"][level] for point in points]
        style = Style(None, index) if level == "all" else Style(3 + index, index)
        curves.append(interval_curve(level, updates, found, style))
    change = curve_figure(
        "Change of the loss", curves, "updates", "loss minus that without adapter", lines=((0.0, "none"),)
    )
    told = "; ".join(f"{point['point']}: {number(point['loss']['all'], 4)}" for point in points)
    rule = (
        ""
        if values["regimes"] is None
        else " Rings show the regime by a rule of ours, since the paper's Fig. 3 has none: goal is where at least "
        f"{whole_percent(values['regimes']['rule']['reach'])} of the run's best gain is reached, out of domain what "
        "lies "
        "farther from the prior than the best goal state and has lost the gain, underfit the rest. Without pictures "
        "drawn, leaving the domain shows in the loss alone."
    )
    return FigureRow(
        "Distance from the prior and gain (the paper's Fig. 3).",
        "Left: the loss against how far the predictions moved from those of the model without adapter; training goes "
        f"to the right as long as it moves away.{rule} Right: the change of the loss by level over training, with 95 % "
        "intervals by picture; curves that part say that one level gains at another's cost or sooner.",
        (
            Figure(regime_figure(points, levels, regimes), f"Loss by state over distance. {told}."),
            Figure(change, f"Change of the loss over updates by level. {told}."),
        ),
    )


def _points(values: Values) -> Table:
    regimes = values["regimes"]
    rows = []
    for index, point in enumerate(values["points"]):
        rows.append(
            (
                point["point"],
                number(point["loss"]["all"], 4),
                NONE if index == 0 else estimate(point["change"]["all"], sign=True),
                f"{point['prediction_distance']:.2g}",
                NONE if index == 0 else f"{point['weight_change']:.3g} ({100 * point['weight_change_relative']:.2g} %)",
                NONE if regimes is None or regimes["gain_share"][index] is None
                else whole_percent(regimes["gain_share"][index]),
                NONE if regimes is None else regimes["regime"][index],
            )
        )  # fmt: skip
    kind = values["points"][-1]["kind"]
    moved = {"dora": "W' − W of the rescaled rows", "lora": "s B A", "full": "W' − W"}[kind]
    return Table(
        "The states.",
        f"Loss and its change with a 95 % interval by picture; mean squared difference of the predictions from the "
        f"prior's; Frobenius norm of the effective change of the weights ({kind}: {moved}, not of its factors) and its "
        "part of the adapted weights; share of the best gain; regime.",
        ("state", "loss", "change", "prediction distance", "weight change", "gain", "regime"),
        tuple(rows),
        numeric=frozenset({1, 2, 3, 4, 5}),
    )


def _plane(values: Values) -> tuple[Block, ...]:
    plane = values["plane"]
    if plane is None:
        return (Paragraph(f"No plane of the path: {values['why_no_plane']}.", "note"),)
    limit = colour_limit(plane)
    names = ["all", *values["level_names"]] if len(values["level_names"]) > 1 else ["all"]
    titles = {"all": "All slices together"}
    figures = tuple(
        Figure(
            plane_figure(titles.get(name, name), plane, name, limit),
            f"Loss of {name} slices on the plane of the path, from {number(min(map(min, plane['loss'][name])), 4)} to "
            f"{number(max(map(max, plane['loss'][name])), 4)}; at the last checkpoint "
            f"{number(plane['last_loss'][name], 4)}.",
        )
        for name in names
    )
    walk = _shares(plane["random_walk_explained"])
    away = max(plane["distance_from_plane"]) / plane["extent"] if plane["extent"] else 0.0
    apart = max(abs(a - b) for a, b in zip(plane["own_loss"], plane["plane_loss"], strict=True))
    return (
        FigureRow(
            "The loss around the path (the paper's Figs. 3 and 6, measured).",
            "The plane of the two main directions in which the adapter's parameters moved; dots are checkpoints with "
            "their update, the star is the last. Blue: less loss than there; orange: more; all panels share their "
            "colours. Inside the dotted line of the first panel the difference to the last checkpoint is within two "
            "standard errors over pictures: shapes there mean nothing. Levels whose valleys lie apart would pull an "
            "update to different sides; valleys in one place do not. A plane is a slice: what looks like a barrier "
            "here need not be one in other directions.",
            figures,
        ),
        Paragraph(
            f"About their mean the points of the path have {_shares(plane['explained_about_mean'])} of their spread "
            "along "
            f"the two main directions; a random walk of {counted(len(plane['updates']), 'point')} has {walk}, which "
            "means nothing. "
            f"The points lie up to {whole_percent(away)} of the path's extent off this plane, and the loss at their "
            f"places in it differs from their own by up to {number(apart, 5)}.",
            "note",
        ),
    )


def _shares(shares: Sequence[float]) -> str:
    return listed([whole_percent(share) for share in shares])


def _oscillation(values: Values) -> tuple[Block, ...]:
    logged = values["oscillation"]
    if not logged:
        return _between(values)
    updates = [row["update"] for row in logged]
    nothing: list[float | None] = [None] * len(updates)

    def line(label: str, key: str, index: int | None, dash: int) -> IntervalCurve:
        return IntervalCurve(label, updates, [row[key] for row in logged], nothing, nothing, Style(index, dash))

    straight = curve_figure(
        "Straightness",
        [line("measured", "straightness", 0, 0), line("independent steps", "random_straightness", None, 1)],
        "updates",
        f"of {logged[-1]['updates']} updates",
    )
    cosine = curve_figure(
        "Successive updates",
        [line("mean cosine", "mean_cosine", 0, 0), line("share at high frequency", "high_frequency_share", 1, 1)],
        "updates",
        "cosine, share",
        lines=((0.0, "cosine 0"), (0.5, "share 1/2")),
    )
    last = logged[-1]
    told = ", ".join(f"{key.replace('_', ' ')} {_value(last[key])}" for key in ("straightness", "mean_cosine"))
    return (
        FigureRow(
            "Oscillation (the paper's Fig. 6).",
            f"Of windows of {last['updates']} parameter updates, from the log. Left: net way over length of way; 1 "
            "is a straight line, and independent steps have the grey line, not 0: only below it do updates undo one "
            "another. "
            "Right: cosine of each update with the one before, and the share of energy at periods below four updates "
            "(independent steps: 0 and 1/2). The "
            "optimizer's momentum makes successive updates alike whatever the gradients do: compare runs with the same "
            "optimizer and learning rate. No intervals: each value is one window, off by about 0.03.",
            (
                Figure(straight, f"Straightness over updates; last window: {told}."),
                Figure(cosine, f"Cosine of successive updates and high-frequency share; last window: {told}."),
            ),
        ),
    )


def _between(values: Values) -> tuple[Block, ...]:
    found = values["checkpoint_oscillation"]
    text = "Oscillation of single updates was not logged: train with interference.every=50 to see it."
    if found is None:
        return (Paragraph(text, "note"),)
    return (
        Paragraph(
            f"{text} The {counted(found['differences'], 'stretch', 'stretches')} between checkpoints have a mean "
            f"cosine of {_value(found['mean_cosine'])} and a straightness of {_value(found['straightness'])} "
            f"(independent steps: {_value(found['random_straightness'])}). Each stretch sums many updates, of unequal "
            "number: this says whether the run turned, not whether its updates oscillate.",
            "note",
        ),
    )


def _value(value: Any) -> str:
    return NONE if value is None else number(value, 2)


def _how(values: Values) -> Details:
    kind = "held-out" if values["held_out"] else "training (the run has no held-out pictures, hence no regimes)"
    levels = listed([f"{t:g}" for t in values["noise_levels"]])
    text = (
        f"Losses are unweighted means over {counted(values['slices'], kind + ' slice')} of "
        f"{counted(values['roots'], 'picture')} at t = {levels}, with the fixed noise of validation: the same inputs "
        "at "
        "every state and grid point, so that differences are paired. Few inputs, hence wide intervals; the run's own "
        "validation has more. States are the weights that pictures are drawn with (the moving average where the recipe "
        "has one). The plane is fitted to the adapter's parameters, factors included."
    )
    return Details("How it was measured", (Paragraph(text, "note"),))
