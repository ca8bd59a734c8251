"""Fixed-t validation: the loss at the same noise, noise levels and held-out slices for every arm."""

from collections.abc import Mapping, Sequence

from flowgrain.report.arms import Arm, arm_styles
from flowgrain.report.canvas import Style
from flowgrain.report.figures import Curve, noise_level_figure
from flowgrain.report.page import Block, Figure, FigureRow, Section
from flowgrain.report.wording import number


def validation_section(arms: Sequence[Arm]) -> Section | None:
    """Loss by noise level and arm, for each granularity; and as change against the base model where there is one."""
    measured = [arm for arm in arms if arm.validation is not None]
    if not measured:
        return None
    levels = list(dict.fromkeys(level for arm in measured for level in _by_level(arm)))
    styles = arm_styles(arms)
    blocks: list[Block] = [
        FigureRow(
            "Loss by noise level.",
            "Lower is better; every arm is measured on the same held-out slices with the same noise. One colour is one "
            "run, its checkpoints differ in dash and marker; the base model is grey.",
            tuple(_absolute(level, measured, styles) for level in levels),
        )
    ]
    base = next((arm for arm in measured if arm.fraction is None), None)
    trained = [arm for arm in measured if arm.fraction is not None]
    if base is not None and trained:
        blocks.append(
            FigureRow(
                f"Change against {base.name}.",
                "The same numbers as percent of the base model's loss, where small differences can be seen: below "
                "zero an arm has improved on it at that noise level.",
                tuple(_relative(level, trained, base, styles) for level in levels if level in _by_level(base)),
            )
        )
    return Section(
        "validation",
        "Validation",
        "How well each arm predicts the noise of pictures that it was not trained on, from almost clean (t near 0) to "
        "almost pure noise (t near 1).",
        tuple(blocks),
    )


def _by_level(arm: Arm) -> dict[str, Sequence[float]]:
    return {} if arm.validation is None else dict(arm.validation.by_level)


def _levels_of_t(arm: Arm) -> tuple[float, ...]:
    return () if arm.validation is None else arm.validation.t


def _absolute(level: str, arms: Sequence[Arm], styles: Mapping[str, Style]) -> Figure:
    curves = [
        Curve(arm.title, _levels_of_t(arm), _by_level(arm)[level], styles[arm.title])
        for arm in arms
        if level in _by_level(arm)
    ]
    return Figure(
        noise_level_figure(f"{level} slices", curves, "loss (mean squared error)"),
        f"Validation loss of {level} slices by noise level. Means: {_means(curves)}.",
    )


def _relative(level: str, arms: Sequence[Arm], base: Arm, styles: Mapping[str, Style]) -> Figure:
    reference = _by_level(base)[level]
    curves = []
    for arm in arms:
        if level in _by_level(arm):
            change = [100 * (value / old - 1) for value, old in zip(_by_level(arm)[level], reference, strict=True)]
            curves.append(Curve(arm.title, _levels_of_t(arm), change, styles[arm.title]))
    return Figure(
        noise_level_figure(f"{level} slices", curves, f"change against {base.name} (%)", zero=base.name),
        f"Change of the validation loss of {level} slices against {base.name} in percent. Means: {_means(curves)}.",
    )


def _means(curves: Sequence[Curve]) -> str:
    return ", ".join(f"{curve.label} {number(sum(curve.y) / len(curve.y), 4)}" for curve in curves)
