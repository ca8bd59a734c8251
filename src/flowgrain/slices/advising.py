"""What a warning is, and its numbers in words."""

from dataclasses import dataclass

from flowgrain.slices.statistics import Example


@dataclass(frozen=True)
class Advice:
    """One warning."""

    code: str
    """Short stable name of the kind of warning."""
    title: str
    numbers: str
    remedy: str
    examples: tuple[Example, ...] = ()


def amount(number: int) -> str:
    """A number with thin spaces between thousands."""
    return f"{number:,}".replace(",", "\u2009")


def share(part: int, whole: int) -> str:
    """Per cent, never rounded to none or all."""
    if not whole or part in (0, whole):
        return f"{100 * part // max(whole, 1)}\u00a0%"
    percent = 100 * part / whole
    return "less than 1\u00a0%" if percent < 1 else f"{min(round(percent), 99)}\u00a0%"
