"""Counting in memory that does not grow: histograms, the few items that matter most, the most common texts.

What they hold does not depend on the order in which things come, but for :class:`Frequent` beyond its capacity.
"""

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flowgrain.rng import stable_seed

T = TypeVar("T")


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram, half-open."""

    low: float | int
    high: float | int
    count: int


@dataclass
class Histogram:
    """Counts of numbers in bins of one width; ``octaves``: of their binary logarithm, for numbers above 0."""

    width: float | int
    octaves: bool = False
    counts: Counter[int] = field(default_factory=Counter)
    least: float | int = math.inf
    greatest: float | int = -math.inf

    _TINY = 2.0**-10
    """Stands for 0 on a logarithmic axis."""

    def add(self, value: float | int) -> None:
        """Count a number."""
        place = math.log2(max(value, self._TINY)) if self.octaves else value
        self.counts[math.floor(place / self.width + 1e-9)] += 1
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.counts.total()

    def quantile(self, part: float) -> float | int:
        """The middle of the bin in which this part (0 to 1) of the numbers is reached; NaN without any."""
        left = part * self.total
        for index in sorted(self.counts):
            left -= self.counts[index]
            if left <= 0:
                return min(max(self._value(index + 0.5), self.least), self.greatest)
        return math.nan

    def below(self, limit: float | int) -> int:
        """How many lie in bins that are wholly below ``limit``."""
        return sum(count for index, count in self.counts.items() if self._value(index + 1) <= limit)

    def bars(self, merge: int = 1) -> list[Bar]:
        """All bins from the first to the last that holds something, ``merge`` of them to a bar."""
        merged: Counter[int] = Counter()
        for index, count in self.counts.items():
            merged[index // merge] += count
        if not merged:
            return []
        span = range(min(merged), max(merged) + 1)
        return [Bar(self._value(i * merge), self._value((i + 1) * merge), merged[i]) for i in span]

    def _value(self, index: float | int) -> float | int:
        place = index * self.width
        return 2.0**place if self.octaves else place


class Least(Generic[T]):
    """The items of the least keys, a fixed number of them, in the order of their keys."""

    def __init__(self, size: int):
        self._size = size
        self._keys: list[tuple[float, str]] = []
        self._items: list[T] = []

    def offer(self, value: float, name: str, item: T) -> None:
        """Take ``item`` in where its key (value, then name) is among the least."""
        key = value, name
        if len(self._keys) == self._size and (not self._keys or key >= self._keys[-1]):
            return
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._items.insert(place, item)
        del self._keys[self._size :], self._items[self._size :]

    def offer_any(self, name: str, item: T) -> None:
        """Take ``item`` in where the hash of its name is among the least: a sample spread over all names."""
        self.offer(float(stable_seed(0, name, "report sample")), name, item)

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Frequent:
    """The most common texts (Misra and Gries, 1982).

    Up to ``capacity`` different texts are counted exactly. Beyond that, counts are lower bounds, and no text that
    makes up more than ``1 / capacity`` of all is missed.
    """

    def __init__(self, capacity: int = 1024):
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self.total = 0
        self.exact = True

    def add(self, text: str) -> None:
        """Count a text."""
        self.total += 1
        if text in self._counts or len(self._counts) < self._capacity:
            self._counts[text] += 1
            return
        self.exact = False
        self._counts = Counter({known: count - 1 for known, count in self._counts.items() if count > 1})

    def most_common(self, number: int) -> list[tuple[str, int]]:
        """Texts with how often they occurred (at least), the most common first; ties by the text."""
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:number]

    @property
    def different(self) -> int:
        """How many different texts there are, at least."""
        return len(self._counts) if self.exact else self._capacity + 1
