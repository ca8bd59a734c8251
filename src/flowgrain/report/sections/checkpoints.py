"""Which checkpoint of a run is best, by each measure, and whether it stands out from its neighbours."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flowgrain.evaluate.comparison import Variant
from flowgrain.evaluate.ranking.summary import Estimate
from flowgrain.report.canvas import Style
from flowgrain.report.evaluation import Evaluation
from flowgrain.report.page import Block, Details, Figure, FigureRow, Section, Table
from flowgrain.report.rank_figures import ErrorCurve, error_curves
from flowgrain.report.sections.preferences import uneven, win_rate
from flowgrain.report.wording import NONE, decimals_for, interval, number

FEWEST_CHECKPOINTS = 3
"""Of one run, from which on the section appears without the ``checkpoints`` protocol."""
SHOWN_FIGURES = 6
Against = Literal["better", "no difference", "worse", "not measured", ""]


@dataclass(frozen=True)
class Point:
    """One measure of one checkpoint; ends are None where there is no interval."""

    variant: str
    fraction: float
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Track:
    """One measure of one run over its checkpoints, in order of training."""

    measure: str
    run: str
    higher_is_better: bool
    percent: bool
    points: tuple[Point, ...]
    verdicts: Mapping[tuple[str, str], Against]
    """(variant, other) -> whether the first is better than the other."""

    @property
    def best(self) -> int:
        """Index of the best point."""
        values = [point.value for point in self.points]
        return values.index(max(values) if self.higher_is_better else min(values))

    def against(self, index: int) -> Against:
        """The best point against another one; empty where there is none."""
        if not 0 <= index < len(self.points):
            return ""
        return self.verdicts.get((self.points[self.best].variant, self.points[index].variant), "not measured")


def checkpoints_section(evaluation: Evaluation) -> Section | None:
    """Every measure over checkpoints; None unless a run has several and the protocol or their number asks for it."""
    runs = runs_with_checkpoints(evaluation)
    if not runs:
        return None
    tracks = [track for run, variants in runs.items() for track in tracks_of(evaluation, run, variants)]
    if not tracks:
        return None
    return Section(
        "checkpoints",
        "Which checkpoint is best",
        "Each measure over the checkpoints of each run. The best of several is best partly by luck: it counts only "
        "where it stands out from its neighbours.",
        (_verdicts(tracks), *_figures(tracks, evaluation.styles)),
    )


def runs_with_checkpoints(evaluation: Evaluation) -> dict[str, list[Variant]]:
    """Run -> its variants in order of training, of runs with enough checkpoints."""
    fewest = 2 if evaluation.comparison.protocol.preset == "checkpoints" else FEWEST_CHECKPOINTS
    runs: dict[str, list[Variant]] = {}
    for variant in evaluation.comparison.datasets[0].variants:
        if variant.run is not None and variant.fraction is not None:
            runs.setdefault(variant.run, []).append(variant)
    return {
        run: sorted(variants, key=lambda variant: variant.fraction or 0.0)
        for run, variants in runs.items()
        if len(variants) >= fewest
    }


def tracks_of(evaluation: Evaluation, run: str, variants: Sequence[Variant]) -> Iterator[Track]:
    """First places of judge and people, then every metric for which one direction is better."""
    fractions = {variant.name: variant.fraction or 0.0 for variant in variants}
    for ballot in evaluation.ballots:
        found = ballot.summary.first_place[ballot.main]
        rates = ballot.summary.pairwise.get(ballot.main, ())
        shown = [name for name in fractions if name in found]
        verdicts = {(a, b): _wins(win_rate(rates, a, b)) for a in shown for b in shown if a != b}
        points = tuple(
            Point(name, fractions[name], found[name].value, found[name].low, found[name].high) for name in shown
        )
        if len(points) > 1:
            name = f"first places, {'people' if ballot.people else 'LLM judge'}"
            yield Track(name, run, True, True, points, verdicts)
    for name, subset in dict.fromkeys((r.name, r.subset) for r in evaluation.metrics.results):
        results = {r.arm: r for r in evaluation.metrics.results if (r.name, r.subset) == (name, subset)}
        shown = [variant for variant in fractions if variant in results]
        direction = results[shown[0]].higher_is_better if shown else None
        if direction is None or len(shown) < 2:
            continue
        points = tuple(
            Point(v, fractions[v], results[v].value, _end(results[v].low), _end(results[v].high)) for v in shown
        )
        verdicts: dict[tuple[str, str], Against] = {}
        for d in evaluation.metrics.differences:
            if (d.name, d.subset) == (name, subset):
                for one, other in ((d.first, d.second), (d.second, d.first)):
                    verdicts[one, other] = (
                        "no difference" if d.ahead is None else "better" if d.ahead == one else "worse"
                    )
        yield Track(f"{name}, {subset}", run, direction, False, points, verdicts)


def _wins(rate: Estimate | None) -> Against:
    if rate is None or rate.low is None:
        return "not measured"
    return ("better" if rate.value > 0.5 else "worse") if uneven(rate) else "no difference"


def _end(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _verdicts(tracks: Sequence[Track]) -> Table:
    rows = []
    for track in tracks:
        best = track.best
        point = track.points[best]
        before, after = track.against(best - 1), track.against(best + 1)
        better = "higher is better" if track.higher_is_better else "lower is better"
        rows.append(
            (
                f"{track.measure} ({better})",
                track.run,
                f"{point.fraction:g}x",
                _value(track, point),
                before or NONE,
                after or NONE,
                _verdict(before, after),
            )
        )
    return Table(
        "Best checkpoint by each measure.",
        "“Better” than the checkpoint before or after it where the interval of the paired difference (for first places "
        "of the win rate) excludes none; “not measured” where comparison.yaml does not list the two under pairs.",
        ("measure", "run", "best", "value", "than the one before", "than the one after", "verdict"),
        tuple(rows),
        numeric=frozenset({3}),
    )


def _verdict(before: Against, after: Against) -> str:
    sides = [side for side in (before, after) if side]
    if all(side == "better" for side in sides):
        return "stands out from its neighbours"
    if any(side == "worse" for side in sides):
        return "a neighbour is preferred to it in pairs"
    if any(side == "not measured" for side in sides):
        return "neighbours not measured against it"
    return "does not stand out from a neighbour"


def _value(track: Track, point: Point) -> str:
    scale = 100 if track.percent else 1
    unit = " %" if track.percent else ""
    if point.low is None or point.high is None:
        return f"{number(scale * point.value, 0 if track.percent else 4)}{unit}"
    low, high = scale * point.low, scale * point.high
    if track.percent:
        return f"{number(scale * point.value, 0)} %\n{number(low, 0)} to {number(high, 0)} %"
    return f"{number(point.value, decimals_for(low, high))}\n{interval(low, high)}"


def _figures(tracks: Sequence[Track], styles: Mapping[str, Style]) -> list[Block]:
    figures = [
        _figure(measure, [track for track in tracks if track.measure == measure], styles)
        for measure in dict.fromkeys(track.measure for track in tracks)
    ]
    reading = "A dot is a checkpoint, the upright line its interval; one line a run."
    blocks: list[Block] = [FigureRow("Measures over checkpoints.", reading, tuple(figures[:SHOWN_FIGURES]))]
    if len(figures) > SHOWN_FIGURES:
        rest = FigureRow("More measures over checkpoints.", reading, tuple(figures[SHOWN_FIGURES:]))
        blocks.append(Details(f"{len(figures) - SHOWN_FIGURES} more measures", (rest,)))
    return blocks


def _figure(measure: str, tracks: Sequence[Track], styles: Mapping[str, Style]) -> Figure:
    curves = []
    for dash, track in enumerate(tracks):
        scale = 100 if track.percent else 1
        curves.append(
            ErrorCurve(
                track.run,
                [point.fraction for point in track.points],
                [scale * point.value for point in track.points],
                [None if point.low is None else scale * point.low for point in track.points],
                [None if point.high is None else scale * point.high for point in track.points],
                styles[track.points[0].variant],
                dash,
            )
        )
    better = "higher is better" if tracks[0].higher_is_better else "lower is better"
    unit = "% " if tracks[0].percent else ""
    parts = [
        f"{track.run}: {', '.join(f'{point.fraction:g}x {_value(track, point)}' for point in track.points)}"
        for track in tracks
    ]
    drawing = error_curves(measure.replace(", ", "\n", 1), curves, "training (multiples of N1)", f"{unit}({better})")
    return Figure(drawing, f"{measure} ({better}) over checkpoints. {'; '.join(parts)}.".replace("\n", ", "))
