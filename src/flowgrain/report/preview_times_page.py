"""A preview of noise levels and loss weights as a page: densities, weights, and what both come to."""

from collections.abc import Sequence

import torch

from flowgrain.granularity import Granularity, granularity_index
from flowgrain.report.canvas import Style
from flowgrain.report.figures import Curve, modulation_figure
from flowgrain.report.page import Block, Bullets, Figure, FigureRow, Page, Paragraph, Section, Table, without_empty
from flowgrain.report.preview_times import (
    TIME_COLUMNS,
    WEIGHT_COLUMNS,
    WITHOUT,
    any_shift,
    headline,
    named_sizes,
    percent_of,
    pixels,
    remarks,
    time_rows,
    weight_rows,
)
from flowgrain.report.wording import listed, number
from flowgrain.train.time_preview import LevelTimes, SizeTimes, TimePreview
from flowgrain.train.weighted_laws import WeightedLaw

POINTS = 400
"""Noise levels of a curve."""
_PREDICTED = {"velocity": "the velocity", "epsilon": "the noise", "v_prediction": "v", "sample": "the clean latent"}


def preview_page(preview: TimePreview) -> Page:
    """What granularity changes, the densities, the weights, and what both come to."""
    return Page(
        title="Noise levels and loss weights before training",
        subtitle=f"recipe {preview.recipe} on {preview.model}",
        sections=without_empty(
            (_overview(preview), _noise_levels(preview), _loss_weights(preview), _objective(preview))
        ),
    )


def _overview(preview: TimePreview) -> Section:
    blocks: list[Block] = [
        Paragraph(headline(preview)),
        *([Bullets(tuple(found))] if (found := remarks(preview)) else []),
    ]
    blocks.append(Paragraph(f"Sizes: {preview.sizes}.", "warning" if preview.assumed else "note"))
    blocks.append(
        Table(
            "Noise levels by level.",
            "t = 0 is data, t = 1 pure noise. Mean and quantiles of t at the commonest size of each level, the "
            "probability of t below 0.5 (texture) and above 0.9 (layout). mu is the resolution shift of that size, "
            "Delta the granularity shift; the rows of Delta 0 are the law without modulation.",
            TIME_COLUMNS,
            tuple(time_rows(preview)),
            numeric=frozenset(range(2, len(TIME_COLUMNS))),
        )
    )
    return Section(
        "overview",
        "What granularity changes",
        "Computed from the recipe and the model's configuration files, before any training.",
        tuple(blocks),
    )


def _noise_levels(preview: TimePreview) -> Section:
    lead = "Which noise levels each granularity is trained at: the law without modulation against the modulated one."
    if preview.law == "uniform":
        text = "Noise levels are uniform in t for all slices: every one is drawn equally often, whatever granularity."
        return Section("noise-levels", "Noise levels", "How often each noise level is drawn.", (Paragraph(text),))
    rows = [
        FigureRow(
            "Density of t.",
            "Where a curve is high, training spends its time: a curve moved to the right sees noisier pictures, where "
            "layout is decided; one moved to the left sees cleaner ones, where texture is.",
            _density_panels(preview),
        )
    ]
    spread = tuple(_size_panel(preview.modulated, level) for level in preview.levels if level.other_sizes)
    if spread:
        rows.append(
            FigureRow(
                "Density of t by size.",
                "The resolution shift gives larger pictures noisier levels; within one level this spread comes on top "
                "of the granularity's own shift.",
                spread,
            )
        )
    return Section("noise-levels", "Noise levels by level", lead, tuple(rows))


def _density_panels(preview: TimePreview) -> tuple[Figure, ...]:
    with_shift = any_shift(preview)
    t = _grid()

    def curve(side: WeightedLaw, level: LevelTimes, label: str, style: Style) -> Curve:
        return _curve(label, t, side.density(t, level.granularity, level.commonest.tokens), style)

    groups = [[level] for level in preview.levels]
    if len({level.commonest.tokens for level in preview.levels}) == 1:
        groups = [list(preview.levels)]
    panels = []
    for group in groups:
        first = group[0]
        title = (
            f"{first.granularity}, {pixels(first.commonest)}"
            if len(groups) > 1
            else f"All levels, {pixels(first.commonest)}"
        )
        neutral = curve(preview.unmodulated, first, WITHOUT if with_shift else "all levels alike", Style(None))
        curves = [curve(preview.modulated, level, level.granularity, _style(level.granularity)) for level in group]
        drawing = modulation_figure(title, neutral, curves if with_shift else [], "probability density", filled=True)
        panels.append(Figure(drawing, f"Density of the noise level. {title}: {_means(group)}."))
    return tuple(panels)


def _size_panel(side: WeightedLaw, level: LevelTimes) -> Figure:
    t = _grid()

    def curve(size: SizeTimes, style: Style) -> Curve:
        return _curve(pixels(size), t, side.density(t, level.granularity, size.tokens), style)

    others = [curve(size, Style(index, index + 1)) for index, size in enumerate(level.other_sizes)]
    title = f"{level.granularity} by size"
    neutral = curve(level.commonest, Style(None))
    means = ", ".join(f"{pixels(size)} has mean {number(size.modulated.mean, 3)}" for _, size in named_sizes(level))
    drawing = modulation_figure(title, neutral, others, "probability density", filled=True)
    return Figure(drawing, f"Density of the noise level of {title}: {means}.")


def _loss_weights(preview: TimePreview) -> Section | None:
    if preview.weighting == "none":
        return None
    t = _grid()
    levels: list[Granularity] = [level.granularity for level in preview.levels]
    plain = preview.unmodulated.weight(t, levels[0])
    if "weighting.gamma" in preview.modulates:
        neutral = _curve("gamma 5 for all", t, plain, Style(None))
        curves = [_curve(level, t, preview.modulated.weight(t, level), _style(level)) for level in levels]
    else:
        neutral, curves = _curve("all levels alike", t, plain, Style(None)), []
    reading = {
        "epsilon": "The weight is 1 where noise prevails and falls where little of it is left, above the SNR that is "
        "the level's gamma: a larger gamma keeps more of the clean end, where fine texture is learned.",
        "v_prediction": "The weight falls to both ends: to noise because v is then almost the picture, to the clean "
        "end above the SNR that is the level's gamma.",
        "sample": "The weight rises with the SNR and is capped at the level's gamma.",
    }
    text = "Debiased estimation weighs noisy levels up: 1 / sqrt(SNR), or 1 / (SNR + 1) for v."
    drawing = modulation_figure("All levels", neutral, curves, "weight of the squared error")
    alt = "Weight of the squared error over the noise level: " + "; ".join(
        f"{level.granularity} has mean {number(level.weight.mean_weight, 3)}" for level in preview.levels
    )
    return Section(
        "loss-weights",
        "Loss weights by level",
        "What the squared error at a noise level is multiplied by, before it is known how often that level is drawn.",
        (
            FigureRow(
                "Weight of the loss.",
                reading[preview.target] if preview.weighting == "min_snr" else text,
                (Figure(drawing, f"{alt}."),),
            ),
        ),
    )


def _objective(preview: TimePreview) -> Section:
    t = _grid()
    levels: list[Granularity] = [level.granularity for level in preview.levels]
    now = [preview.modulated.multiplier(t, level) for level in levels]
    before = torch.stack([preview.unmodulated.multiplier(t, level) for level in levels]).sum(dim=0)
    total = torch.stack(now).sum(dim=0)
    curves = [_curve(name, t, values, _style(name)) for name, values in zip(levels, now, strict=True)]
    figures = [_objective_panel("By level", _curve("all levels", t, total, Style(None)), curves)]
    if preview.modulates:
        together = [_curve("modulated", t, total, Style(0, 1))]
        figures.append(_objective_panel("All levels together", _curve(WITHOUT, t, before, Style(None)), together))
    shares = ", ".join(f"{level.granularity} {percent_of(level.weight.loss_share)}" for level in preview.levels)
    plan = "the assumed plan" if preview.updates is None else f"the {preview.updates} updates of the first epoch"
    return Section(
        "objective",
        "The effective objective",
        f"Density times weight: what the squared error of {_PREDICTED[preview.target]} is multiplied by, over t.",
        (
            FigureRow(
                "Density of t times the weight of the loss.",
                "Each curve is the density of a level's noise levels (all its sizes) times its loss weight, times its "
                f"share of the weights w of {plan}, lambda included; the area under it is the level's part of the "
                "objective. Where a curve is twice as high, the same error counts twice. The error itself differs "
                "over t, so these are not yet parts of the loss.",
                tuple(figures),
            ),
            Table(
                "Weight by level.",
                f"Share of the planned weights in {plan}; mean weight of the loss over the noise levels drawn; the "
                f"share of both together, with and {WITHOUT} (no granularity shift, one gamma, lambda 1): {shares}.",
                WEIGHT_COLUMNS,
                tuple(weight_rows(preview)),
                numeric=frozenset(range(1, len(WEIGHT_COLUMNS) - 1)),
            ),
        ),
    )


def _objective_panel(title: str, neutral: Curve, curves: Sequence[Curve]) -> Figure:
    drawing = modulation_figure(title, neutral, curves, "density times weight", filled=True)
    names = listed([neutral.label, *(curve.label for curve in curves)])
    return Figure(drawing, f"Density times weight over the noise level. {title}: {names}.")


def _grid() -> torch.Tensor:
    return (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS


def _curve(label: str, t: torch.Tensor, values: torch.Tensor, style: Style) -> Curve:
    return Curve(label, t.tolist(), values.tolist(), style)


def _style(level: Granularity) -> Style:
    # as in the reports of runs, whose first colours belong to arms
    index = granularity_index(level)
    return Style(3 + index, index)


def _means(levels: Sequence[LevelTimes]) -> str:
    return ", ".join(
        f"mean of {level.granularity} {number(level.commonest.modulated.mean, 3)}"
        + (f" ({WITHOUT} {number(level.commonest.unmodulated.mean, 3)})" if level.granularity_shift else "")
        for level in levels
    )
