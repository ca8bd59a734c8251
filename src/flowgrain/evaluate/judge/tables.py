"""The results as tables for the console and for Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowgrain.evaluate.judge.results import Judging, Results
from flowgrain.evaluate.ranking.summary import Estimate, GroupAgreement, RankingSummary

MARKDOWN_NAME = "summary.md"
_CHARACTERS = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|~&"})


@dataclass(frozen=True)
class TextTable:
    """Rows under column names; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def result_tables(results: Results, every_pair: bool) -> list[TextTable]:
    """What was asked for, by variant and dimension, then what the order of pictures did.

    Win rates are shown where pairs were asked about; ``every_pair`` also shows those that follow from rankings.
    """
    summary = results.summary
    asked_pairs = all(len(ranking.shown) == 2 for ranking in results.rankings)
    tables = [
        _by_dimension("First-place rate", summary.variants, _first_places(summary)),
        _by_dimension("Mean rank, 1 is best", summary.variants, _mean_ranks(summary)),
        _by_dimension("Mean score, 0 to 100", summary.variants, _mean_scores(summary)),
        *([_win_rates(summary)] if asked_pairs or every_pair else []),
        _positions(summary),
    ]
    return [table for table in tables if table.rows]


def agreement_table(agreements: Sequence[GroupAgreement]) -> TextTable:
    """How far judge and people agree."""
    rows = tuple(
        (
            f"{agreement.dimensions[0]} / {agreement.dimensions[1]}",
            str(agreement.items),
            _number(agreement.kendall_tau),
            _percent(agreement.same_first),
            "-" if agreement.same_first_by_chance is None else f"{100 * agreement.same_first_by_chance:.0f}%",
            _number(agreement.strength_correlation),
        )
        for agreement in agreements
    )
    columns = ("judge / people", "items", "Kendall's tau", "same favourite", "by chance", "correlation of strengths")
    return TextTable("Agreement with people", columns, rows)


def judging_line(judging: Judging) -> str:
    """One sentence on what was asked and answered."""
    parts = [f"{count} {status}" for status, count in judging.answers.items()]
    cost = "" if judging.cost is None else f", cost {judging.cost:.4g}"
    tokens = f"{judging.tokens_in} tokens in, {judging.tokens_out} out"
    estimated = " (partly estimated)" if judging.tokens_estimated else ""
    left_out = f"; {judging.left_out} answers to other settings left out" if judging.left_out else ""
    return f"{judging.questions} questions to {judging.model}: {', '.join(parts)}; {tokens}{estimated}{cost}{left_out}"


def to_markdown(results: Results, agreements: Sequence[GroupAgreement] = ()) -> str:
    """The tables with what a reader should know about them; names are escaped."""
    tables = result_tables(results, every_pair=True) + ([agreement_table(agreements)] if agreements else [])
    level = f"{100 * results.summary.level:g}%"
    blocks = [
        f"# Judged by {_escaped(results.judging.rater)}",
        _escaped(judging_line(results.judging)) + f". In parentheses: {level} intervals over prompts.",
        *(f"- {_escaped(warning)}" for warning in results.summary.warnings),
        *map(_markdown_table, tables),
    ]
    return "\n\n".join(blocks) + "\n"


def _by_dimension(title: str, names: Sequence[str], cells: Mapping[str, Mapping[str, str]]) -> TextTable:
    """One row a name and one column a dimension; no rows where no dimension has a cell."""
    rows = tuple((name, *(column.get(name, "-") for column in cells.values())) for name in names)
    return TextTable(title, ("", *cells), rows if cells else ())


def _first_places(summary: RankingSummary) -> dict[str, dict[str, str]]:
    return {
        dimension: {variant: _percent(rate) for variant, rate in rates.items()}
        for dimension, rates in summary.first_place.items()
    }


def _mean_ranks(summary: RankingSummary) -> dict[str, dict[str, str]]:
    return {
        dimension: {variant: _number(ranks.mean_rank) for variant, ranks in distribution.items()}
        for dimension, distribution in summary.rank_distribution.items()
    }


def _mean_scores(summary: RankingSummary) -> dict[str, dict[str, str]]:
    return {
        dimension: {variant: _number(mean) for variant, mean in scores.mean.items()}
        for dimension, scores in summary.scores.items()
    }


def _win_rates(summary: RankingSummary) -> TextTable:
    cells = {
        dimension: {f"{win.first} : {win.second}": _percent(win.rate) for win in rates}
        for dimension, rates in summary.pairwise.items()
    }
    names = dict.fromkeys(name for column in cells.values() for name in column)
    return _by_dimension("Wins of the first of two, ties count half", tuple(names), cells)


def _positions(summary: RankingSummary) -> TextTable:
    rows = tuple(
        (
            dimension,
            ", ".join(f"{100 * rate.value:.0f}" for rate in bias.rates),
            ", ".join(f"{100 * share:.0f}" for share in bias.expected),
            f"{bias.p_value:.2g}" + (" (found)" if bias.found else ""),
        )
        for dimension, bias in summary.position_bias.items()
    )
    columns = ("dimension", "first places by place, %", "without bias, %", "p")
    return TextTable("Position bias", columns, rows)


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.0f}%" + _interval(estimate, 100.0, 0)


def _number(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f}" + _interval(estimate, 1.0, 2)


def _interval(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f})"


def _markdown_table(table: TextTable) -> str:
    lines = [table.columns, ("---",) * len(table.columns)]
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    text += [f"| {' | '.join(map(_escaped, row))} |" for row in table.rows]
    return "\n".join([f"## {_escaped(table.title)}", "", *text])


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_CHARACTERS)
