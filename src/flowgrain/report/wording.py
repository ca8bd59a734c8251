"""Numbers and verdicts in words."""

import math
from collections.abc import Sequence

from flowgrain.evaluate.ranking.summary import Estimate
from flowgrain.evaluate.results import MetricDifference, MetricResult

NO_DIFFERENCE = "no difference that the interval supports"
NONE = "–"
MINUS = "−"
HARD_SPACE = "\u00a0"


def number(value: float | int, decimals: int, sign: bool = False) -> str:
    """``value`` with a true minus sign and thousands separated by thin spaces."""
    text = f"{value:{'+' if sign else ''},.{decimals}f}".replace(",", "\u2009")
    zero = not any(digit in text for digit in "123456789")
    return text.replace("-", "" if zero else MINUS).replace("+", "" if zero else "+")


def decimals_for(low: float, high: float) -> int:
    """Decimals that show two digits of an interval's half width, between 0 and 6."""
    half = (high - low) / 2
    if not half > 0 or not math.isfinite(half):
        return 4
    return min(max(1 - math.floor(math.log10(half)), 0), 6)


def interval(low: float, high: float, sign: bool = False) -> str:
    """``low to high`` in the decimals that the interval deserves; says so where there is none (NaN)."""
    if math.isnan(low) or math.isnan(high):
        return "no interval"
    decimals = decimals_for(low, high)
    return f"{number(low, decimals, sign)} to {number(high, decimals, sign)}"


def percent(level: float) -> str:
    """A confidence level as it is spoken of."""
    return f"{100 * level:g}{HARD_SPACE}%"


def duration(seconds: float | int) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds < 120:
        return f"{number(seconds, 1)} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def measure_name(item: MetricDifference | MetricResult) -> str:
    """What was measured, on what, and which way is better where one is."""
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[item.higher_is_better]
    return f"{item.name}, {item.subset}{better}"


def verdict(difference: MetricDifference) -> str:
    """Which arm is ahead, or that the interval supports no difference, or that neither way is better."""
    if difference.ahead is not None:
        return f"{difference.ahead} is ahead"
    return "they differ, neither way is better by itself" if difference.supported else NO_DIFFERENCE


def difference_sentence(difference: MetricDifference) -> str:
    """One comparison, whole: arms, measure, direction, verdict, size and interval."""
    decimals = decimals_for(difference.low, difference.high)
    return (
        f"{difference.second} against {difference.first}, {measure_name(difference)}: {verdict(difference)}, "
        f"{number(difference.value, decimals, sign=True)}, {percent(difference.level)} interval "
        f"{interval(difference.low, difference.high, sign=True)}."
    )


def share(estimate: Estimate) -> str:
    """A share of 0 to 1 as percent, with its interval where there is one."""
    value = whole_percent(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({number(100 * estimate.low, 0)} to {whole_percent(estimate.high)})"


def whole_percent(part: float) -> str:
    """A share of 0 to 1 as percent without decimals."""
    return f"{number(100 * part, 0)}{HARD_SPACE}%"


def p_value(p: float) -> str:
    """A p-value as it is written in a table."""
    return "< 0.001" if p < 0.001 else number(p, 3)


def p_equals(p: float) -> str:
    """A p-value as it is written in a sentence."""
    return f"p {'' if p < 0.001 else '= '}{p_value(p)}"


def points(estimate: Estimate) -> str:
    """A difference of two shares in percentage points, signed, with its interval where there is one."""
    value = number(100 * estimate.value, 0, sign=True)
    if estimate.low is None or estimate.high is None:
        return f"{value} points"
    low, high = (number(100 * end, 0, sign=True) for end in (estimate.low, estimate.high))
    return f"{value} points ({low} to {high})"


def decimal(estimate: Estimate | None, decimals: int = 2) -> str:
    """A number with its interval where there is one."""
    if estimate is None:
        return NONE
    value = number(estimate.value, decimals)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({number(estimate.low, decimals)} to {number(estimate.high, decimals)})"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 answer``, ``12 answers``."""
    return f"{number(count, 0)} {noun if count == 1 else plural or noun + 's'}"
