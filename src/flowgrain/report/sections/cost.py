"""What it cost, what differed between the arms, and which software ran."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from flowgrain.report.arms import Arm
from flowgrain.report.page import Block, Section, Table
from flowgrain.report.wording import NONE, duration, number


def cost_section(arms: Sequence[Arm], stages: Mapping[str, float], versions: Mapping[str, str]) -> Section:
    """Training and sampling cost by arm, wall time by stage, settings that differ, versions."""
    blocks: list[Block] = [_costs(arms)]
    if stages:
        blocks.append(_stages(stages))
    differing = differing_settings(arms)
    if differing is not None:
        blocks.append(differing)
    if versions:
        blocks.append(
            Table(
                "Versions.",
                "Software that made these numbers.",
                ("package", "version"),
                tuple(versions.items()),
            )
        )
    return Section("cost", "What it cost", "Time and passes by arm, and what differed between them.", tuple(blocks))


def _costs(arms: Sequence[Arm]) -> Table:
    rows = []
    for arm in arms:
        cost = arm.training_cost
        trained = (NONE,) * 5
        if cost is not None:
            speed = number(cost.slices / cost.seconds, 1) if cost.seconds > 0 else NONE
            counts = (number(count, 0) for count in (cost.updates, cost.slices, cost.macro_passes))
            trained = (*counts, duration(cost.seconds), speed)
        parameters = NONE if arm.trainable_parameters is None else number(arm.trainable_parameters, 0)
        sampling = NONE if arm.pictures_per_second is None else number(arm.pictures_per_second, 2)
        rows.append((arm.title, parameters, *trained, sampling))
    columns = (
        "arm",
        "trained parameters",
        "updates",
        "slice passes",
        "whole-image passes",
        "training time",
        "slices per second",
        "pictures sampled per second",
    )
    return Table(
        "Cost by arm.",
        "Slice passes are all forward passes of training, whole-image passes those of macro slices among them; at "
        "equal slice passes an arm that trains on slices has seen fewer whole images.",
        columns,
        tuple(rows),
        numeric=frozenset(range(1, len(columns))),
    )


def _stages(stages: Mapping[str, float]) -> Table:
    rows = [
        *((name, duration(seconds)) for name, seconds in stages.items()),
        ("together", duration(sum(stages.values()))),
    ]
    return Table(
        "Time by stage.", "Wall-clock time of the whole comparison.", ("stage", "time"), tuple(rows), frozenset({1})
    )


def differing_settings(arms: Sequence[Arm]) -> Table | None:
    """Settings that are not the same in all trained runs; None with fewer than two runs or nothing to show."""
    runs = {arm.name: dict(_flat(arm.settings)) for arm in arms if arm.fraction is not None and arm.settings}
    keys = sorted({key for settings in runs.values() for key in settings})
    rows = []
    for key in keys:
        values = [_shown(settings[key]) if key in settings else NONE for settings in runs.values()]
        if len(set(values)) > 1:
            rows.append((key, *values))
    if len(runs) < 2 or not rows:
        return None
    return Table(
        "Settings that differ.",
        "All other settings of the recipes are equal, so a difference in results can only come from these.",
        ("setting", *runs),
        tuple(rows),
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves += _flat(value, f"{name}.")
        else:
            leaves.append((name, value))
    return leaves


def _shown(value: Any) -> str:
    if isinstance(value, str) and PurePath(value).is_absolute():
        return str(PurePath("…", *PurePath(value).parts[-2:]))  # a page is passed on: it need not tell of folders
    return "none" if value is None or value == [] else str(value)
