"""The tables on settings that were tried, on domains kept aside, and on arms at equal seconds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .claims import CLOSE, LOSSES, WHOLE, At, Compared, Measure, Setting, Store, compare, level_of
from .document import interval, number, table

COLUMNS: tuple[Measure, ...] = (*LOSSES, WHOLE[0], WHOLE[3], CLOSE[0])
BASELINE = "baseline"


def against(store: Store, setting: Setting, reference: str, arms: Iterable[str]) -> str:
    """Every arm less the reference at 1.0 N1, with intervals over the setting's domains."""
    rows = [[reference, *(number(level_of(store, setting, At(reference, 1.0), m), _digits(m)) for m in COLUMNS)]]
    for arm in arms:
        found = [compare(store, setting, At(reference, 1.0), At(arm, 1.0), measure) for measure in COLUMNS]
        if arm != reference and any(found):
            rows.append([arm, *("" if one is None else _cell(one) for one in found)])
    names = [f"{m.name} ({m.better} is better)" for m in COLUMNS]
    return table([f"difference to {reference}", *names], rows)


def at_equal_seconds(store: Store, setting: Setting, ratios: Mapping[str, Sequence[float]]) -> str:
    """Arms at the seconds that the baseline takes for 1.0 N1: their slices cost ``ratios`` of the baseline's."""
    rows = []
    for arm, (median, low, high) in ratios.items():
        reached = At(arm, 1.0 / median)
        found = [compare(store, setting, At(BASELINE, 1.0), reached, measure) for measure in LOSSES]
        if any(found):
            cost = f"{number(median, 3)} [{number(low, 3)}, {number(high, 3)}]"
            rows.append([arm, cost, number(1.0 / median, 2), *("" if one is None else _cell(one) for one in found)])
    names = [f"{m.name}, less the baseline's" for m in LOSSES]
    return table(["arm", "seconds a slice over the baseline's", "N1 in the baseline's seconds", *names], rows)


def _cell(one: Compared) -> str:
    sign = 1 if one.measure.better == "higher" else -1
    better = sum(sign * part.value > 0 for part in one.by_domain.values())
    return f"{interval(one.whole, _digits(one.measure))}, {better} of {len(one.by_domain)}"


def _digits(measure: Measure) -> int:
    return min(measure.digits, 4)


def seconds_blocks(store: Store, settings: Mapping[str, Setting], seconds: Mapping[str, Any]) -> dict[str, str]:
    """One block a model that was timed."""
    return {f"seconds-{model}": at_equal_seconds(store, settings[model], found) for model, found in seconds.items()}
