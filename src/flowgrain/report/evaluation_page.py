"""The report of an evaluation as one page."""

from flowgrain.report.evaluation import Evaluation
from flowgrain.report.page import Page, without_empty
from flowgrain.report.sections.calibration import calibration_section
from flowgrain.report.sections.checkpoints import checkpoints_section
from flowgrain.report.sections.curves import curves_section
from flowgrain.report.sections.headline import headline_section
from flowgrain.report.sections.measures import measures_section
from flowgrain.report.sections.missing import gaps_of, missing_section
from flowgrain.report.sections.preferences import preferences_section
from flowgrain.report.sections.rankings import rankings_section
from flowgrain.report.sections.side_by_side import side_by_side_section
from flowgrain.report.sections.trust import trust_section
from flowgrain.report.wording import counted, listed

ROWS = 8
SIDE = 512


def evaluation_page(evaluation: Evaluation, title: str | None = None, *, rows: int = ROWS, side: int = SIDE) -> Page:
    """Headline first, sections without data left out, what was not measured last.

    ``rows`` of pictures a data set are embedded, scaled down to at most ``side`` pixels.
    """
    comparison, gaps = evaluation.comparison, gaps_of(evaluation)
    names = [dataset.name for dataset in comparison.datasets]
    return Page(
        title or f"Evaluation of {listed(names)}",
        f"{counted(len(comparison.variants), 'variant')}, protocol {comparison.protocol.preset}: "
        f"{listed(comparison.variants)}.",
        without_empty(
            [
                headline_section(evaluation, gaps),
                *(rankings_section(ballot) for ballot in evaluation.ballots),
                preferences_section(evaluation.sources, evaluation.styles),
                trust_section(evaluation.ballots, evaluation.agreement),
                side_by_side_section(comparison, rows, side),
                calibration_section(evaluation),
                measures_section(evaluation.metrics, evaluation.styles),
                checkpoints_section(evaluation),
                curves_section(evaluation.runs),
                missing_section(gaps),
            ]
        ),
    )
