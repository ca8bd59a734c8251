"""Reading the numbers of ``diagnose.json`` and saying them: shared by the sections of its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_figures import LevelCurve, Matrix, MatrixCell
from flowgrain.report.wording import NONE, decimals_for, interval, number, whole_percent

Values = Mapping[str, Any]
VISIBLE = 0.005
"""Entries below this are written as nothing."""
NO_WEIGHT = 0.01
"""Weight of the cross terms below which a level's loss has none to speak of."""


def supported(found: Values) -> bool:
    """Whether an interval excludes 0."""
    low, high = found["low"], found["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def estimate(found: Values, *, sign: bool = False) -> str:
    """``mean (low to high)`` in the decimals that the interval deserves."""
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return NONE
    if low is None or high is None:
        return f"{number(mean, 4, sign)} (no interval)"
    decimals = _decimals(low, high)
    if decimals == decimals_for(low, high):
        return f"{number(mean, decimals, sign)} ({interval(low, high, sign)})"
    return f"{number(mean, decimals, sign)} ({number(low, decimals, sign)} to {number(high, decimals, sign)})"


def _decimals(low: float, high: float) -> int:
    """Decimals that an interval deserves, and more where an end that is not 0 would be written as 0."""
    decimals, nearest = decimals_for(low, high), min(abs(low), abs(high))
    while low * high > 0 and decimals < 6 and round(nearest, decimals) == 0:
        decimals += 1
    return decimals


def share(found: Values) -> str:
    """A mean share as percent with its interval."""
    if found["low"] is None or found["high"] is None:
        return whole_percent(found["mean"])
    return f"{whole_percent(found['mean'])} ({number(100 * found['low'], 0)} to {whole_percent(found['high'])})"


def cell_at(cells: Sequence[Values], point: str, captions: str, t: float) -> Values | None:
    """The entry of a state at a noise level."""
    for cell in cells:
        if (cell["point"], cell["captions"], cell["t"]) == (point, captions, t):
            return cell
    return None


def at_level(rows: Sequence[Values], t: float, **also: str) -> Values | None:
    """The row of a noise level, and of the given values of other keys."""
    for row in rows:
        if row["t"] == t and all(row[key] == value for key, value in also.items()):
            return row
    return None


def matrix(found: Values, scale: float) -> Matrix:
    """Entries over ``scale`` as cells; an entry without an interval that excludes 0 carries no number."""

    def entry(y: int, x: int) -> MatrixCell:
        mean, low, high = (found[name][y][x] for name in ("mean", "low", "high"))
        if mean is None:
            return MatrixCell(None, False)
        value = mean / scale
        known = low is not None and high is not None and (low > 0 or high < 0)
        return MatrixCell(value, known and abs(value) >= VISIBLE)

    size = len(found["mean"])
    return [[entry(y, x) for x in range(size)] for y in range(size)]


def curve(label: str, found: Sequence[Values | None], style: Style) -> LevelCurve:
    """A line through intervals, one a noise level."""

    def column(name: str) -> list[float | None]:
        return [None if item is None else item[name] for item in found]

    return LevelCurve(label, column("mean"), column("low"), column("high"), style)


def grouping_named(values: Values, name: str) -> Values | None:
    """A partition of the interference section that has been measured, None where there is none."""
    for grouping in values["groupings"]:
        if grouping["name"] == name and grouping["cells"]:
            return grouping
    return None


def short_title(grouping: Values) -> str:
    """A partition's name in a legend."""
    return "random control" if grouping["control"] else grouping["title"]


def main_grouping(values: Values) -> Values | None:
    """The partition that the first figures show: semantic levels, else the first that was measured."""
    measured = [grouping for grouping in values["groupings"] if grouping["cells"] and not grouping["control"]]
    return grouping_named(values, "level") or (measured[0] if measured else None)


def meeting_levels(grouping: Values) -> list[Values]:
    """Profiles of the noise levels at which the cross terms have weight."""
    return [profile for profile in grouping["profiles"] if profile["cross_weight"]["mean"] >= NO_WEIGHT]


def telling_level(values: Values, grouping: Values) -> float | None:
    """The noise level that sentences speak of: where the newest state's cross terms weigh most in absolute terms.

    The weight of the cross terms times the local loss without them; None where no level has any.
    """
    last, best = values["points"][-1], None
    for profile in meeting_levels(grouping):
        cell = cell_at(grouping["cells"], last, "empty", profile["t"])
        size = 0.0 if cell is None else profile["cross_weight"]["mean"] * cell["independent"]["mean"]
        if best is None or size > best[0]:
            best = (size, profile["t"])
    return None if best is None else best[1]
