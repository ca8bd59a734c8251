"""The metric table with intervals, the differences, and how to read each metric."""

from collections.abc import Mapping, Sequence

from flowgrain.errors import DataError
from flowgrain.evaluate.table import MetricDifference, MetricResult, MetricTable
from flowgrain.report.arms import Arm, arm_styles
from flowgrain.report.figures import IntervalRow, Style, interval_figure
from flowgrain.report.page import Block, Bullets, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import NONE, decimals_for, difference_sentence, interval, measure_name, number, percent

MEANINGS = (
    ("validation loss", "mean squared error of the predicted velocity on held-out slices at fixed noise levels."),
    (
        "Frechet distance",
        "distance between the distributions of generated and real pictures in an encoder's features, as Gaussians. "
        "It is not an FID: that is defined in the features of another network.",
    ),
    (
        "kernel distance",
        "distance between the same two distributions through a polynomial kernel, as in KID; unbiased for few pictures "
        "too, so it can fall below 0.",
    ),
    (
        "image-image cosine",
        "how near each picture lies to the real picture of its own prompt, from -1 to 1; “centred” first takes away "
        "the mean of the real pictures, which all features share.",
    ),
)


def measures_section(metrics: MetricTable, arms: Sequence[Arm]) -> Section | None:
    """Values by arm, paired differences as drawings, warnings and meanings. Raises DataError for an unknown arm."""
    _check_arms(metrics, arms)
    if not metrics.results:
        return None
    blocks: list[Block] = [_values(metrics.results)]
    warnings = _warnings(metrics.results)
    if warnings:
        blocks.append(Paragraph(" ".join(warnings), "warning"))
    if metrics.differences:
        blocks.append(_drawn(metrics.differences, arm_styles(arms)))
    blocks.append(Bullets(_meanings(metrics.results)))
    encoders = list(dict.fromkeys(result.encoder for result in metrics.results if result.encoder))
    if encoders:
        blocks.append(Paragraph(f"Features: {'; '.join(encoders)}.", "note"))
    return Section(
        "measures",
        "Measures",
        "Every number with its interval, and every comparison as a paired difference.",
        tuple(blocks),
    )


def _check_arms(metrics: MetricTable, arms: Sequence[Arm]) -> None:
    titles = [arm.title for arm in arms]
    named = [*(r.arm for r in metrics.results), *(arm for d in metrics.differences for arm in (d.first, d.second))]
    for arm in named:
        if arm not in titles:
            raise DataError(f"the metric table names arm '{arm}', the report's arms are: {', '.join(titles)}")


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


def _drawn(differences: Sequence[MetricDifference], styles: Mapping[str, Style]) -> FigureRow:
    figures = []
    for name, subset in dict.fromkeys((d.name, d.subset) for d in differences):
        group = [d for d in differences if (d.name, d.subset) == (name, subset)]
        rows = [_interval_row(d, styles) for d in group]
        side = "right" if group[0].higher_is_better else "left"
        drawing = interval_figure(f"{name}\n{subset}", rows, f"difference ({side}: first named is ahead)")
        figures.append(Figure(drawing, " ".join(difference_sentence(d) for d in group)))
    return FigureRow(
        "Differences, drawn.",
        "A dot is the difference, the line its interval: a hollow dot where the interval holds zero and so supports no "
        "difference, else filled, in the colour of the arm that is ahead.",
        tuple(figures),
    )


def _interval_row(d: MetricDifference, styles: Mapping[str, Style]) -> IntervalRow:
    style = Style(None) if d.ahead is None else styles[d.ahead]
    return IntervalRow(f"{d.second} − {d.first}", d.value, d.low, d.high, style, hollow=d.ahead is None)


def _warnings(results: Sequence[MetricResult]) -> tuple[str, ...]:
    """Each warning once, for all arms that share it."""
    return tuple(
        f"{name}, {subset}: {warning}."
        for name, subset, warning in dict.fromkeys((r.name, r.subset, r.warning) for r in results if r.warning)
    )


def _meanings(results: Sequence[MetricResult]) -> tuple[str, ...]:
    names = " ".join(result.name for result in results)
    return tuple(f"{name}: {meaning}" for name, meaning in MEANINGS if name in names)
