"""One chunk of images, from examining them to its record: the same in this process, in a worker and on a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from flowgrain.clock import Clock
from flowgrain.data.records import SliceRecord
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.cutting import render, render_mask
from flowgrain.slices.measuring import measured
from flowgrain.slices.outputs import Output, encode, make_output, shard_path
from flowgrain.slices.pieces import Cut, Examined, Fault, shown
from flowgrain.slices.store import Part, SliceFacts, Store
from flowgrain.slices.work import Workbench
from flowgrain.vlm.asker import Spending

OnImage = Callable[[str], None]
"""Called with the name of each image that is done."""


@dataclass
class ChunkReport:
    """What a process says of a chunk that it went through."""

    images: int = 0
    unchanged: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    spent: Spending = field(default_factory=Spending)
    """On models behind endpoints."""


@dataclass(frozen=True)
class RenderedSlice:
    """A slice with its pixels and, where its image has one, its mask (mode L, white = train)."""

    record: SliceRecord
    picture: Image.Image
    mask: Image.Image | None


def _unwatched(names: Sequence[str]) -> None:
    """Nobody waits to hear what is being looked at."""


@dataclass(frozen=True)
class Care:
    """How to go about images at which a process may die."""

    watch: Callable[[Sequence[str]], None] = _unwatched
    """Told which images come next, together, before they are touched; with none: nothing of an image's own."""
    suspects: frozenset[str] = frozenset()
    """A process died at them: each is cut by itself before it is with the others of its batch."""
    crashed: Mapping[str, Fault] = field(default_factory=dict)
    """These are rejected. The mark of what decides their slices stays as it is: a second run leaves them alone."""


def process_chunk(
    bench: Workbench, store: Store, chunk: Chunk, on_image: OnImage, care: Care | None = None
) -> ChunkReport:
    """Bring a chunk's files and record up to date; does nothing where they are.

    Raises :class:`flowgrain.errors.FlowgrainError` where a model or the data set's own files fail, OSError where the
    data set cannot be written.
    """
    before, spent = dict(bench.clock.seconds), bench.spending
    report = _process(ChunkWork(bench, store, chunk), on_image, care or Care())
    report.spent = bench.spending - spent
    report.seconds = {name: value - before.get(name, 0.0) for name, value in bench.clock.seconds.items()}
    return report


def _process(work: "ChunkWork", on_image: OnImage, care: Care) -> ChunkReport:
    bench, store, chunk = work.bench, work.store, work.chunk
    kept = work.unchanged()
    if kept is None:
        for name in chunk.names:
            on_image(name)
        return ChunkReport(len(chunk.names), len(chunk.names))
    parts = dict(kept)
    output = make_output(store, store.begin(chunk.id), chunk.index, work.layout)
    try:
        for batch in work.batches(kept):
            for examined, cut in _cut(bench, batch, care):
                care.watch([examined.item.name])
                parts[examined.item.name] = write_image(examined, cut, output, bench.clock)
                on_image(examined.shown_name)
        care.watch([])
        with bench.clock.stage("write"):
            sizes = output.close()
    except BaseException:
        output.abandon()
        raise
    for name in kept:
        on_image(name)
    with bench.clock.stage("write"):
        work.commit(parts, sizes)
    return ChunkReport(len(chunk.names), len(kept))


def _cut(bench: Workbench, batch: Sequence[Examined], care: Care) -> Iterator[tuple[Examined, Cut]]:
    """The images of a batch with their slices."""
    batch = [replace(each, fault=each.fault or care.crashed.get(each.item.name)) for each in batch]
    names = [each.item.name for each in batch if each.fault is None]
    if len(names) > 1 and not care.suspects.isdisjoint(names):
        for each in (each for each in batch if each.fault is None):
            care.watch([each.item.name])
            bench.cut([each])
    care.watch(names)
    yield from zip(batch, bench.cut(batch), strict=True)


class ChunkWork:
    """What has to be done of a chunk, and its record."""

    def __init__(self, bench: Workbench, store: Store, chunk: Chunk):
        self.bench, self.store, self.chunk = bench, store, chunk
        self.layout = bench.settings.config.layout
        self._past = store.chunk(chunk.id)
        # a view's boxes may depend on its batch, and a shard is one file: then all of the chunk is done again, or none
        self._whole = self.layout == "webdataset" or bench.batch_size > 1

    def unchanged(self) -> dict[str, Part] | None:
        """Parts that stand as they are, by the image's own name; None where the whole chunk does."""
        kept: dict[str, Part] = {}
        if not self._past or self._misplaced():
            return kept
        for examined in self._examined():
            part = self._past.get(examined.shown_name)
            if part is not None and self.store.is_complete(part, examined.key):
                kept[examined.item.name] = part
            elif self._whole:
                return {}
        names = self.chunk.names
        if len(kept) == len(names) and self._past.keys() == {shown(name) for name in names}:
            return None
        return {} if self._whole else kept

    def batches(self, kept: Mapping[str, Part]) -> Iterator[list[Examined]]:
        """The other images as they are looked at together: the same batches whoever asks."""
        waiting: list[Examined] = []
        for examined in self._examined():
            if examined.item.name in kept:
                continue
            waiting.append(examined)
            if len(waiting) == self.bench.batch_size:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def commit(self, parts: Mapping[str, Part], sizes: Mapping[str, int]) -> None:
        """Write the record: all parts by the image's own name, and the sizes of the files that were written."""
        settled = []
        for name in self.chunk.names:
            part = parts[name]
            files = {file: sizes.get(file, size) for file, size in part.files.items()}
            settled.append(part.model_copy(update={"files": files}))
        self.store.commit(self.chunk.id, settled)

    def _examined(self) -> Iterator[Examined]:
        seen: dict[str, str] = {}
        for name in self.chunk.names:
            past = self._past.get(shown(name))
            yield self.bench.examine(name, None if past is None else (past.stamp, past.sha1), seen)

    def _misplaced(self) -> bool:
        """Whether a shard lies under another number than its chunk has now."""
        shard = shard_path(self.chunk.index)
        files = (file for part in self._past.values() for file in part.files)
        return self.layout == "webdataset" and any(file != shard for file in files)


def write_image(examined: Examined, cut: Cut, output: Output, clock: Clock) -> Part:
    """Render, measure and encode the slices of an image and hand them to ``output``."""
    records: list[SliceRecord] = []
    facts: list[SliceFacts] = []
    files: dict[str, int] = {}
    for item in _rendered(examined, cut, clock):
        with clock.stage("measure"):
            facts.append(measured(item.picture))
        with clock.stage("encode"):
            picture = encode(item.picture, item.record.path)
            mask = None if item.mask is None else encode(item.mask, "mask.png")
        with clock.stage("write"):
            record, where = output.add(item.record, picture, mask)
        records.append(record)
        files |= dict.fromkeys(where, 0)
    with clock.stage("write"):
        output.end_image(records)
    return Part(
        name=examined.shown_name,
        stamp=examined.stamp,
        sha1=examined.sha1,
        size=None if cut.picture is None else cut.picture.image.size,
        key=examined.key if cut.final else "",
        files=files,
        records=tuple(records),
        rejects=cut.cuts.rejects,
        facts=tuple(facts),
    )


def _rendered(examined: Examined, cut: Cut, clock: Clock) -> list[RenderedSlice]:
    picture = cut.picture
    if picture is None:
        return []
    with clock.stage("render"):
        return [
            RenderedSlice(
                record,
                render(picture.image, record, examined.scheme.upscaler),
                None if picture.mask is None else render_mask(picture.mask, record),
            )
            for record in cut.cuts.records
        ]
