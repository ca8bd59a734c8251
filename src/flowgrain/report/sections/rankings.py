"""The paper's Figures 9 (LLM judge) and 10 (people): rank distribution on the left, first places by data set right."""

from flowgrain.evaluate.ranking.summary import Estimate
from flowgrain.report.evaluation import Ballot
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.rank_figures import HeatCell, RankBar, heat_map, ordinal, rank_bars
from flowgrain.report.wording import NONE, counted, decimal, listed, percent, share, whole_percent

WIDEST_HEAT_MAP = 5
"""With more variants than this they become the rows of the heat map."""


def rankings_section(ballot: Ballot) -> Section:
    """The main dimension as figures and table, the others behind a click."""
    blocks: list[Block] = [_figures(ballot, ballot.main), _numbers(ballot, ballot.main)]
    blocks += [
        Details(f"{ballot.dimension_title(name)}: the same figures", (_figures(ballot, name), _numbers(ballot, name)))
        for name in ballot.others
    ]
    blocks += [Paragraph(warning, "warning") for warning in ballot.summary.warnings]
    counts = ballot.summary.counts
    who = f"{counted(counts.raters, 'participant')} gave" if ballot.people else f"{ballot.title} gave"
    return Section(
        "people" if ballot.people else "judge",
        "What people prefer" if ballot.people else "What the LLM judge prefers",
        f"{who} {counted(counts.rankings, 'answer')} on {counted(counts.items, 'question')} (prompt and seed) of "
        f"{counted(counts.prompts, 'prompt')}, without knowing which variant drew which picture.",
        tuple(blocks),
    )


def _figures(ballot: Ballot, dimension: str) -> FigureRow:
    title = ballot.dimension_title(dimension)
    who = "People" if ballot.people else "LLM judge"
    return FigureRow(
        f"{who}: {title}.",
        "Left: how often each variant took which rank; the darkest part on the left (brightest on dark pages) is the "
        "first place. Right: how often it came first on each data set, in percent of the answers that showed it.",
        (
            _distribution(ballot, dimension, f"{who}: share of each rank"),
            _heat(ballot, dimension, f"{who}: % first places"),
        ),
    )


def _distribution(ballot: Ballot, dimension: str, title: str) -> Figure:
    found = ballot.summary.rank_distribution[dimension]
    variants = [variant for variant in ballot.variants_on(dimension) if variant in found]
    bars = [RankBar(variant, [estimate.value for estimate in found[variant].shares]) for variant in variants]
    parts = [
        f"{bar.label}: {', '.join(f'{ordinal(rank)} {whole_percent(part)}' for rank, part in enumerate(bar.shares, 1))}"
        for bar in bars
    ]
    heading = f"{title}\n{ballot.dimension_title(dimension)}"
    return Figure(rank_bars(heading, bars), f"{title}, {ballot.dimension_title(dimension)}. {'; '.join(parts)}.")


def _heat(ballot: Ballot, dimension: str, title: str) -> Figure:
    found = ballot.summary.first_place_by_dataset[dimension]
    variants = ballot.variants_on(dimension)
    datasets = tuple(name for name in ballot.datasets if name in found)
    rates = {(name, variant): found[name].get(variant) for name in datasets for variant in variants}
    upright = len(variants) > WIDEST_HEAT_MAP
    rows, columns = (variants, datasets) if upright else (datasets, variants)
    cells = [[_cell(rates[(column, row) if upright else (row, column)]) for column in columns] for row in rows]
    parts = [
        f"{name}: {', '.join(f'{v} {_percent(rates[name, v])}' for v in variants if rates[name, v])}"
        for name in datasets
    ]
    heading = f"{title}\n{ballot.dimension_title(dimension)}"
    return Figure(
        heat_map(heading, rows, columns, cells), f"{title}, {ballot.dimension_title(dimension)}. {'; '.join(parts)}."
    )


def _cell(estimate: Estimate | None) -> HeatCell | None:
    return None if estimate is None else HeatCell(estimate.value)


def _percent(estimate: Estimate | None) -> str:
    return NONE if estimate is None else whole_percent(estimate.value)


def _numbers(ballot: Ballot, dimension: str) -> Table:
    first = ballot.summary.first_place[dimension]
    ranks = ballot.summary.rank_distribution[dimension]
    rows = tuple(
        (
            variant,
            str(first[variant].n),
            share(first[variant]),
            decimal(ranks[variant].mean_rank) if variant in ranks else NONE,
        )
        for variant in ballot.variants_on(dimension)
    )
    return Table(
        "First places and mean ranks.",
        f"Rate of first places and mean rank (1 is best), each with its {percent(ballot.summary.level)} interval over "
        f"{_clusters(ballot)}; ties share the places that they span.",
        ("variant", "answers", "came first", "mean rank"),
        rows,
        numeric=frozenset({1, 2, 3}),
    )


def _clusters(ballot: Ballot) -> str:
    return {"prompt": "prompts", "rater": "participants", "crossed": "prompts and participants"}[ballot.summary.cluster]


def table_of_first_places(ballots: tuple[Ballot, ...]) -> Table:
    """The paper's Table 2: first-place rate in percent, by evaluator and data set."""
    datasets = list(dict.fromkeys(name for ballot in ballots for name in ballot.datasets))
    variants = list(dict.fromkeys(name for ballot in ballots for name in ballot.summary.variants))
    ordered = sorted(ballots, key=lambda ballot: not ballot.people)
    columns, cells = ["variant"], {variant: [variant] for variant in variants}
    for dataset in [None] if len(datasets) == 1 else [None, *datasets]:
        for ballot in ordered:
            where = datasets[0] if len(datasets) == 1 else "all data sets" if dataset is None else dataset
            columns.append(f"{where}: {'people' if ballot.people else 'LLM'}")
            summary, main = ballot.summary, ballot.main
            found = (
                summary.first_place[main] if dataset is None else summary.first_place_by_dataset[main].get(dataset, {})
            )
            for variant in variants:
                cells[variant].append(share(found[variant]).replace(" (", "\n(") if variant in found else NONE)
    asked = listed([f"{'people' if b.people else 'the judge'}: {b.dimension_title(b.main)}" for b in ordered])
    return Table(
        "First-place rate (%) by evaluator.",
        f"How often each variant came first, and the interval; higher is better ({asked}).",
        tuple(columns),
        tuple(tuple(row) for row in cells.values()),
        numeric=frozenset(range(1, len(columns))),
    )
