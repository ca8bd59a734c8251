"""Kinds of batches on the page of a diagnosis: slices alone, tuples, and large mixed ones."""

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_gradients_figures import IntervalCurve, curve_figure
from flowgrain.report.diagnose_values import Values
from flowgrain.report.page import Block, Figure, FigureRow, Paragraph, Table
from flowgrain.report.wording import counted, number, whole_percent


def batch_finding(point: Values) -> list[str]:
    """What tuples do to the noise of an update, within the interval."""
    batches = point["batches"]
    if batches is None:
        return []
    tuples = batches["tuples"]
    low, high = tuples["low"], tuples["high"]
    if low is None or high is None or low <= 1 <= high:
        verdict = "no difference that the interval supports"
    else:
        verdict = "noisier than" if low > 1 else "less noisy than"
        verdict += " as many slices drawn alone"
    return [
        f"Tuples at {point['point']}: variance of an update against as many slices drawn alone {_factor(tuples)}: "
        f"{verdict}."
    ]


def batch_blocks(values: Values) -> tuple[Block, ...]:
    """The effects on variance, and what a large mixed batch holds by chance."""
    known = [point for point in values["points"] if point["batches"] is not None]
    if not known:
        return (Paragraph("Kinds of batches are not compared: too few roots have two slices or more.", "note"),)
    rows = []
    for point in known:
        found = point["batches"]
        rows.append(
            (
                point["point"],
                _scale(found["noise_scale_slices"]),
                f"{_scale(found['noise_scale_roots'])} × {number(found['slices_per_root'], 1)}",
                _factor(found["tuples"]),
                _factor(found["content"]),
                _factor(found["balanced"]),
            )
        )
    last = known[-1]["batches"]
    table = Table(
        "What a batch is worth by how it is put together.",
        f"From the gradients of {counted(last['slices'], 'slice')} of {counted(last['roots'], 'root')}, each with "
        "noise "
        "of its own. Noise scales: of slices drawn alone, in slices; of tuples, in roots (times slices a root). Then "
        "variances against as many slices drawn alone, 1 = the same: of tuples; of shared content alone, the levels' "
        "mean gradients taken out (above 1: slices of one picture repeat each other); of batches with the levels in "
        "fixed "
        "shares but from different pictures (below 1: balancing the levels helps). A tuple's factor is both effects "
        "together. 95 % jackknife intervals by root: a factor whose interval holds 1 shows no effect.",
        ("checkpoint", "alone, slices", "tuples, roots", "tuples", "shared content", "balanced levels"),
        tuple(rows),
    )
    return table, _mixed(last)


def _mixed(batches: Values) -> FigureRow:
    mixtures = batches["mixtures"]
    sizes = [row["slices"] for row in mixtures]
    nothing: list[float | None] = [None] * len(sizes)

    def line(label: str, key: str, index: int) -> IntervalCurve:
        return IntervalCurve(label, sizes, [row[key] for row in mixtures], nothing, nothing, Style(index, index))

    met = curve_figure(
        "What a mixed batch holds",
        [line("every level is there", "all_levels", 0), line("a slice meets its picture", "with_company", 1)],
        "slices of a batch drawn alone",
        "probability",
        log_x=True,
    )
    progress = curve_figure(
        "Progress of a step",
        [line("slices drawn alone", "progress_alone", 0), line("tuples", "progress_tuples", 1)],
        "slices of the batch",
        "of a noiseless step's",
        log_x=True,
    )
    told = ", ".join(
        f"{row['slices']} slices: {whole_percent(row['all_levels'])} and {whole_percent(row['with_company'])}"
        for row in mixtures
    )
    return FigureRow(
        "Large mixed batches as implicit tuples (the paper's G.2).",
        "Left: how often a batch of slices drawn alone holds every level, and how often a slice in it meets a slice of "
        "another level of its own picture. The first comes with a few slices; the second only with batches that are a "
        "good part of the data: a large batch mixes levels, it makes no tuples. Right: improvement of one step against "
        "a step without noise, 1 / (1 + noise scale / batch), from the noise scales of the table, without their "
        "intervals.",
        (
            Figure(met, f"Probability that all levels are in a batch, and that a slice has company: {told}."),
            Figure(progress, "Progress of a step over the slices of its batch, drawn alone and as tuples."),
        ),
    )


def _factor(found: Values) -> str:
    if found["value"] is None:
        return "–"
    if found["low"] is None or found["high"] is None:
        return f"{number(found['value'], 2)} (no interval)"
    return f"{number(found['value'], 2)} ({number(found['low'], 2)} to {number(found['high'], 2)})"


def _scale(found: Values) -> str:
    top = "unbounded" if found["high"] is None else f"{found['high']:.2g}"
    if found["value"] is None:
        return "unbounded" if found["low"] is None else f"unbounded (at least {found['low']:.2g})"
    return f"{found['value']:.3g} ({'–' if found['low'] is None else format(found['low'], '.2g')} to {top})"
