"""The metric table with intervals, the differences, and how to read each metric."""

from collections.abc import Mapping, Sequence

from flowgrain.errors import DataError
from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable
from flowgrain.report.canvas import Style
from flowgrain.report.figures import IntervalRow, interval_figure
from flowgrain.report.meanings import meanings_of
from flowgrain.report.page import Block, Bullets, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import NONE, decimals_for, difference_sentence, interval, measure_name, number, percent

SHOWN_FIGURES = 12
"""With more figures of differences than this, those of later subsets are behind a click."""
NAMED_MEASURES = 6


def measures_section(metrics: MetricTable, styles: Mapping[str, Style]) -> Section | None:
    """Values by arm, paired differences as drawings, warnings and meanings.

    ``styles`` holds the looks of every arm. Raises DataError for an arm that it does not hold.
    """
    _check_arms(metrics, styles)
    if not metrics.results:
        return None
    blocks: list[Block] = [_values(metrics.results)]
    warnings = _warnings(metrics.results)
    blocks += [Paragraph(text, "warning") for text in warnings]
    if metrics.differences:
        blocks += _drawn(metrics.differences, styles)
    blocks.append(Bullets(meanings_of([result.name for result in metrics.results])))
    encoders = list(dict.fromkeys(result.encoder for result in metrics.results if result.encoder))
    if encoders:
        blocks.append(Paragraph(f"Features: {'; '.join(encoders)}.", "note"))
    return Section(
        "measures",
        "Measures",
        "Every number with its interval, and every comparison as a paired difference.",
        tuple(blocks),
    )


def _check_arms(metrics: MetricTable, styles: Mapping[str, Style]) -> None:
    named = [*(r.arm for r in metrics.results), *(arm for d in metrics.differences for arm in (d.first, d.second))]
    for arm in named:
        if arm not in styles:
            raise DataError(
                f"the metric table names arm '{arm}', the report's arms are: {', '.join(styles)}; measure them again "
                "with 'flowgrain evaluate'"
            )


def _values(results: Sequence[MetricResult]) -> Table:
    arms = list(dict.fromkeys(result.arm for result in results))
    rows = []
    for key in dict.fromkeys((r.name, r.subset) for r in results):
        found = {r.arm: r for r in results if (r.name, r.subset) == key}
        example = next(iter(found.values()))
        rows.append(
            (
                measure_name(example),
                str(example.n),
                *(_value(found[arm]) if arm in found else NONE for arm in arms),
            )
        )
    columns = ("measure", "n", *arms)
    return Table(
        "Values.",
        f"The value of each arm and below it its {percent(results[0].level)} interval; n counts pictures or held-out "
        "roots. Intervals of two arms may overlap although their paired difference is clear, as they share prompts.",
        columns,
        tuple(rows),
        numeric=frozenset(range(1, len(columns))),
    )


def _value(result: MetricResult) -> str:
    value = number(result.value, decimals_for(result.low, result.high))
    return f"{value}\n{interval(result.low, result.high)}"


def _drawn(differences: Sequence[MetricDifference], styles: Mapping[str, Style]) -> list[Block]:
    """All differences in one row of figures; of many the first subset's, the others behind a click."""
    keys = list(dict.fromkeys((d.name, d.subset) for d in differences))
    subsets = [""] if len(keys) <= SHOWN_FIGURES else list(dict.fromkeys(subset for _, subset in keys))
    blocks: list[Block] = []
    for subset in subsets:
        figures = [
            _figure([d for d in differences if (d.name, d.subset) == key], styles)
            for key in keys
            if subset in ("", key[1])
        ]
        row = FigureRow(
            f"Differences, drawn{f': {subset}' if subset else ''}.",
            "A dot is the difference, the line its interval: a hollow dot where the interval holds zero and so "
            "supports no difference, else filled, in the colour of the arm that is ahead.",
            tuple(figures),
        )
        blocks.append(Details(f"Differences on {subset}", (row,)) if blocks else row)
    return blocks


def _figure(group: Sequence[MetricDifference], styles: Mapping[str, Style]) -> Figure:
    sides = {True: "difference (right: first named is ahead)", False: "difference (left: first named is ahead)"}
    first = group[0]
    label = "difference" if first.higher_is_better is None else sides[first.higher_is_better]
    drawing = interval_figure(f"{first.name}\n{first.subset}", [_interval_row(d, styles) for d in group], label)
    return Figure(drawing, " ".join(difference_sentence(d) for d in group))


def _interval_row(d: MetricDifference, styles: Mapping[str, Style]) -> IntervalRow:
    style = Style(None) if d.ahead is None else styles[d.ahead]
    return IntervalRow(f"{d.second} − {d.first}", d.value, d.low, d.high, style, hollow=d.ahead is None)


def _warnings(results: Sequence[MetricResult]) -> tuple[str, ...]:
    """Each warning once, with all measures that share it."""
    shared: dict[str, dict[str, None]] = {}
    for result in results:
        if result.warning:
            shared.setdefault(result.warning, {})[f"{result.name}, {result.subset}"] = None
    lines = []
    for text, measures in shared.items():
        more = len(measures) - NAMED_MEASURES
        named = "; ".join(list(measures)[:NAMED_MEASURES]) + (f"; and {more} more" if more > 0 else "")
        lines.append(f"{text[0].upper()}{text[1:]} ({named}).")
    return tuple(lines)
