"""The vocabulary of granularity: macro, meso and micro (Semantic Granularity Alignment, section 3.3).

A level of a decomposition has a free name (``halfbody``, ``eyes``); its granularity is one of these three and
decides the modulation of noise levels and weights. In batches granularity travels as its index, 0 = coarsest.
"""

from typing import Literal

Granularity = Literal["macro", "meso", "micro"]
GRANULARITIES: tuple[Granularity, ...] = ("macro", "meso", "micro")


def granularity_index(name: Granularity) -> int:
    """Index of a granularity, 0 for macro to 2 for micro."""
    return GRANULARITIES.index(name)
