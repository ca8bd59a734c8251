"""The comparison of arms as one page."""

from collections.abc import Mapping, Sequence

from flowgrain.evaluate.results import MetricTable
from flowgrain.report.arms import Arm, DataInfo, arm_styles
from flowgrain.report.page import Page, without_empty
from flowgrain.report.sections.cost import cost_section
from flowgrain.report.sections.data import data_section
from flowgrain.report.sections.measures import measures_section
from flowgrain.report.sections.pictures import pictures_section
from flowgrain.report.sections.summary import summary_section
from flowgrain.report.sections.training import LossWeights, TimeLaws, loss_section, time_section, weight_section
from flowgrain.report.sections.validation import validation_section


def comparison_page(
    title: str,
    subtitle: str,
    arms: Sequence[Arm],
    data: DataInfo | None,
    metrics: MetricTable,
    *,
    laws: TimeLaws | None = None,
    weights: LossWeights | None = None,
    stages: Mapping[str, float] | None = None,
    versions: Mapping[str, str] | None = None,
    runs_per_arm: int = 1,
    rows_per_grid: int = 10,
) -> Page:
    """Everything about a comparison, headline first; sections without data are left out.

    ``arms`` come in the order of the picture columns, the base model first. ``stages`` are wall-clock seconds.
    """
    return Page(
        title,
        subtitle,
        without_empty(
            [
                summary_section(metrics, runs_per_arm),
                pictures_section(arms, rows_per_grid),
                measures_section(metrics, arm_styles(arms)),
                validation_section(arms),
                loss_section(arms),
                None if laws is None else time_section(laws, arms),
                None if weights is None else weight_section(weights),
                None if data is None else data_section(data),
                cost_section(arms, stages or {}, versions or {}),
            ]
        ),
    )
