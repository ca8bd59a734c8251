"""The paper's Table 1: embedding metrics of each variant, averaged over data sets."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable
from flowgrain.report.evaluation import Evaluation
from flowgrain.report.meanings import meanings_of
from flowgrain.report.page import Block, Bullets, Paragraph, Section, Table
from flowgrain.report.wording import NONE, decimals_for, interval, number, percent

PAPER_NAMES = re.compile(r"-I( \(|$)|-T$")
"""CLIP-I, DINO-I, CLIP-T and the same on other encoders."""
COSINE = re.compile(r"cosine")
"""What stands in for them where none was measured."""
BETTER = {True: "\u00a0↑", False: "\u00a0↓", None: ""}


@dataclass(frozen=True)
class Mean:
    """A mean over data sets with its interval, NaN ends where there is none."""

    value: float
    low: float
    high: float


def mean_over(rows: Sequence[MetricResult | MetricDifference]) -> Mean:
    """Mean of independent data sets: half widths add as squares, each side on its own (error propagation)."""
    count = len(rows)
    value = sum(row.value for row in rows) / count
    below = math.sqrt(sum((row.value - row.low) ** 2 for row in rows)) / count
    above = math.sqrt(sum((row.high - row.value) ** 2 for row in rows)) / count
    return Mean(value, value - below, value + above)


def dataset_of(subset: str, datasets: Sequence[str]) -> tuple[str | None, str]:
    """The data set that a subset names at its start, if it names one, and the rest."""
    for name in sorted(datasets, key=len, reverse=True):
        rest = subset.removeprefix(name)
        if subset.startswith(name) and (not rest or not rest[0].isalnum()):
            return name, rest.lstrip(" ,:-")
    return None, subset


def calibration_section(evaluation: Evaluation) -> Section | None:
    """Embedding metrics averaged over data sets, with arrows where a difference is supported."""
    table = chosen(evaluation.metrics)
    if not table.results:
        return None
    datasets = [dataset.name for dataset in evaluation.comparison.datasets]
    variants = evaluation.comparison.variants
    rows = []
    for key in dict.fromkeys(_key(r, datasets) for r in table.results):
        rows.append(_row(evaluation, table, key, datasets))
    level = percent(table.results[0].level)
    averaged = f"averaged over {len(datasets)} data sets" if len(datasets) > 1 else f"on {datasets[0]}"
    encoders = list(dict.fromkeys(r.encoder for r in table.results if r.encoder))
    blocks: list[Block] = [
        Table(
            f"Calibration metrics, {averaged}.",
            f"Below each value its {level} interval. The last line of a cell is the difference to another variant; an "
            "arrow stands there only where the interval of that paired difference excludes zero: ↑ up, ↓ down. The "
            "arrow behind a metric's name points to better.",
            ("metric", *variants),
            tuple(rows),
            numeric=frozenset(range(1, len(variants) + 1)),
        ),
        Bullets(_names(table.results)),
    ]
    if encoders:
        blocks.append(Paragraph(f"Encoders: {'; '.join(encoders)}.", "note"))
    return Section(
        "calibration",
        "Calibration metrics",
        "Cosines in an encoder's features: nearness to the references of the domain, and to the prompt.",
        tuple(blocks),
    )


def chosen(table: MetricTable) -> MetricTable:
    """The metrics of this section: the paper's, or other cosines where none of those was measured."""
    pattern = PAPER_NAMES if any(PAPER_NAMES.search(result.name) for result in table.results) else COSINE
    return MetricTable(
        tuple(result for result in table.results if pattern.search(result.name)),
        tuple(difference for difference in table.differences if pattern.search(difference.name)),
    )


def _row(evaluation: Evaluation, table: MetricTable, key: tuple[str, str], datasets: Sequence[str]) -> tuple[str, ...]:
    name, rest = key
    found = [r for r in table.results if _key(r, datasets) == key]
    cells = [f"{name}{f', {rest}' if rest else ''}{BETTER[found[0].higher_is_better]}"]
    for variant in evaluation.comparison.variants:
        own = [r for r in found if r.arm == variant]
        if not own:
            cells.append(NONE)
            continue
        mean = mean_over(own)
        lines = [number(mean.value, decimals_for(mean.low, mean.high)), interval(mean.low, mean.high)]
        change = _change(evaluation, table, key, variant, datasets)
        cells.append("\n".join([*lines, change] if change else lines))
    return tuple(cells)


def _change(
    evaluation: Evaluation, table: MetricTable, key: tuple[str, str], variant: str, datasets: Sequence[str]
) -> str | None:
    """The difference to the first reference variant that it was measured against on every data set, if any."""
    measured = {r.subset for r in table.results if r.arm == variant and _key(r, datasets) == key}
    for reference in evaluation.references_of(variant):
        signs = {(variant, reference): -1, (reference, variant): 1}
        found = [d for d in table.differences if (d.first, d.second) in signs and _key(d, datasets) == key]
        if not found or {d.subset for d in found} != measured:
            continue
        value, low, high = sorted_ends(mean_over(found), signs[found[0].first, found[0].second])
        arrow = "↑ " if low > 0 else "↓ " if high < 0 else ""
        return f"{arrow}{number(value, decimals_for(low, high), sign=True)} against {reference}"
    return None


def _key(row: MetricResult | MetricDifference, datasets: Sequence[str]) -> tuple[str, str]:
    """What is averaged over data sets: the metric, and of its subset what is not the data set's name."""
    return row.name, dataset_of(row.subset, datasets)[1]


def sorted_ends(mean: Mean, sign: int) -> tuple[float, float, float]:
    """Value, low and high, turned round for ``sign`` -1."""
    return (mean.value, mean.low, mean.high) if sign > 0 else (-mean.value, -mean.high, -mean.low)


def _names(results: Sequence[MetricResult]) -> tuple[str, ...]:
    """What the names mean, and how far they are the paper's."""
    names = list(dict.fromkeys(result.name for result in results))
    return (
        *meanings_of(names),
        "A number carries the name of its encoder and can be compared with published ones only for the same encoder, "
        "resize and pictures. The paper reports these beside the rankings, as calibration, not as evidence.",
    )
