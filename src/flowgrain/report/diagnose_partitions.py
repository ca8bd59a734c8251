"""Partitions of the data compared on the page of a diagnosis, with the random control beside them."""

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_figures import MatrixColumn, level_figure, matrix_figure
from flowgrain.report.diagnose_values import (
    NO_WEIGHT,
    Values,
    at_level,
    cell_at,
    curve,
    estimate,
    grouping_named,
    main_grouping,
    matrix,
    share,
    short_title,
    supported,
    telling_level,
)
from flowgrain.report.page import Block, Bullets, Details, Figure, FigureRow, Paragraph, Table
from flowgrain.report.wording import NONE, listed, number, whole_percent

_COLUMNS = ("partition", "groups", "spectra apart", "told apart", "cross weight", "mean cosine", "against random")


def partition_blocks(values: Values) -> tuple[Block, ...]:
    """Table, curves and heat maps of all partitions."""
    main = main_grouping(values)
    t = None if main is None else telling_level(values, main)
    blocks: list[Block] = [_table(values, t)]
    figure = _curves(values)
    if figure is not None:
        blocks.append(figure)
    maps = tuple(
        _map(values, grouping) for grouping in values["groupings"] if grouping["cells"] and grouping is not main
    )
    if maps:
        blocks.append(Details("Heat maps of the other partitions", maps))
    if values["absent"]:
        blocks.append(Bullets(tuple(f"No {title}: {reason}." for title, reason in values["absent"].items())))
    return tuple(blocks)


def partition_finding(values: Values) -> list[str]:
    """How separate the levels' spectra are, and whether they differ from a random division."""
    grouping, lines = grouping_named(values, "level"), []
    if grouping is None:
        return []
    apart = grouping["separation"]
    if apart is not None:
        lines.append(
            f"Frequency spectra of {listed(grouping['groups'])}: {whole_percent(apart['between_share'])} of the "
            "variance "
            f"lies between levels ({number(100 * apart['expected_share'], 1)} % by chance), and the nearest level's "
            "mean "
            f"names the right one for {whole_percent(apart['balanced_accuracy'])} of the slices (guessing: "
            f"{whole_percent(apart['chance'])})."
        )
    t = telling_level(values, grouping)
    row = None if t is None else at_level(grouping["against_control"], t)
    if row is not None:
        found = row["mean_cosine"]
        if supported(found):
            way = "less" if found["mean"] < 0 else "more"
            lines.append(
                f"At t = {t:g} residuals of different levels are {way} alike than those of random groups of the same "
                f"sizes (mean cosine {estimate(found, sign=True)})."
            )
        else:
            lines.append(
                f"At t = {t:g} residuals of different levels are as alike as those of random groups, within the "
                "interval "
                f"(mean cosine {estimate(found, sign=True)})."
            )
    return lines


def _table(values: Values, t: float | None) -> Table:
    last = values["points"][-1]
    rows = []
    for grouping in values["groupings"]:
        sizes = zip(grouping["groups"], grouping["sizes"], strict=True)
        profile = None if t is None else at_level(grouping["profiles"], t)
        cell = None if t is None else cell_at(grouping["cells"], last, "empty", t)
        against = None if t is None else at_level(grouping["against_control"], t)
        apart = grouping["separation"]
        rows.append(
            (
                grouping["title"],
                ", ".join(f"{name} {count}" for name, count in sizes),
                NONE
                if apart is None
                else f"{number(100 * apart['between_share'], 1)} % ({number(100 * apart['expected_share'], 1)} %)",
                NONE
                if apart is None
                else f"{whole_percent(apart['balanced_accuracy'])} ({whole_percent(apart['chance'])})",
                "never meet"
                if not grouping["profiles"]
                else NONE
                if profile is None
                else share(profile["cross_weight"]),
                NONE if cell is None else estimate(cell["mean_cosine"]),
                NONE if against is None else estimate(against["mean_cosine"], sign=True),
            )
        )
    where = "no level where groups meet" if t is None else f"t = {t:g}"
    return Table(
        "Partitions.",
        "Spectra apart: share of the variance of log spectra that lies between groups, in brackets what chance "
        "gives. Told "
        "apart: slices whose spectrum is nearest to their own group's mean, in brackets guessing. Groups made from the "
        f"spectra (bands) are apart by construction. The last three columns are at {where}, {last}, empty caption: "
        "weight "
        "of the cross terms, mean cosine of different groups' residuals, and its difference from random groups of the "
        "same sizes.",
        _COLUMNS,
        tuple(rows),
        numeric=frozenset({2, 3, 4, 5, 6}),
    )


def _weight(grouping: Values, profile: Values | None) -> str:
    if not grouping["profiles"]:
        return "never meet"
    return NONE if profile is None else share(profile["cross_weight"])


def _curves(values: Values) -> FigureRow | None:
    measured = [grouping for grouping in values["groupings"] if grouping["cells"]]
    if len(measured) < 2:
        return None
    levels, figures = values["levels"], []
    for name, point in (("newest state", values["points"][-1]), ("perfect fit", values["perfect"])):
        curves = [
            curve(
                short_title(grouping),
                [_mean_cosine(grouping, point, t) for t in levels],
                Style(None if grouping["control"] else index, index),
            )
            for index, grouping in enumerate(measured)
        ]
        drawing = level_figure(f"Mean cosine, {name}", levels, curves, "cosine of different groups", zero=True)
        figures.append(Figure(drawing, f"Mean cosine of different groups' residuals by noise level, {name}."))
    return FigureRow(
        "Are these groups special?",
        "The grey line is a random division into groups as large as the first partition's. Where a partition lies on "
        "it, "
        "its groups are no more different than any "
        "groups of these sizes; where it lies below, the groups' targets differ more and their errors agree less. "
        "Levels "
        f"at which the partition's cross weight is under {NO_WEIGHT:g} are left out.",
        tuple(figures),
    )


def _mean_cosine(grouping: Values, point: str, t: float) -> Values | None:
    profile, cell = at_level(grouping["profiles"], t), cell_at(grouping["cells"], point, "empty", t)
    if profile is None or cell is None or profile["cross_weight"]["mean"] < NO_WEIGHT:
        return None
    return cell["mean_cosine"]


def _map(values: Values, grouping: Values) -> Block:
    profiles = [row for row in grouping["profiles"] if row["cross_weight"]["mean"] >= NO_WEIGHT]
    if not profiles:
        return Paragraph(f"{grouping['title']}: at no measured level do its groups meet.", "note")
    points = list(dict.fromkeys([values["points"][0], values["points"][-1], values["perfect"]]))
    columns = [MatrixColumn(f"t = {row['t']:g}", number(row["cross_weight"]["mean"], 2)) for row in profiles]
    matrices = []
    for point in points:
        cells = [cell_at(grouping["cells"], point, "empty", row["t"]) for row in profiles]
        matrices.append([None if cell is None else matrix(cell["cosines"], 1.0) for cell in cells])
    title = f"Cosines, {grouping['title'].split(' (')[0]}"
    drawing = matrix_figure(title, grouping["groups"], columns, points, matrices, ("destructive", "constructive"))
    return FigureRow(
        f"{grouping['title'][0].upper()}{grouping['title'][1:]}.",
        "Cosines of the groups' residuals at the levels where they meet; the number under t is the cross weight.",
        (Figure(drawing, f"{title}: heat maps at the levels where the groups meet."),),
    )
