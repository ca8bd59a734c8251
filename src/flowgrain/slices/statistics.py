"""What a data set holds, in numbers and examples: one pass over its records, a part at a time.

Memory does not grow with the data set, but for 12 bytes a root (its perceptual hash and its image's number).
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowgrain.data.buckets import Bucket
from flowgrain.data.records import Box, SliceRecord
from flowgrain.rng import stable_seed
from flowgrain.slices.asking import CAPTION
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.cutting import RejectRecord, root_name
from flowgrain.slices.duplicates import is_near
from flowgrain.slices.finding import WHOLE_IMAGE
from flowgrain.slices.framing import area, iou
from flowgrain.slices.recorded import finished_chunks, read_about, unlisted
from flowgrain.slices.store import Part, SliceFacts, Store
from flowgrain.slices.tallies import Frequent, Histogram, Least

MOST_LISTED = 1000
"""Images without a slice that are listed; the rest are counted."""
SHOWN_ROOTS = 12
EXAMPLES = 4
"""Examples kept of each kind."""
LEAST_SHARP = 6
CUT_AWAY = 0.25
"""Part of a box's area beyond which framing is said to cut it away."""


_LAST = 2.0**64
_BELOW_ONE = 1 - 1e-6
"""A score of 1 belongs to the last bin, not to one beyond it."""


@dataclass(frozen=True)
class RootView:
    """A root with all that became of it."""

    image: str
    root: str
    slices: tuple[SliceRecord, ...]
    """Coarse to fine."""
    facts: tuple[SliceFacts | None, ...]
    rejects: tuple[RejectRecord, ...]


@dataclass(frozen=True)
class Example:
    """Something to look at: a slice, or a rejected box on the slice that shows its surroundings."""

    view: RootView
    record: SliceRecord | None
    """None where the root has no slice to show."""
    note: str
    box: Box | None = None
    """A box in source pixels to be drawn on it."""


@dataclass(frozen=True)
class Unused:
    """An image that gave no slice."""

    image: str
    code: str
    reason: str


@dataclass
class LevelStatistics:
    """Counts of one level."""

    name: str
    slices: int = 0
    roots: int = 0
    """Roots that have a slice of it."""
    detectors: Counter[str] = field(default_factory=Counter)
    """Slices by the kind of their detector."""
    found: Counter[str] = field(default_factory=Counter)
    """Boxes by the kind of their detector, rejected ones too."""
    scores: dict[str, Histogram] = field(default_factory=dict)
    """Scores of slices by the kind of their detector."""
    rejects: Counter[str] = field(default_factory=Counter)
    buckets: Counter[Bucket] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    upscalers: Counter[str] = field(default_factory=Counter)
    scales: Histogram = field(default_factory=lambda: Histogram(1 / 8, octaves=True))
    enlargements: Histogram = field(default_factory=lambda: Histogram(1 / 16, octaves=True))
    """Scales of upscaled slices."""
    sides: Histogram = field(default_factory=lambda: Histogram(1 / 4, octaves=True))
    """Shorter sides of boxes, source pixels."""
    sharpness: Histogram = field(default_factory=lambda: Histogram(1 / 16, octaves=True))
    cut_away: int = 0
    """Slices that show less than 1 - :data:`CUT_AWAY` of their boxes."""
    near_macro: int = 0
    """Slices that nearly repeat the coarsest one of their root, by box or by hash."""
    near_macro_by_box: int = 0
    repeats: int = 0
    """Slices that look like an earlier one of their root other than the coarsest."""
    captions: Frequent = field(default_factory=Frequent)
    caption_sources: Counter[str] = field(default_factory=Counter)
    words: Histogram = field(default_factory=lambda: Histogram(1))
    """Words of captions."""
    uncaptioned: int = 0
    same_caption: int = 0
    """Slices whose caption is that of their root's coarsest slice."""
    examples: dict[str, Least[Example]] = field(default_factory=dict)
    """By what they are examples of."""

    def keep(self, kind: str, value: float, example: Example, size: int = EXAMPLES) -> None:
        """Offer an example; those of the least values are kept."""
        name = example.record.slice_id if example.record is not None else example.view.root
        self.examples.setdefault(kind, Least(size)).offer(value, f"{name} {example.box}", example)

    def examples_of(self, kind: str) -> tuple[Example, ...]:
        """The examples of a kind."""
        return tuple(self.examples.get(kind, ()))


@dataclass
class Statistics:
    """Counts of a data set."""

    config: DecomposeConfig
    levels: dict[str, LevelStatistics]
    images: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Images that cannot be used, by code."""
    unlisted: int = 0
    """Of these, what could not even be listed; it is not among the images."""
    empty: int = 0
    """Images that can be used and gave no slice."""
    unused: list[Unused] = field(default_factory=list)
    """Of both, the first :data:`MOST_LISTED`."""
    regionless: int = 0
    """Pre-split: images in which no region was found, taken whole or left out."""
    roots: int = 0
    levels_per_root: Counter[int] = field(default_factory=Counter)
    bucket_roots: Counter[Bucket] = field(default_factory=Counter)
    """Roots that have a slice of a size."""
    sides: Histogram = field(default_factory=lambda: Histogram(1 / 4, octaves=True))
    """Shorter sides of source images."""
    shown: Least[RootView] = field(default_factory=lambda: Least(SHOWN_ROOTS))
    hashes: array = field(default_factory=lambda: array("Q"))
    """Perceptual hash of the coarsest slice of each root that has one."""
    owners: array = field(default_factory=lambda: array("I"))
    """Number of the image of each of them."""
    starts: list[int] = field(default_factory=list)
    """How many hashes there were before each chunk."""
    chunks: list[str] = field(default_factory=list)

    @property
    def slices(self) -> int:
        """Number of slices."""
        return sum(level.slices for level in self.levels.values())

    @property
    def first_level(self) -> LevelStatistics:
        """The coarsest level."""
        return next(iter(self.levels.values()))

    def add_chunk(self, name: str, parts: Iterable[Part]) -> None:
        """Count the images of a chunk."""
        self.chunks.append(name)
        self.starts.append(len(self.hashes))
        for part in parts:
            self._add(part)

    def add_unlisted(self, reject: RejectRecord) -> None:
        """Count something among the sources that could not even be listed."""
        self.faults[reject.code] += 1
        self.unlisted += 1
        if len(self.unused) < MOST_LISTED:
            self.unused.append(Unused(reject.image, reject.code, reject.reason))

    def chunk_of(self, place: int) -> tuple[str, int]:
        """Where a hash comes from: the chunk, and the hash's place in it."""
        index = bisect_right(self.starts, place) - 1
        return self.chunks[index], place - self.starts[index]

    def level(self, name: str) -> LevelStatistics:
        """The counts of a level; an image's own settings may bring one that the data set's lack."""
        return self.levels.setdefault(name, LevelStatistics(name))

    def _add(self, part: Part) -> None:
        self.images += 1
        if part.size is not None:
            self.sides.add(min(part.size))
        self.faults.update(reject.code for reject in part.rejects if reject.level is None)
        faults = [reject for reject in part.rejects if reject.level is None and not reject.code.startswith(CAPTION)]
        if not faults and not part.records:
            self.empty += 1
        for fault in faults or ([] if part.records else [_why_empty(part)]):
            if len(self.unused) < MOST_LISTED:
                self.unused.append(Unused(part.name, fault.code, fault.reason))
        self.regionless += self.config.mode == "pre_split" and not faults and _has_no_region(part)
        for view in views_of(part):
            self._add_root(view)

    def _add_root(self, view: RootView) -> None:
        for reject in view.rejects:
            level = self.level(reject.level or "")
            level.rejects[reject.code] += 1
            level.found[reject.detector or ""] += 1
            example = Example(view, view.slices[0] if view.slices else None, reject.reason, reject.box)
            value = _spread(view, reject.box) + (0.0 if view.slices else _LAST)  # those with a picture first
            level.keep(f"reject {reject.code}", value, example)
        if not view.slices:
            return
        self.roots += 1
        present = {record.level for record in view.slices}
        self.levels_per_root[len(present)] += 1
        for name in present:
            self.level(name).roots += 1
        self.bucket_roots.update({(record.width, record.height) for record in view.slices})
        self.shown.offer_any(view.root, view)
        for index, record in enumerate(view.slices):
            self._add_slice(view, index, self.level(record.level))
        facts = view.facts[0]
        if facts is not None:
            self.hashes.append(int(facts.phash, 16))
            self.owners.append(self.images)

    def _add_slice(self, view: RootView, index: int, level: LevelStatistics) -> None:
        record, facts = view.slices[index], view.facts[index]
        level.slices += 1
        level.buckets[record.width, record.height] += 1
        level.detectors[record.detector] += 1
        level.found[record.detector] += 1
        level.scores.setdefault(record.detector, Histogram(1 / 50)).add(min(record.score, _BELOW_ONE))
        level.actions[record.action] += 1
        level.scales.add(record.scale)
        level.sides.add(min(record.box[2] - record.box[0], record.box[3] - record.box[1]))
        if record.action == "upscale":
            level.upscalers[record.upscaler] += 1
            level.enlargements.add(record.scale)
            level.keep("upscaled", -record.scale, Example(view, record, f"×{record.scale:.2f}"))
        lost = 1 - area(record.crop) / area(record.box)
        if lost > CUT_AWAY:
            level.cut_away += 1
            level.keep("cut away", -lost, Example(view, record, f"{lost:.0%} of its box is cut away", record.box))
        if facts is not None:
            level.sharpness.add(facts.sharpness)
            example = Example(view, record, f"sharpness {facts.sharpness:.1f}")
            level.keep("least sharp", facts.sharpness, example, LEAST_SHARP)
        self._count_repeats(view, index, level)
        _count_caption(view, record, level)

    def _count_repeats(self, view: RootView, index: int, level: LevelStatistics) -> None:
        first, record, facts = view.slices[0], view.slices[index], view.facts[index]
        if index == 0:
            return
        if first.level == self.first_level.name and record.level != first.level:
            overlap, known = iou(first.box, record.box), view.facts[0]
            by_box = overlap > self.config.iou_threshold
            by_hash = facts is not None and known is not None and is_near(_hash(facts), _hash(known))
            if by_box or by_hash:
                level.near_macro += 1
                level.near_macro_by_box += by_box
                local = record.slice_id.rpartition("/")[2]
                note = f"{local}, IoU {overlap:.2f}" + (", looks the same" if by_hash else "")
                level.keep("near macro", -overlap, Example(view, first, note, record.box))
                return
        for other, known in zip(view.slices[1:index], view.facts[1:index], strict=True):
            if facts is not None and known is not None and is_near(_hash(facts), _hash(known)):
                level.repeats += 1
                note = f"looks like {other.slice_id.rpartition('/')[2]} of the same root"
                level.keep("repeats", _spread(view, record.box), Example(view, record, note))
                return


def read_statistics(folder: Path) -> tuple[Statistics, dict[str, Any]]:
    """The counts of a data set and its ``dataset.json``.

    Raises :class:`DataError` where the folder holds no finished data set, or one of another version.
    """
    about, config = read_about(folder)
    statistics = Statistics(config, {name: LevelStatistics(name) for name in config.levels})
    store = Store(folder)
    for chunk in finished_chunks(folder):
        statistics.add_chunk(chunk, store.chunk(chunk).values())
    for reject in unlisted(folder):
        statistics.add_unlisted(reject)
    return statistics, about


def views_of(part: Part) -> Iterator[RootView]:
    """The roots of an image, those of which every box was rejected last."""
    facts: Sequence[SliceFacts | None] = (
        part.facts if len(part.facts) == len(part.records) else [None] * len(part.records)
    )
    slices: dict[str, list[tuple[SliceRecord, SliceFacts | None]]] = {}
    rejects: dict[str, list[RejectRecord]] = {}
    for record, fact in zip(part.records, facts, strict=True):
        slices.setdefault(record.root, []).append((record, fact))
    for reject in part.rejects:
        if reject.level is not None:
            rejects.setdefault(reject.root or part.name, []).append(reject)
    for root in [*slices, *(root for root in rejects if root not in slices)]:
        pairs = slices.get(root, [])
        yield RootView(
            part.name,
            root,
            tuple(record for record, _ in pairs),
            tuple(fact for _, fact in pairs),
            tuple(rejects.get(root, ())),
        )


def views_at(folder: Path, statistics: Statistics, places: Iterable[int]) -> dict[int, RootView]:
    """The roots of some of the hashes, by their places; reads the chunks that hold them once more."""
    by_chunk: dict[str, dict[int, int]] = {}
    for place in places:
        chunk, inside = statistics.chunk_of(place)
        by_chunk.setdefault(chunk, {})[inside] = place
    found: dict[int, RootView] = {}
    store = Store(folder)
    for chunk, wanted in by_chunk.items():
        hashed = (
            view
            for part in store.chunk(chunk).values()
            for view in views_of(part)
            if view.slices and view.facts[0] is not None
        )
        found |= {wanted[index]: view for index, view in enumerate(hashed) if index in wanted}
    return found


def _count_caption(view: RootView, record: SliceRecord, level: LevelStatistics) -> None:
    level.captions.add(record.caption)
    level.caption_sources[record.caption_source] += 1
    level.words.add(len(record.caption.split()))
    first = view.slices[0]
    if not record.caption:
        level.uncaptioned += 1
        level.keep("uncaptioned", _spread(view, record.box), Example(view, record, ""))
    elif record.level != first.level and record.caption == first.caption:
        level.same_caption += 1
        level.keep("same caption", _spread(view, record.box), Example(view, record, f"“{record.caption}”"))


def _has_no_region(part: Part) -> bool:
    """Pre-split: whether the image was taken whole or left out, since no region was found."""
    if any(made.detector == WHOLE_IMAGE for made in (*part.records, *part.rejects)):
        return True
    itself = root_name(part.name, part.sha1)
    return not part.records and all(reject.root == itself for reject in part.rejects)


def _why_empty(part: Part) -> RejectRecord:
    """The reject that says most about an image without a slice."""
    if part.rejects:
        return part.rejects[0]
    return RejectRecord(image=part.name, code="no_region", reason="no region was found in it (no_region: skip)")


def _hash(facts: SliceFacts) -> int:
    return int(facts.phash, 16)


def _spread(view: RootView, box: Box | None) -> float:
    """A value that picks examples from all over the data set."""
    return float(stable_seed(0, view.root, repr(box), "report example"))
