"""Numbers and verdicts in words."""

import math

from flowgrain.evaluate.table import MetricDifference, MetricResult

NO_DIFFERENCE = "no difference that the interval supports"
NONE = "–"
MINUS = "−"


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
    """``low to high`` in the decimals that the interval deserves."""
    decimals = decimals_for(low, high)
    return f"{number(low, decimals, sign)} to {number(high, decimals, sign)}"


def percent(level: float) -> str:
    """A confidence level as it is spoken of."""
    return f"{100 * level:g} %"


def duration(seconds: float | int) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds < 120:
        return f"{number(seconds, 1)} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def measure_name(item: MetricDifference | MetricResult) -> str:
    """What was measured, on what, and which way is better."""
    better = "higher is better" if item.higher_is_better else "lower is better"
    return f"{item.name}, {item.subset} ({better})"


def verdict(difference: MetricDifference) -> str:
    """Which arm is ahead, or that the interval supports no difference."""
    return f"{difference.ahead} is ahead" if difference.ahead is not None else NO_DIFFERENCE


def difference_sentence(difference: MetricDifference) -> str:
    """One comparison, whole: arms, measure, direction, verdict, size and interval."""
    decimals = decimals_for(difference.low, difference.high)
    return (
        f"{difference.second} against {difference.first}, {measure_name(difference)}: {verdict(difference)}, "
        f"{number(difference.value, decimals, sign=True)}, {percent(difference.level)} interval "
        f"{interval(difference.low, difference.high, sign=True)}."
    )
