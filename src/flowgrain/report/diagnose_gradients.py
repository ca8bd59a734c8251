"""The levels' gradients on the page of a diagnosis: do they pull one way, and what is a batch worth."""

from collections.abc import Sequence
from typing import Any

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_figures import Matrix, MatrixColumn, matrix_figure
from flowgrain.report.diagnose_gradients_batches import batch_blocks, batch_finding
from flowgrain.report.diagnose_gradients_figures import curve_figure, interval_curve
from flowgrain.report.diagnose_values import Values, estimate, matrix, share, supported
from flowgrain.report.page import Block, Details, Figure, FigureRow, Paragraph, Section, Table
from flowgrain.report.wording import NONE, counted, listed, number, whole_percent


def sections(values: Values) -> tuple[Section, ...]:
    """The part of the page that comes of the section ``gradients``."""
    blocks: tuple[Block, ...] = (
        *(Paragraph(text) for text in finding(values)),
        *_cosines(values),
        _measures(values),
        _noise(values),
        *batch_blocks(values),
        _how(values),
    )
    return (
        Section(
            "gradients",
            "Gradients of the levels",
            "Whether macro, meso and micro slices want the same change of the adapter, and how noisy they say it.",
            blocks,
        ),
    )


def finding(values: Values) -> list[str]:
    """What the numbers say at the last checkpoint, within their intervals."""
    last = values["points"][-1]
    return [*_pairs_finding(last), *batch_finding(last)]


def _pairs_finding(last: Values) -> list[str]:
    if not last["cosine_unbiased"]:
        return [f"Gradients at {last['point']}: the run has one level of slices, so there are no pairs to compare."]
    agree, oppose, open_ = [], [], []
    for pair, found in last["cosine_unbiased"].items():
        told = _named(found)
        group = (agree if found["value"] > 0 else oppose) if supported(told) else open_
        group.append(f"{pair} {estimate(told, sign=True)}" if told["low"] is not None else f"{pair} (no interval)")
    parts = []
    if agree:
        parts.append(f"pull the same way: {listed(agree)}")
    if oppose:
        parts.append(f"pull against each other: {listed(oppose)}")
    if open_:
        parts.append(f"no direction that the interval supports: {listed(open_)}")
    return [f"Cosines of the levels' expected gradients at {last['point']}: {'; '.join(parts)}."]


def _named(found: Values) -> dict[str, Any]:
    return {"mean": found["value"], "low": found["low"], "high": found["high"]}


def _cosines(values: Values) -> tuple[Block, ...]:
    points = values["points"]
    if not points[-1]["cosine_unbiased"]:
        return ()
    names = [point["point"] for point in points]
    columns = [MatrixColumn("in an update", "as the batch has them"), MatrixColumn("expected", "noise taken out")]
    levels = points[-1]["levels"]
    matrices = [[_square(point, "cosine", levels), _square(point, "cosine_unbiased", levels)] for point in points]
    heat = matrix_figure("Cosines of the levels' gradients", levels, columns, names, matrices, ("opposite", "same way"))
    updates = [point["update"] for point in points]
    curves = []
    for index, pair in enumerate(points[-1]["cosine_unbiased"]):
        found = [point["cosine_unbiased"].get(pair) for point in points]
        curves.append(interval_curve(pair, updates, found, Style(index, index), "value"))
    course = curve_figure("Expected gradients over training", curves, "updates", "cosine", lines=((0.0, "unrelated"),))
    told = "; ".join(_pairs_finding(points[-1]))
    return (
        FigureRow(
            "Directions.",
            "1: two levels want the same change of the weights; 0: unrelated; −1: opposite. Left in each row: the "
            "gradients that an update really has, whose cosines noise pulls towards 0. Right: the expected gradients, "
            "from halves of the update that share no picture; these can be compared between runs and batch sizes. A "
            "number stands only where its 95 % interval over updates excludes 0. Blue on the left alone: what "
            "the levels share is the pictures of their update, not a direction.",
            (
                Figure(heat, f"Heat maps of cosines by checkpoint. {told}"),
                Figure(course, f"Cosines of expected gradients by update. {told}"),
            ),
        ),
    )


def _square(point: Values, name: str, levels: Sequence[str]) -> Matrix:
    """A pair's values on both sides of a diagonal of ones."""
    key = "value" if name == "cosine_unbiased" else "mean"
    size = len(levels)
    found: dict[str, list[list[float | None]]] = {
        part: [[1.0 if i == j else None for j in range(size)] for i in range(size)] for part in ("mean", "low", "high")
    }
    for i, a in enumerate(levels):
        for j, b in enumerate(levels):
            pair = point[name].get(f"{a}-{b}")
            if pair is None:
                continue
            for part, own in (("mean", key), ("low", "low"), ("high", "high")):
                found[part][i][j] = found[part][j][i] = pair[own]
    return matrix(found, 1.0)


def _measures(values: Values) -> Table:
    rows = []
    for point in values["points"]:
        rate, cross = point["conflict_rate"], point["cross_share"]
        rows.append(
            (
                point["point"],
                ", ".join(f"{name} {number(found['mean'], 4)}" for name, found in point["norm"].items()),
                NONE if rate["mean"] is None else share(rate),
                estimate(cross, sign=True),
            )
        )
    return Table(
        "Sizes and conflicts.",
        f"Means over {counted(values['updates'], 'update')} with 95 % intervals. Length of each level's gradient, its "
        "weight in the update included; share of pairs of levels whose inner product is negative (1/2 is what "
        "unrelated gradients have, not 0); part of the squared update that is cross terms, the effective interaction "
        "Delta_a' Theta Delta_b of Eqs. 43-45 (0: unrelated, up to 1 − 1/levels: all agree, negative: they cancel).",
        ("checkpoint", "length by level", "conflict rate", "cross share"),
        tuple(rows),
    )


def _noise(values: Values) -> Table:
    unit = values["unit"]
    rows = []
    for point in values["points"]:
        for name, found in point["noise"].items():
            what = f"{point['point']}, {'whole update' if name == 'update' else name}"
            ratio = f"{noise_scale(found['simple'], found['low'], found['high'])} {unit}s"
            rows.append((what, ratio, _plain(found["gradient_square"]), _plain(found["trace"])))
    return Table(
        "Gradient noise scale.",
        f"From the spread between the two halves of each update, in {unit}s: tr Sigma / |G|². Far below it another "
        f"{unit} in the batch helps as much as another update; far above it hardly at all. It equals the critical "
        "batch size only under the simplifications of McCandlish et al. 2018: an order of magnitude. 'Unbounded' is "
        "what is left where the noise drowns the gradient.",
        ("gradient", f"noise scale, {unit}s", "|G|²", f"tr Sigma of one {unit}"),
        tuple(rows),
        numeric=frozenset({1, 2, 3}),
    )


def noise_scale(value: float | None, low: float | None, high: float | None) -> str:
    """A noise scale in words; None is infinite, as JSON writes it."""
    top = "unbounded" if high is None else f"{high:.3g}"
    if value is None:
        return f"unbounded (at least {low:.2g})" if low is not None else "cannot be told"
    return f"{value:.3g} ({NONE if low is None else f'{low:.2g}'} to {top})"


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}".replace("-", "−")


def _how(values: Values) -> Details:
    text = (
        f"The same {counted(values['updates'], 'update')} of the run's plan at every checkpoint, from epoch "
        f"{values['epoch']} on (after the newest checkpoint's, so that noise and times are new), with the run's own "
        "time law, weights and lambdas. One backward pass for each level and half of the update's "
        f"{values['unit']}s; the parts sum to the update's gradient. Intervals are bootstrapped over updates at "
        f"{whole_percent(values['confidence'])} and widened for their small number. They are of one run: another seed "
        "may differ by more. These are gradients of the levels' own losses; the components of Eq. 42 at one point need "
        "the group fields there (next section)."
    )
    return Details("How it was measured", (Paragraph(text, "note"),))
