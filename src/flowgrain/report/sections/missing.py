"""What was not measured, and the command that would add it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from flowgrain.report.evaluation import Evaluation
from flowgrain.report.page import Bullets, Section
from flowgrain.report.wording import listed


@dataclass(frozen=True)
class Gap:
    """Something that the page cannot say."""

    what: str
    remedy: str
    """A command or an instruction."""
    why: str = ""

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        why = f" ({self.why})" if self.why else ""
        return f"{self.what[0].upper()}{self.what[1:]}{why}: {self.remedy}"


def missing_section(gaps: Sequence[Gap]) -> Section | None:
    """None where nothing is missing."""
    if not gaps:
        return None
    return Section(
        "not-measured",
        "Not measured",
        "What this page cannot say, and what would add it.",
        (Bullets(tuple(gap.sentence for gap in gaps)),),
    )


def gaps_of(evaluation: Evaluation) -> list[Gap]:
    """Every part that the page lacks; the luck of training always."""
    where = " ".join(shlex.quote(str(path)) for path in evaluation.paths)
    comparison, gaps = evaluation.comparison, []
    if len(comparison.variants) > 1 and evaluation.judge is None:
        gaps.append(Gap("the preference of an LLM judge", f"flowgrain judge {where}"))
    if evaluation.open_study is not None:
        folder = shlex.quote(str(evaluation.open_study))
        remedy = f"flowgrain study close {folder} && flowgrain study results {folder}"
        gaps.append(Gap("the preference of people", remedy, "the study is still open and its variants have no names"))
    elif len(comparison.variants) > 1 and evaluation.study is None:
        gaps.append(Gap("the preference of people", f"flowgrain study new {where}"))
    if not evaluation.metrics.results:
        gaps.append(Gap("metrics", f"flowgrain evaluate {where}"))
    without = [dataset.name for dataset in comparison.datasets if not dataset.references]
    if without:
        remedy = "add references: FOLDER to the data set in comparison.yaml"
        gaps.append(Gap(f"nearness to the domain on {listed(without)}", remedy, "no reference pictures are named"))
    if evaluation.judge is not None and evaluation.study is not None and not evaluation.agreement:
        remedy = "judge and ask people about the same comparison"
        gaps.append(Gap("agreement of judge and people", remedy, "they share no question"))
    if not any(run.log.updates or run.log.validations for run in evaluation.runs):
        gaps.append(Gap("learning curves", f"flowgrain report {where} --runs NAME=RUN"))
    gaps.append(
        Gap(
            "the luck of training",
            "train each variant again with another seed and compare the runs",
            "intervals cover prompts, seeds or raters, not another training run",
        )
    )
    return gaps
