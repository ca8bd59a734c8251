"""Interference of the data fields on the page of a diagnosis: where groups meet, what the cross terms are."""

from collections.abc import Sequence

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_figures import LevelCurve, Matrix, MatrixColumn, level_figure, matrix_figure
from flowgrain.report.diagnose_partitions import partition_blocks, partition_finding
from flowgrain.report.diagnose_values import (
    NO_WEIGHT,
    Values,
    at_level,
    cell_at,
    curve,
    estimate,
    main_grouping,
    matrix,
    meeting_levels,
    share,
    short_title,
    supported,
    telling_level,
)
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import counted, listed, number, whole_percent

_TINY = 1e-9
"""Share of the untrained model's loss below which a state has no residuals to compare: a perfect fit at low noise."""


def sections(values: Values) -> tuple[Section, ...]:
    """The parts of the page that come of the section ``interference``."""
    grouping = main_grouping(values)
    if grouping is None:
        reason = "; ".join(f"{title}: {reason}" for title, reason in values["absent"].items())
        return (
            Section(
                "interference",
                "Interference of the data",
                "Whether groups of the data share points of the noise, and what they ask of the model there.",
                (Paragraph(f"The training slices fall into no groups that meet ({reason}).", "warning"),),
            ),
        )
    lead = "Where in noise the groups of the data share points, and what they ask of the model there."
    blocks: tuple[Block, ...] = (
        Paragraph(_where(grouping)),
        _profiles(values),
        _terms(values, grouping, "empty"),
        _cosines(values, grouping, "empty"),
        _parts(values, grouping),
        _changes(values, grouping),
        *_own_captions(values, grouping),
        _how(values, grouping),
    )
    partitions = Section(
        "partitions",
        "Partitions compared",
        "The same measurement for other ways to divide the data, and for a random one: what any division would show.",
        partition_blocks(values),
    )
    return Section("interference", "Interference of the data", lead, blocks), partitions


def finding(values: Values) -> list[str]:
    """What the numbers say, each sentence within its interval."""
    grouping = main_grouping(values)
    if grouping is None:
        return ["Interference of the data: this run's slices fall into no groups that meet."]
    lines = [_where(grouping)]
    t = telling_level(values, grouping)
    last = cell_at(grouping["cells"], values["points"][-1], "empty", t) if t is not None else None
    if t is not None and last is not None:
        lines += [_cross_terms(values, grouping, t, last), *_change(values, grouping, t)]
    return lines + partition_finding(values)


def _where(grouping: Values) -> str:
    meeting = meeting_levels(grouping)
    alone = [f"{profile['t']:g}" for profile in grouping["profiles"] if profile not in meeting]
    below = f"; at t = {listed(alone)} each noised picture belongs to one of them and there are none" if alone else ""
    if not meeting:
        return f"At no measured noise level do {grouping['title']} share noised pictures: the loss has no cross terms."
    parts = [f"{share(profile['cross_weight'])} at t = {profile['t']:g}" for profile in meeting]
    return f"Of the weight in the loss, the cross terms of {grouping['title']} have {listed(parts)}{below}."


def _cross_terms(values: Values, grouping: Values, t: float, last: Values) -> str:
    name, found = values["points"][-1], last["correlation"]
    if not supported(found):
        verdict = "their interval contains 0, so neither synergy nor conflict is supported"
    elif found["mean"] > 0:
        verdict = "constructive in the paper's words: the groups' errors point the same way"
    else:
        verdict = "destructive in the paper's words, which lowers the local loss"
    perfect = cell_at(grouping["cells"], values["perfect"], "empty", t)
    beside = "" if perfect is None else f"; a model without error would have {estimate(perfect['correlation'])}"
    return (
        f"At t = {t:g}, asked with the empty caption, {name} has cross terms of {estimate(found, sign=True)} in a "
        f"local loss of {estimate(last['loss'])}: {verdict}{beside}."
    )


def _change(values: Values, grouping: Values, t: float) -> list[str]:
    row = at_level(grouping["changes"], t, captions="empty")
    if row is None:
        return []
    found, name = row["correlation"], values["points"][-1]
    if not supported(found):
        return [
            f"Training changed these cross terms by nothing that the interval supports ({estimate(found, sign=True)})."
        ]
    return [f"Training moved these cross terms by {estimate(found, sign=True)}, {name} against no adapter."]


def _profiles(values: Values) -> FigureRow:
    levels = values["levels"]
    measured = [grouping for grouping in values["groupings"] if grouping["profiles"]]
    weights = [
        curve(
            short_title(grouping),
            [_profile(grouping, t, "cross_weight") for t in levels],
            Style(None if grouping["control"] else index, index),
        )
        for index, grouping in enumerate(measured)
    ]
    first = measured[0]
    effective = [row["effective_samples"] if (row := at_level(first["profiles"], t)) else None for t in levels]
    nothing: list[float | None] = [None] * len(levels)
    told = ", ".join(f"t = {t:g}: {number(n, 1)}" for t, n in zip(levels, effective, strict=True) if n is not None)
    slices = LevelCurve("slices", effective, nothing, nothing, Style(0))
    return FigureRow(
        "Where groups meet.",
        "Left: the weight of all cross terms in the loss (1 − sum of alpha²). At 0 each noised picture belongs to one "
        "group alone, and whatever a heat map shows there is no part of the loss. Right: how many training latents a "
        "noised picture could have come from. In many dimensions both rise only in a narrow band near pure noise.",
        (
            Figure(
                level_figure("Weight of cross terms", levels, weights, "share of the loss's weights"),
                f"Weight of cross terms by noise level, {first['title']}: "
                + ", ".join(f"t = {row['t']:g}: {number(row['cross_weight']['mean'], 3)}" for row in first["profiles"]),
            ),
            Figure(
                level_figure("Latents behind a point", levels, [slices], "effective number", log=True),
                f"Effective number of latents by noise level: {told}",
            ),
        ),
    )


def _profile(grouping: Values, t: float, name: str) -> Values | None:
    row = at_level(grouping["profiles"], t)
    return None if row is None else row[name]


def map_columns(grouping: Values) -> list[MatrixColumn]:
    """A column for each measured noise level, with the weight of its cross terms; faint where that is nothing."""
    return [
        MatrixColumn(
            f"t = {row['t']:g}",
            f"cross weight {number(row['cross_weight']['mean'], 2)}",
            row["cross_weight"]["mean"] < NO_WEIGHT,
        )
        for row in grouping["profiles"]
    ]


def map_figure(
    values: Values, grouping: Values, captions: str, quantity: str, title: str, points: Sequence[str]
) -> Figure:
    """Matrices of ``terms`` (over the independent part) or ``cosines``, a row a state, a column a noise level."""
    first = values["points"][0]

    def one(point: str, t: float) -> Matrix | None:
        own = "empty" if point == values["perfect"] else captions
        cell, start = cell_at(grouping["cells"], point, own, t), cell_at(grouping["cells"], first, captions, t)
        if cell is None or start is None or cell["independent"]["mean"] <= _TINY * start["independent"]["mean"]:
            return None
        return matrix(cell[quantity], cell["independent"]["mean"] if quantity == "terms" else 1.0)

    columns = map_columns(grouping)
    matrices = [[one(point, row["t"]) for row in grouping["profiles"]] for point in points]
    drawing = matrix_figure(title, grouping["groups"], columns, points, matrices, ("destructive", "constructive"))
    return Figure(drawing, _alt(values, grouping, captions, quantity, title))


def _alt(values: Values, grouping: Values, captions: str, quantity: str, title: str) -> str:
    last, t = values["points"][-1], telling_level(values, grouping)
    cell = None if t is None else cell_at(grouping["cells"], last, captions, t)
    if cell is None:
        return f"{title}: heat maps by noise level and state."
    found = cell["mean_cosine" if quantity == "cosines" else "correlation"]
    what = "mean cosine of different groups" if quantity == "cosines" else "all cross terms"
    return f"{title}: heat maps by noise level and state; {last} at t = {t:g}, {what}: {estimate(found)}."


def _terms(values: Values, grouping: Values, captions: str) -> FigureRow:
    points = [*values["points"], values["perfect"]]
    figure = map_figure(
        values, grouping, captions, "terms", "Terms of the local loss over its independent part", points
    )
    return FigureRow(
        "The interference matrix in the loss (the paper's Fig. 2).",
        "One small matrix for each noise level and state of the model: alpha_i alpha_j <Delta_i, Delta_j>, where "
        "alpha_i "
        "is the weight of group i at a noised picture and Delta_i the model's distance from that group's target. All "
        "is "
        "divided by the sum of the diagonal (independent learning), which therefore sums to 1. Blue off the "
        "diagonal: the "
        "errors towards two groups point the same way and add to the loss (constructive). Orange: they cancel "
        "(destructive). Orange is not bad by itself: of a model without any error (last row) the whole matrix sums "
        "to 0, "
        "so that the entries off its diagonal sum to −1. A number is written where the interval excludes 0 and the "
        "entry "
        "is at least 0.005; – means that there is no error to split. Faint: the cross terms have no weight at this "
        "level.",
        (figure,),
    )


def _cosines(values: Values, grouping: Values, captions: str) -> FigureRow:
    points = [*values["points"], values["perfect"]]
    figure = map_figure(values, grouping, captions, "cosines", "Cosines of the groups' residuals", points)
    return FigureRow(
        "Directions alone.",
        "The cosine of two groups' residuals, whatever their weight: 1 the same direction, 0 unrelated, −1 opposite; "
        "the diagonal is 1. Where a column is faint these are residuals of groups that the loss does not mix: do not "
        "read them as interference.",
        (figure,),
    )


def _parts(values: Values, grouping: Values) -> FigureRow:
    levels, states = values["levels"], _ends(values)
    figures = []
    for name, title in (("loss", "Local loss"), ("independent", "Independent part"), ("correlation", "Cross terms")):
        curves = [
            curve(
                point,
                [
                    None if (cell := cell_at(grouping["cells"], point, "empty", t)) is None else cell[name]
                    for t in levels
                ],
                style,
            )
            for point, style in states
        ]
        drawing = level_figure(title, levels, curves, f"squared {values['quantity']} error", zero=True)
        figures.append(Figure(drawing, f"{title} by noise level of {listed([point for point, _ in states])}."))
    return FigureRow(
        "The loss and its two parts (Eq. 3).",
        f"Local loss = squared distance of the model's {values['quantity']} from the data's own field, by latent "
        "element: "
        "the sum of the other two panels. It is not the training loss, which also counts the spread of the data about "
        "its field (Corollary 1). Upright lines are 95 % intervals by picture.",
        tuple(figures),
    )


def _value(grouping: Values, point: str, t: float, name: str) -> Values | None:
    cell = cell_at(grouping["cells"], point, "empty", t)
    return None if cell is None else cell[name]


def _ends(values: Values) -> list[tuple[str, Style]]:
    points = values["points"]
    named = [(points[0], Style(None))]
    if len(points) > 1:
        named.append((points[-1], Style(0, 1)))
    return [*named, (values["perfect"], Style(1, 2))]


def _changes(values: Values, grouping: Values) -> Block:
    if not grouping["changes"]:
        return Paragraph("One state was measured: there is no change to show.", "note")
    names = {"empty": "empty", "own": "own (heuristic)"}
    rows = tuple(
        (
            f"t = {row['t']:g}, {names[row['captions']]} caption",
            estimate(row["loss"], sign=True),
            estimate(row["correlation"], sign=True) if _has_weight(grouping, row["t"]) else "no weight",
            estimate(row["mean_cosine"], sign=True),
        )
        for row in grouping["changes"]
    )
    return Table(
        "What training changed.",
        f"{values['points'][-1]} minus {values['points'][0]}, at the same points, with 95 % intervals by picture: "
        "local "
        "loss, its cross terms, and the mean cosine of different groups.",
        ("noise level", "local loss", "cross terms", "mean cosine"),
        rows,
        numeric=frozenset({1, 2, 3}),
    )


def _has_weight(grouping: Values, t: float) -> bool:
    row = at_level(grouping["profiles"], t)
    return row is not None and row["cross_weight"]["mean"] >= NO_WEIGHT


def _own_captions(values: Values, grouping: Values) -> tuple[Block, ...]:
    if not any(cell["captions"] == "own" for cell in grouping["cells"]):
        return ()
    text = (
        "Heuristic. The fields are those of all the data and know no caption; a model that is given the caption of the "
        "point's own slice aims at the data of that caption. Its distance from these fields is therefore no error "
        "alone, and its cross terms at high noise are large because the caption tells it what the noise hides. Compare "
        "states with each other, not with 0."
    )
    return (
        Details(
            "The same with each slice's own caption (heuristic)",
            (Paragraph(text, "warning"), _terms(values, grouping, "own"), _cosines(values, grouping, "own")),
        ),
    )


def _how(values: Values, grouping: Values) -> Details:
    checks = values["checks"]
    shapes = ", ".join(f"{shape['latents']} of {'x'.join(map(str, shape['shape']))}" for shape in values["shapes"])
    part = "" if values["slices"] == values["slices_in_run"] else f" of {values['slices_in_run']}, whole roots drawn"
    drop = values["caption_dropout"]
    told = (
        f"The run left out captions with probability {drop:g}."
        if drop
        else "The run never left out a caption: with the empty one the model answers a question it was not trained on."
    )
    text = (
        f"{counted(values['slices'], 'slice')}{part}, {counted(values['latents'], 'latent')} ({shapes})"
        f"{', mirror images included' if values['mirrored'] else ''}; {counted(values['queries'], 'query point')} a "
        "noise "
        f"level from {counted(values['pictures'], 'picture')}. {whole_percent(grouping['covered'])} of the latents "
        "have "
        f"one shape with two or more of the groups; others cannot meet and are left out. {told}"
    )
    error = "none" if checks["identity"] is None else f"{checks['identity']:.1e}"
    proof = (
        f"Checks: alpha' Omega alpha equals the squared distance from the field to {error} of its parts (Eq. 20); the "
        f"field of all the data is the same from every partition to {checks['marginal']:.1e}."
    )
    near = Table(
        "How few latents make a field.",
        f"What would be lost with the {values['nearest']} nearest latents of each group alone: their missing weight, "
        "and a "
        "bound on the field's relative error. All figures use all latents.",
        ("noise level", "missing weight", "bound on the error"),
        tuple(
            (f"t = {row['t']:g}", number(row["neglected"], 4), number(row["field_error_bound"], 4))
            for row in values["concentration"]
        ),
        numeric=frozenset({1, 2}),
    )
    return Details("How this was measured", (Paragraph(text), Paragraph(proof), near))
