"""What a report of an evaluation is made from: pictures, metric results, rankings of judge and people, run logs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowgrain.evaluate.comparison import Comparison, Variant
from flowgrain.evaluate.protocol import Dimension
from flowgrain.evaluate.ranking.summary import POOLED, GroupAgreement, RankingSummary
from flowgrain.evaluate.results import MetricTable
from flowgrain.report.canvas import Style
from flowgrain.report.run_log import RunLog

OVERALL_NAME = "overall"
BASE_NAME = "base"


@dataclass(frozen=True)
class Participation:
    """Who took part in a study."""

    participants: int
    """Who agreed to the consent text and did not withdraw."""
    finished: int
    counted: int
    withdrawn: int
    median_minutes: float | None
    """Of those who finished."""
    exclusions: tuple[tuple[str, int], ...]
    """(reason, participants whose answers do not count for it), by rules that were set before."""


@dataclass(frozen=True)
class Ballot:
    """The rankings of one source, summarised, and what to call them."""

    summary: RankingSummary
    dimensions: tuple[Dimension, ...]
    datasets: tuple[str, ...]
    """Data sets with answers, in the comparison's order."""
    raters: tuple[str, ...] = ()
    """Judge models; people stay unnamed."""
    participation: Participation | None = None
    """Of a study."""
    answers: Mapping[str, int] = field(default_factory=dict)
    """Of a judge: what became of the planned questions, ``answered`` among them."""

    @property
    def people(self) -> bool:
        """Whether people answered."""
        return self.summary.source == "study"

    @property
    def title(self) -> str:
        """``People``, or ``LLM judge`` with its model."""
        if self.people:
            return "People"
        return f"LLM judge ({', '.join(self.raters)})" if self.raters else "LLM judge"

    @property
    def main(self) -> str:
        """The dimension that is shown first: overall quality where it was asked, else all together."""
        asked = self.summary.first_place
        for name in (OVERALL_NAME, POOLED):
            if name in asked:
                return name
        return next(iter(asked))

    @property
    def others(self) -> tuple[str, ...]:
        """The remaining dimensions in the order in which they were asked, all of them together last."""
        return tuple(
            name
            for name in (*self.summary.dimensions, POOLED)
            if name in self.summary.first_place and name != self.main
        )

    def dimension_title(self, name: str) -> str:
        """A dimension as people read it."""
        if name == POOLED:
            return "All dimensions together"
        return next((dimension.title for dimension in self.dimensions if dimension.name == name), name)

    def variants_on(self, dimension: str) -> tuple[str, ...]:
        """The variants that were shown on a dimension, in order."""
        shown = self.summary.first_place[dimension]
        return tuple(variant for variant in self.summary.variants if variant in shown)


@dataclass(frozen=True)
class TrainedRun:
    """A run behind variants: its log and resolved recipe."""

    name: str
    dataset: str | None
    """The data set that it was trained for, None where that is not said."""
    log: RunLog
    settings: Mapping[str, Any]
    fractions: tuple[float, ...]
    """Multiples of N1 at which its checkpoints are compared."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known about a comparison; what is None or empty was not measured."""

    comparison: Comparison
    paths: tuple[Path, ...]
    """As the user named the comparison."""
    metrics: MetricTable = field(default_factory=MetricTable)
    judge: Ballot | None = None
    study: Ballot | None = None
    open_study: Path | None = None
    """A study that still collects answers: its results name no variants yet."""
    agreement: Mapping[str, GroupAgreement] = field(default_factory=dict)
    """Title of the dimensions that are set against each other -> agreement of judge (first) and people."""
    runs: tuple[TrainedRun, ...] = ()

    @property
    def sources(self) -> tuple[Ballot, ...]:
        """The sources of rankings or scores that there are, the judge first."""
        return tuple(ballot for ballot in (self.judge, self.study) if ballot is not None)

    @property
    def ballots(self) -> tuple[Ballot, ...]:
        """The sources that ranked; a judge may have given scores alone."""
        return tuple(ballot for ballot in self.sources if ballot.summary.first_place)

    @property
    def styles(self) -> dict[str, Style]:
        """The looks of each variant."""
        return variant_styles(self.comparison.datasets[0].variants)

    def references_of(self, variant: str) -> tuple[str, ...]:
        """The variants that another is held against: the first run at the same budget, else the first variant."""
        variants = self.comparison.datasets[0].variants
        own = next(item for item in variants if item.name == variant)
        rivals = [v for v in variants if v.fraction is not None and v.fraction == own.fraction]
        return tuple(dict.fromkeys(v.name for v in (*rivals[:1], variants[0]) if v.name != variant))


def variant_styles(variants: Sequence[Variant]) -> dict[str, Style]:
    """A run keeps its colour, its checkpoints differ in dash; pictures of no run have one each, ``base`` is grey."""
    names = [variant.run or variant.name for variant in variants]
    coloured = list(dict.fromkeys(name for name in names if name != BASE_NAME))
    fractions = sorted({variant.fraction for variant in variants if variant.fraction is not None})
    return {
        variant.name: Style(None)
        if name == BASE_NAME
        else Style(coloured.index(name), 0 if variant.fraction is None else fractions.index(variant.fraction))
        for variant, name in zip(variants, names, strict=True)
    }
