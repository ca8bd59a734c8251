"""Means by granularity of what a run only watches: values of terms, correlations of similarities."""

import math
from dataclasses import dataclass, field
from typing import Any

from flowgrain.granularity import GRANULARITIES
from flowgrain.train.objective import Batch, SampleLosses


@dataclass
class WatchedMeans:
    """Sums and counts over the slices of an update; slices that have no value of a kind do not count for it."""

    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, batch: Batch, losses: SampleLosses) -> None:
        """Count in one micro-batch; slices of weight 0 are padding and do not count."""
        for name, values in losses.watched.items():
            rows = zip(batch.granularity.tolist(), values.tolist(), batch.weight.tolist(), strict=True)
            for index, value, weight in rows:
                if weight and not math.isnan(value):
                    self._count(name, GRANULARITIES[index], value, 1)

    @staticmethod
    def merged(parts: "list[WatchedMeans]") -> "WatchedMeans":
        """Over the slices of several parts of an update."""
        whole = WatchedMeans()
        for part in parts:
            for name, levels in part.sums.items():
                for level, total in levels.items():
                    whole._count(name, level, total, part.counts[name][level])
        return whole

    def line(self) -> dict[str, Any]:
        """What the log says: ``watched_by_level``, name -> level -> mean; nothing where nothing was watched."""
        means = {
            name: {level: levels[level] / self.counts[name][level] for level in GRANULARITIES if level in levels}
            for name, levels in self.sums.items()
        }
        return {"watched_by_level": means} if means else {}

    def _count(self, name: str, level: str, total: float, count: int) -> None:
        sums, counts = self.sums.setdefault(name, {}), self.counts.setdefault(name, {})
        sums[level] = sums.get(level, 0.0) + total
        counts[level] = counts.get(level, 0) + count
