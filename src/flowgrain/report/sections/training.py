"""Training seen from inside: loss by level, noise levels or loss weights by level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flowgrain.flow.time_laws import TimeLaw
from flowgrain.flow.weightings import Weighting
from flowgrain.granularity import GRANULARITIES, Granularity, granularity_index
from flowgrain.report.arms import Arm
from flowgrain.report.canvas import Style
from flowgrain.report.figures import Curve, loss_figure, modulation_figure
from flowgrain.report.page import Figure, FigureRow, Section, Table
from flowgrain.report.run_log import RunLog
from flowgrain.report.wording import NONE, number

GRID_POINTS = 199
TABLE_STEPS = 1000
"""Noise levels of a diffusion model's table."""


@dataclass(frozen=True)
class TimeLaws:
    """The law of noise levels without and with modulation, and the image tokens of a slice at each granularity."""

    neutral: TimeLaw
    modulated: TimeLaw
    tokens: Mapping[Granularity, int]

    @property
    def levels(self) -> tuple[Granularity, ...]:
        """The granularities that have tokens, coarsest first."""
        return tuple(level for level in GRANULARITIES if level in self.tokens)


@dataclass(frozen=True)
class LossWeights:
    """The loss weight over noise levels without and with modulation: how granularity acts on diffusion models."""

    neutral: Weighting
    modulated: Weighting


def runs_of(arms: Sequence[Arm]) -> dict[str, RunLog]:
    """The log of each trained run by name, once for all its checkpoints."""
    return {arm.name: arm.log for arm in arms if arm.fraction is not None and arm.log.updates}


def loss_section(arms: Sequence[Arm]) -> Section | None:
    """Training loss by level over slices, all runs in one panel."""
    runs = runs_of(arms)
    levels = list(dict.fromkeys(level for log in runs.values() for level in log.levels()))
    if not levels:
        return None
    figures = tuple(_loss_panel(level, runs) for level in levels)
    return Section(
        "loss",
        "Training loss by level",
        "How well each run predicts the noise of the slices it is shown while it learns, for each level on its own.",
        (
            FigureRow(
                "Loss over slices.",
                "Lower is better; faint lines are single updates, strong ones a moving average. Runs draw or weigh "
                "noise levels otherwise where modulation is on, so compare the trend here and the values under "
                "Validation.",
                figures,
            ),
        ),
    )


def _loss_panel(level: str, runs: Mapping[str, RunLog]) -> Figure:
    curves = []
    for index, (name, log) in enumerate(runs.items()):
        points = [(r.slices, r.loss_by_level[level]) for r in log.updates if level in r.loss_by_level]
        if points:
            curves.append(Curve(name, [x for x, _ in points], [y for _, y in points], Style(index, index)))
    ends = ", ".join(f"{curve.label} ends at {number(curve.y[-1], 3)}" for curve in curves)
    return Figure(loss_figure(f"{level} slices", curves), f"Training loss of {level} slices over slices seen: {ends}.")


def time_section(laws: TimeLaws, arms: Sequence[Arm]) -> Section:
    """Densities of the noise level by granularity, and the mean levels that training really drew."""
    return Section(
        "noise-levels",
        "Noise levels by level",
        "Which noise levels each granularity is trained at: the law without modulation against the modulated one.",
        (_densities(laws), _mean_levels(laws, arms)),
    )


def weight_section(weights: LossWeights) -> Section:
    """Loss weights over the noise level by granularity, and the part of the loss that each level keeps."""
    neutral = _weights(weights.neutral, GRANULARITIES[0], "not modulated", Style(None))
    curves = [_weights(weights.modulated, level, level, _level_style(level)) for level in GRANULARITIES]
    means = tuple((curve.label, number(sum(curve.y) / len(curve.y), 3)) for curve in curves)
    caption = "Weight of the squared error over the noise level, by granularity."
    return Section(
        "loss-weights",
        "Loss weights by level",
        "Noise levels are drawn alike for all slices here; granularity acts through the weight of the loss instead.",
        (
            FigureRow(
                "Weight of the loss.",
                "Weights fall where little noise is left, for macro slices first: fine texture is learned from "
                "close-ups more than from whole pictures.",
                (Figure(modulation_figure("All levels", neutral, curves, "weight of the squared error"), caption),),
            ),
            Table(
                "Mean weight.",
                "Over all noise levels: how much of its loss a level keeps.",
                ("level", "mean weight"),
                means,
                numeric=frozenset({1}),
            ),
        ),
    )


def _weights(weighting: Weighting, level: Granularity, label: str, style: Style) -> Curve:
    t = (torch.arange(TABLE_STEPS, dtype=torch.float64) + 0.5) / TABLE_STEPS
    weight = weighting(t, torch.full((TABLE_STEPS,), granularity_index(level)))
    return Curve(label, t.tolist(), weight.tolist(), style)


def _densities(laws: TimeLaws) -> FigureRow:
    curves = {
        level: _density(laws.modulated, level, tokens, level, _level_style(level))
        for level, tokens in laws.tokens.items()
    }
    neutral = {
        level: _density(laws.neutral, level, tokens, "not modulated", Style(None))
        for level, tokens in laws.tokens.items()
    }
    if len(set(laws.tokens.values())) == 1:
        panels = [("All levels", neutral[laws.levels[0]], [curves[level] for level in laws.levels])]
    else:
        panels = [(f"{level}, {laws.tokens[level]} tokens", neutral[level], [curves[level]]) for level in laws.levels]
    return FigureRow(
        "Density of t.",
        "Where a curve is high, training spends its time: a curve moved to the right sees noisier pictures, where "
        "layout is decided; one moved to the left sees cleaner ones, where texture is.",
        tuple(
            Figure(
                modulation_figure(title, neutral, modulated, "probability density", filled=True),
                f"Density of the noise level: {title}.",
            )
            for title, neutral, modulated in panels
        ),
    )


def _density(law: TimeLaw, level: Granularity, tokens: int, label: str, style: Style) -> Curve:
    t = torch.linspace(0, 1, GRID_POINTS + 2, dtype=torch.float64)[1:-1]
    density = law.density(t, *_conditions(level, tokens, len(t)))
    return Curve(label, t.tolist(), density.tolist(), style)


def _level_style(level: Granularity) -> Style:
    # the last colours: the first belong to arms
    index = granularity_index(level)
    return Style(3 + index, index)


def _mean(law: TimeLaw, level: Granularity, tokens: int) -> float:
    u = (torch.arange(GRID_POINTS, dtype=torch.float64) + 0.5) / GRID_POINTS
    return law.quantile(u, *_conditions(level, tokens, len(u))).mean().item()


def _conditions(level: Granularity, tokens: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count,), granularity_index(level)), torch.full((count,), tokens)


def _mean_levels(laws: TimeLaws, arms: Sequence[Arm]) -> Table:
    runs = runs_of(arms)
    rows = []
    for level in laws.levels:
        law_means = [_mean(law, level, laws.tokens[level]) for law in (laws.neutral, laws.modulated)]
        drawn = [_drawn_mean(log, level) for log in runs.values()]
        rows.append((level, *(number(m, 3) for m in law_means), *(NONE if m is None else number(m, 3) for m in drawn)))
    columns = ("level", "law, not modulated", "law, modulated", *(f"drawn in {name}" for name in runs))
    return Table(
        "Mean noise level.",
        "What the laws promise against what each run drew (the mean over all its slices): a run should agree with "
        "the law that it was trained under.",
        columns,
        tuple(rows),
        numeric=frozenset(range(1, len(columns))),
    )


def _drawn_mean(log: RunLog, level: str) -> float | None:
    pairs = [
        (record.mean_t_by_level[level], record.count_by_level[level])
        for record in log.updates
        if level in record.mean_t_by_level
    ]
    total = sum(count for _, count in pairs)
    return sum(mean * count for mean, count in pairs) / total if total else None
