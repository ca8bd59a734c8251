"""Learning curves of the runs behind the variants: validation loss by level, training loss, what differs."""

from collections.abc import Sequence

from flowgrain.report.arms import Arm
from flowgrain.report.canvas import Style
from flowgrain.report.evaluation import TrainedRun
from flowgrain.report.figures import Curve, progress_figure
from flowgrain.report.page import Block, Details, Figure, FigureRow, Section
from flowgrain.report.sections.cost import differing_settings
from flowgrain.report.sections.training import loss_section
from flowgrain.report.sections.validation import validation_section
from flowgrain.report.wording import number


def curves_section(runs: Sequence[TrainedRun]) -> Section | None:
    """One group of figures for each data set that runs were trained for."""
    logged = [run for run in runs if run.log.updates or run.log.validations]
    if not logged:
        return None
    groups = {name: [run for run in logged if run.dataset == name] for name in dict.fromkeys(r.dataset for r in logged)}
    blocks: list[Block] = []
    for name, members in groups.items():
        inner = _group(members, "" if name is None or len(groups) == 1 else f"{name}: ")
        blocks += inner if not blocks else [Details(f"Learning curves of {name}", tuple(inner))]
    return Section(
        "training",
        "Learning curves",
        "How well each run predicts the noise of held-out pictures while it learns, for each level on its own.",
        tuple(blocks),
    )


def _group(runs: Sequence[TrainedRun], prefix: str) -> list[Block]:
    blocks: list[Block] = []
    levels = list(dict.fromkeys(level for run in runs for v in run.log.validations for level in v.by_level))
    if levels:
        blocks.append(
            FigureRow(
                f"{prefix}Held-out loss over training.",
                "Mean over noise levels, the same noise and held-out slices at every point; lower is better.",
                tuple(_validation(level, runs) for level in levels),
            )
        )
    arms = [Arm(run.name, fraction, (), run.log, run.settings) for run in runs for fraction in run.fractions or (1.0,)]
    for section in (validation_section(arms), loss_section(arms)):
        if section is not None:
            blocks.append(Details(f"{section.title}: {section.lead}", section.blocks))
    differing = differing_settings(arms)
    return blocks if differing is None else [*blocks, differing]


def _validation(level: str, runs: Sequence[TrainedRun]) -> Figure:
    curves = []
    for index, run in enumerate(runs):
        points = [
            (v.slices, sum(v.by_level[level]) / len(v.by_level[level]))
            for v in run.log.validations
            if level in v.by_level
        ]
        if points:
            curves.append(Curve(run.name, [x for x, _ in points], [y for _, y in points], Style(index, index)))
    ends = ", ".join(
        f"{curve.label} from {number(curve.y[0], 4)} to {number(curve.y[-1], 4)}, lowest {number(min(curve.y), 4)}"
        for curve in curves
    )
    drawing = progress_figure(f"{level} slices, held out", curves, "loss (mean squared error)")
    return Figure(drawing, f"Held-out loss of {level} slices over training: {ends}.")
