"""Variant against variant: first places by evaluator, supported differences, win rates and strengths."""

from collections.abc import Mapping, Sequence

from flowgrain.evaluate.ranking.summary import Difference, Estimate, WinRate
from flowgrain.report.canvas import Style
from flowgrain.report.evaluation import Ballot
from flowgrain.report.page import Block, Bullets, Details, Figure, FigureRow, Section, Table
from flowgrain.report.rank_figures import ForestRow, HeatCell, forest, heat_map
from flowgrain.report.sections.rankings import table_of_first_places
from flowgrain.report.wording import NONE, decimal, number, p_value, percent, points, share


def preferences_section(sources: tuple[Ballot, ...], styles: Mapping[str, Style]) -> Section | None:
    """Table 2, which differences are supported, pairwise win rates, strengths and scores."""
    ballots = tuple(ballot for ballot in sources if ballot.summary.first_place)
    blocks = [*(_ranked(ballots, styles) if ballots else ()), *(_scores(b) for b in sources if b.summary.scores)]
    if not blocks:
        return None
    return Section(
        "variants",
        "Variant against variant",
        "Who comes first how often, and who is preferred to whom.",
        tuple(blocks),
    )


def _ranked(ballots: tuple[Ballot, ...], styles: Mapping[str, Style]) -> list[Block]:
    blocks: list[Block] = [table_of_first_places(ballots)]
    for ballot in ballots:
        differences = ballot.summary.first_place_differences.get(ballot.main, ())
        if differences:
            blocks.append(_differences(ballot, differences))
    for ballot in ballots:
        if ballot.summary.pairwise.get(ballot.main):
            blocks.append(_pairs(ballot, styles))
            blocks.append(Details(f"{ballot.title}: win rates and strengths in numbers", _numbers(ballot)))
    blocks.append(
        Bullets(
            (
                "Win rate: of the answers that compare two variants, how often one was put before the other; a tie "
                "counts half.",
                "Strength (Bradley-Terry from pairs, Plackett-Luce from whole rankings): one number a variant that "
                "explains who is put before whom. Only differences mean something: a difference of 0.7 is two to one.",
            )
        )
    )
    return blocks


def _scores(ballot: Ballot) -> Details:
    """Mean scores, and which of their differences are supported."""
    scores = ballot.summary.scores
    variants = [v for v in ballot.summary.variants if any(v in found.mean for found in scores.values())]
    rows = tuple(
        (ballot.dimension_title(name), *(decimal(found.mean.get(v), 1).replace(" (", "\n(") for v in variants))
        for name, found in scores.items()
    )
    tests = tuple(
        (
            ballot.dimension_title(name),
            f"{d.second} − {d.first}",
            decimal(d.difference, 1),
            p_value(d.p_holm),
            d.ahead or "no difference supported",
        )
        for name, found in scores.items()
        for d in found.differences
    )
    level = percent(ballot.summary.level)
    means = Table(
        "Mean scores.",
        f"From 0 to 100, with {level} intervals.",
        ("dimension", *variants),
        rows,
        frozenset(range(1, len(variants) + 1)),
    )
    differences = Table(
        "Differences of scores.",
        "Second minus first on the same questions; p-values are corrected by Holm within a dimension.",
        ("dimension", "pair", "difference", "p, corrected", "ahead"),
        tests,
        frozenset({2, 3}),
    )
    return Details(f"{ballot.title}: scores from 0 to 100", (means, differences))


def gain(difference: Difference) -> Estimate:
    """The difference as that of the variant that is ahead over the other one."""
    given = difference.difference
    if difference.ahead != difference.first:
        return given
    low, high = (None if end is None else -end for end in (given.high, given.low))
    return Estimate(value=-given.value, low=low, high=high, n=given.n)


def _differences(ballot: Ballot, differences: Sequence[Difference]) -> Table:
    return Table(
        f"{ballot.title}: differences of first-place rates.",
        f"Second minus first in percentage points on the same questions. “Ahead” is filled only where the p-value, "
        f"corrected by Holm for {len(differences)} comparisons, is at most {number(1 - ballot.summary.level, 2)}.",
        ("pair", "difference", "p", "p, corrected", "ahead"),
        tuple(
            (
                f"{d.second} − {d.first}",
                points(d.difference),
                p_value(d.p_value),
                p_value(d.p_holm),
                d.ahead or "no difference supported",
            )
            for d in differences
        ),
        numeric=frozenset({1, 2, 3}),
    )


def _pairs(ballot: Ballot, styles: Mapping[str, Style]) -> FigureRow:
    who = "People" if ballot.people else "LLM judge"
    variants = ballot.variants_on(ballot.main)
    rates = ballot.summary.pairwise[ballot.main]
    cells = [[_heat_cell(rates, row, column) for column in variants] for row in variants]
    strengths = ballot.summary.strengths.get(ballot.main)
    figures = [
        Figure(
            heat_map(f"{who}: % of wins of row over column", variants, variants, cells, balanced=True),
            f"{who}, win rates: {'; '.join(_win_sentence(rate) for rate in rates)}.",
        )
    ]
    if strengths is not None:
        found = strengths.plackett_luce
        rows = [ForestRow(v, found[v].value, found[v].low, found[v].high, styles[v]) for v in variants if v in found]
        drawing = forest(f"{who}: Plackett-Luce strength", rows, "log strength (right: preferred)")
        values = ", ".join(f"{row.label} {decimal(found[row.label])}" for row in rows)
        figures.append(Figure(drawing, f"{who}, Plackett-Luce log strengths: {values}."))
    return FigureRow(
        f"{who}: pairs and strengths, {ballot.dimension_title(ballot.main)}.",
        "Left: how often the variant of the row was put before that of the column; bold where the interval excludes an "
        "even 50 %. Right: strengths with their intervals, whose average is 0.",
        tuple(figures),
    )


def win_rate(rates: Sequence[WinRate], winner: str, other: str) -> Estimate | None:
    """How often ``winner`` was put before ``other``; None where the two were never compared."""
    for rate in rates:
        if (rate.first, rate.second) == (winner, other):
            return rate.rate
        if (rate.first, rate.second) == (other, winner):
            given = rate.rate
            low = None if given.high is None else 1 - given.high
            high = None if given.low is None else 1 - given.low
            return Estimate(value=1 - given.value, low=low, high=high, n=given.n)
    return None


def uneven(rate: Estimate) -> bool:
    """Whether the interval of a win rate excludes one half."""
    return rate.low is not None and rate.high is not None and (rate.low > 0.5 or rate.high < 0.5)


def _heat_cell(rates: Sequence[WinRate], row: str, column: str) -> HeatCell | None:
    rate = None if row == column else win_rate(rates, row, column)
    return None if rate is None else HeatCell(rate.value, uneven(rate))


def _win_sentence(rate: WinRate) -> str:
    return f"{rate.first} over {rate.second} {share(rate.rate)}"


def _numbers(ballot: Ballot) -> tuple[Block, ...]:
    variants = ballot.variants_on(ballot.main)
    rates = ballot.summary.pairwise[ballot.main]
    level = percent(ballot.summary.level)
    blocks: list[Block] = [
        Table(
            "Win rates.",
            f"Row over column, with {level} intervals and the number of answers.",
            ("row over column", *variants),
            tuple((row, *(_win_cell(rates, row, column) for column in variants)) for row in variants),
            numeric=frozenset(range(1, len(variants) + 1)),
        )
    ]
    strengths = ballot.summary.strengths.get(ballot.main)
    if strengths is not None:
        models = (strengths.bradley_terry, strengths.plackett_luce, strengths.worth)
        rows = tuple((v, *(decimal(model.get(v)) for model in models)) for v in variants)
        blocks.append(
            Table(
                "Strengths.",
                f"Log strengths with {level} intervals, and the chance to come first when all are shown.",
                ("variant", "Bradley-Terry", "Plackett-Luce", "chance to come first"),
                rows,
                numeric=frozenset({1, 2, 3}),
            )
        )
    return tuple(blocks)


def _win_cell(rates: Sequence[WinRate], row: str, column: str) -> str:
    rate = None if row == column else win_rate(rates, row, column)
    return NONE if rate is None else f"{share(rate).replace(' (', chr(10) + '(')}\nn = {rate.n}"
