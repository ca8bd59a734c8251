"""The numbers of a report as tables for other programs: one CSV file each, full precision, no formulas.

A text cell that a spreadsheet would take for a formula (it starts with ``=``, ``+``, ``-``, ``@``, a tab or a line
break) gets a leading apostrophe, as does one that starts with an apostrophe: taking one off gives the text back.
"""

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flowgrain.evaluate.ranking.summary import Estimate
from flowgrain.report.evaluation import Ballot, Evaluation

Cell = str | int | float | bool | None
_GUARDED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")
_ESTIMATE = ("value", "low", "high", "n")


@dataclass(frozen=True)
class Sheet:
    """A named table of plain values; None and NaN are empty cells."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> str:
        """The table as RFC 4180 CSV with a header line."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(self.columns)
        writer.writerows([_written(cell) for cell in row] for row in self.rows)
        return stream.getvalue()


def guarded(text: str) -> str:
    """``text`` so that no spreadsheet runs it."""
    return f"'{text}" if text.startswith(_GUARDED) else text


def unguarded(text: str) -> str:
    """What :func:`guarded` was given."""
    return text.removeprefix("'")


def _written(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return guarded(cell) if isinstance(cell, str) else str(cell)


def sheets_of(evaluation: Evaluation) -> list[Sheet]:
    """Every table that has rows."""
    ballots = evaluation.ballots
    made = [
        Sheet("pictures", ("dataset", "prompt", "seed", "variant", "file"), tuple(_pictures(evaluation))),
        Sheet("metrics", _METRICS, tuple(_metrics(evaluation))),
        Sheet("metric-differences", _DIFFERENCES, tuple(_metric_differences(evaluation))),
        _ballot_sheet("first-places", ("dataset", "variant", *_ESTIMATE), ballots, _first_places),
        _ballot_sheet("first-place-differences", _PAIR_TESTS, ballots, _first_place_differences),
        _ballot_sheet("ranks", ("variant", "rank", *_ESTIMATE), ballots, _ranks),
        _ballot_sheet("win-rates", ("first", "second", *_ESTIMATE, "ties"), ballots, _win_rates),
        _ballot_sheet("strengths", ("variant", "model", *_ESTIMATE), ballots, _strengths),
        _ballot_sheet("scores", ("variant", *_ESTIMATE), ballots, _scores),
        _ballot_sheet("positions", ("place", *_ESTIMATE, "expected", "p_value"), ballots, _positions),
        _ballot_sheet("agreement", ("statistic", *_ESTIMATE), ballots, _agreement),
        Sheet("judge-and-people", ("dimensions", "statistic", *_ESTIMATE), tuple(_groups(evaluation))),
        Sheet("exclusions", ("reason", "participants"), tuple(row for ballot in ballots for row in _excluded(ballot))),
        Sheet("held-out-loss", ("dataset", "run", "level", "update", "slices", "loss"), tuple(_losses(evaluation))),
    ]
    return [sheet for sheet in made if sheet.rows]


NAMES = (
    "pictures", "metrics", "metric-differences", "first-places", "first-place-differences", "ranks", "win-rates",
    "strengths", "scores", "positions", "agreement", "judge-and-people", "exclusions", "held-out-loss",
)  # fmt: skip
"""Names of all sheets that there can be."""
_METRICS = (
    "metric", "subset", "variant", "value", "low", "high", "level", "n", "clusters", "higher_is_better", "encoder",
    "warning",
)  # fmt: skip
_DIFFERENCES = (
    "metric", "subset", "first", "second", "second_minus_first", "low", "high", "level", "clusters",
    "higher_is_better", "ahead",
)  # fmt: skip
_PAIR_TESTS = ("first", "second", "second_minus_first", "low", "high", "n", "p_value", "p_holm", "level", "ahead")


def _ballot_sheet(
    name: str,
    columns: tuple[str, ...],
    ballots: Sequence[Ballot],
    rows: Callable[[Ballot], Iterator[tuple[Cell, ...]]],
) -> Sheet:
    """Rows of every source, after the source and the dimension that they begin with."""
    made = tuple((ballot.summary.source, *row) for ballot in ballots for row in rows(ballot))
    return Sheet(name, ("evaluator", "dimension", *columns), made)


def _estimate(estimate: Estimate) -> tuple[Cell, ...]:
    return estimate.value, estimate.low, estimate.high, estimate.n


def _pictures(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    for item in evaluation.comparison.items():
        for variant, path in item.pictures.items():
            yield item.dataset, item.prompt, item.seed, variant, os.path.relpath(path, evaluation.comparison.folder)


def _metrics(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    for r in evaluation.metrics.results:
        interval = (r.value, r.low, r.high, r.level, r.n, r.clusters)
        yield r.name, r.subset, r.arm, *interval, r.higher_is_better, r.encoder, r.warning


def _metric_differences(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    for d in evaluation.metrics.differences:
        interval = (d.value, d.low, d.high, d.level, d.clusters)
        yield d.name, d.subset, d.first, d.second, *interval, d.higher_is_better, d.ahead


def _first_places(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, found in ballot.summary.first_place.items():
        for variant, estimate in found.items():
            yield dimension, None, variant, *_estimate(estimate)
    for dimension, datasets in ballot.summary.first_place_by_dataset.items():
        for dataset, found in datasets.items():
            for variant, estimate in found.items():
                yield dimension, dataset, variant, *_estimate(estimate)


def _first_place_differences(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, found in ballot.summary.first_place_differences.items():
        for d in found:
            tests = (d.p_value, d.p_holm, d.level, d.ahead)
            yield dimension, d.first, d.second, *_estimate(d.difference), *tests


def _ranks(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    """Rank ``mean`` is the mean rank."""
    for dimension, found in ballot.summary.rank_distribution.items():
        for variant, ranks in found.items():
            yield dimension, variant, "mean", *_estimate(ranks.mean_rank)
            for rank, estimate in enumerate(ranks.shares, start=1):
                yield dimension, variant, rank, *_estimate(estimate)


def _win_rates(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, rates in ballot.summary.pairwise.items():
        for rate in rates:
            yield dimension, rate.first, rate.second, *_estimate(rate.rate), rate.ties


def _strengths(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, found in ballot.summary.strengths.items():
        models = {
            "Bradley-Terry": found.bradley_terry,
            "Plackett-Luce": found.plackett_luce,
            "chance to come first": found.worth,
        }
        for model, estimates in models.items():
            for variant, estimate in estimates.items():
                yield dimension, variant, model, *_estimate(estimate)


def _scores(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, scores in ballot.summary.scores.items():
        for variant, estimate in scores.mean.items():
            yield dimension, variant, *_estimate(estimate)


def _positions(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, bias in ballot.summary.position_bias.items():
        for place, (rate, expected) in enumerate(zip(bias.rates, bias.expected, strict=True), start=1):
            yield dimension, place, *_estimate(rate), expected, bias.p_value


def _agreement(ballot: Ballot) -> Iterator[tuple[Cell, ...]]:
    for dimension, found in ballot.summary.agreement.items():
        statistics = {
            "Kendall's W": found.kendalls_w,
            "Kendall's tau-b": found.kendall_tau,
            "Spearman": found.spearman,
            "Krippendorff's alpha, ranks": found.alpha_ranks,
            "Krippendorff's alpha, first place": found.alpha_first,
            "Fleiss' kappa, first place": found.fleiss_kappa,
        }
        for name, estimate in statistics.items():
            if estimate is not None:
                yield dimension, name, *_estimate(estimate)


def _groups(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    for title, found in evaluation.agreement.items():
        statistics = {
            "Kendall's tau-b": found.kendall_tau,
            "same favourite": found.same_first,
            "correlation of strengths": found.strength_correlation,
        }
        for name, estimate in statistics.items():
            if estimate is not None:
                yield title, name, *_estimate(estimate)
        if found.same_first_by_chance is not None:
            yield title, "same favourite by chance", found.same_first_by_chance, None, None, found.items


def _excluded(ballot: Ballot) -> tuple[tuple[str, int], ...]:
    return () if ballot.participation is None else ballot.participation.exclusions


def _losses(evaluation: Evaluation) -> Iterator[tuple[Cell, ...]]:
    for run in evaluation.runs:
        for record in run.log.validations:
            for level, losses in record.by_level.items():
                yield run.dataset, run.name, level, record.update, record.slices, sum(losses) / len(losses)
