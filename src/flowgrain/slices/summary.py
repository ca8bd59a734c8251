"""Counts of a decomposition."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from flowgrain.data.records import SliceRecord
from flowgrain.slices.asking import CAPTION
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.work import UNREADABLE
from flowgrain.vlm.asker import AskingForecast, Spending


@dataclass
class Summary:
    """What came out, and how long each stage took."""

    levels: tuple[str, ...]
    images: int = 0
    unchanged: int = 0
    """Images of which nothing had to be done again."""
    removed: int = 0
    """Images that the data set had before and has no more."""
    slices_by_level: Counter[str] = field(default_factory=Counter)
    levels_per_root: Counter[int] = field(default_factory=Counter)
    """Number of roots by K, the number of their levels."""
    buckets: Counter[tuple[int, int]] = field(default_factory=Counter)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Boxes and images that became no slice, by (level or '', code)."""
    caption_sources: Counter[str] = field(default_factory=Counter)
    detectors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Slices by (level, detector)."""
    first_reject: RejectRecord | None = None
    """The first that is no unreadable image."""
    first_unreadable: RejectRecord | None = None
    fingerprint: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time spent in each stage, summed over processes."""
    spent: Spending = field(default_factory=Spending)
    """What models behind endpoints were asked in this run."""
    forecast: AskingForecast | None = None
    """What asking them would take, where a dry run did not ask."""

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.slices_by_level.total()

    @property
    def roots(self) -> int:
        """Number of roots that have a slice."""
        return self.levels_per_root.total()

    @property
    def unusable(self) -> int:
        """Images that are rejected as a whole, which a caption that a model did not give is no reason for."""
        images = ((code, count) for (level, code), count in self.rejects.items() if not level)
        return sum(count for code, count in images if not code.startswith(CAPTION))

    def counts(self) -> dict[str, object]:
        """What ``dataset.json`` says about the data set; the same for a first run and a repeated one."""
        return {
            "images": self.images,
            "roots": self.roots,
            "slices": self.slices,
            "slices_by_level": {level: self.slices_by_level[level] for level in self.levels},
            "rejects": self.rejects.total(),
        }

    def add(self, records: Sequence[SliceRecord], rejects: Sequence[RejectRecord]) -> None:
        """Count what one image gave."""
        self.images += 1
        roots: dict[str, set[str]] = {}
        for record in records:
            self.slices_by_level[record.level] += 1
            self.buckets[record.width, record.height] += 1
            self.caption_sources[record.caption_source] += 1
            self.detectors[record.level, record.detector] += 1
            roots.setdefault(record.root, set()).add(record.level)
        self.levels_per_root.update(len(levels) for levels in roots.values())
        for reject in rejects:
            self.rejects[reject.level or "", reject.code] += 1
            if reject.code == UNREADABLE:
                self.first_unreadable = self.first_unreadable or reject
            else:
                self.first_reject = self.first_reject or reject
