"""Hierarchical semantic decomposition: images in, a data set of slices out (Algorithm 1).

Memory does not grow with the number of images, but for their names. Everything is a function of the source bytes,
the files beside them and the configuration: a second run does nothing, one after a crash goes on, and any number of
processes and machines give the same files.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from flowgrain.clock import Clock
from flowgrain.config import printable
from flowgrain.data.collections import Collection, Folder
from flowgrain.data.records import SliceRecord
from flowgrain.errors import DataError
from flowgrain.slices.chunk_work import ChunkReport
from flowgrain.slices.chunks import Chunk, batched, cut_into_chunks
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.contact_sheet import MAX_ROOTS, update_contact_sheet
from flowgrain.slices.cutting import RejectRecord
from flowgrain.slices.executors import Executor, local_executor
from flowgrain.slices.pieces import WorkSettings, shown
from flowgrain.slices.sharing import Presence
from flowgrain.slices.store import Store, writing
from flowgrain.slices.summary import Summary
from flowgrain.slices.work import UNLISTED, UNREADABLE, Workbench
from flowgrain.vlm.asker import Spending

_FEW_IMAGES = 100
"""Below this, worker processes take longer to start than they save."""

OnImage = Callable[[str, int, int], None]
"""Called after each image with its name, how many are done and how many there are."""


@dataclass(frozen=True)
class RunOptions:
    """How a decomposition is carried out, none of which changes what comes out."""

    executor: Executor | None = None
    """Who does the work; None: this process for few images, else a process a core."""
    device: str = "cpu"
    threads: int | None = None
    origin: str | None = None
    """What names a collection, for commands that look at the pictures again."""


def decompose(
    source: Path | Collection,
    out: Path,
    config: DecomposeConfig,
    on_image: OnImage | None = None,
    options: RunOptions | None = None,
) -> Summary:
    """Cut every image of ``source`` and write the data set ``out``.

    An image that cannot be read is listed in the rejects and the run goes on. Raises :class:`DataError` where no
    image gives a slice, where files about the images are malformed, and where ``out`` lies in ``source`` or holds
    something else or cannot be written; other :class:`flowgrain.errors.FlowgrainError` where a model cannot be used.
    """
    options = options or RunOptions()
    collection = Folder(source) if isinstance(source, Path) else source
    origin = str(source.resolve()) if isinstance(source, Path) else options.origin
    _check_apart(collection, origin, out)
    names = collection.names()
    chunks = list(cut_into_chunks(names))
    settings = WorkSettings(collection, config, out, options.device, options.threads)
    run = _Run(len(names), on_image)
    with writing(out), ExitStack() as stack:
        store = Store(out)
        if origin is not None:
            store.remember_source(origin)
        presence = stack.enter_context(Presence(store.state, _job_digest(collection, config, names)))

        def on_chunk(chunk: Chunk, report: ChunkReport) -> None:
            presence.release(chunk)
            run.unchanged += report.unchanged
            run.clock.add(report.seconds)
            run.spent += report.spent

        executor = options.executor or _choose_executor(config, len(names), options.device)
        executor.run(settings, presence.claimed(chunks), on_chunk, run.count)
        summary = _finish(store, [chunk.id for chunk in chunks], collection, config)
    summary.unchanged = run.unchanged
    summary.seconds, summary.spent = run.clock.seconds, run.spent
    return summary


def survey(
    source: Path | Collection,
    config: DecomposeConfig,
    on_image: OnImage | None = None,
    options: RunOptions | None = None,
) -> Summary:
    """The counts that :func:`decompose` would give, without writing anything. Raises the same errors.

    Models behind endpoints are not asked: their levels stay empty and the summary forecasts what asking would take.
    """
    options = options or RunOptions()
    collection = Folder(source) if isinstance(source, Path) else source
    names = collection.names()
    bench = Workbench(WorkSettings(collection, config, None, options.device, options.threads, asks=False))
    summary = Summary(tuple(config.levels))
    run = _Run(len(names), on_image)
    for chunk in cut_into_chunks(names):
        seen: dict[str, str] = {}
        for batch in batched(chunk.names, bench.batch_size):
            looked_at = [bench.examine(name, None, seen) for name in batch]
            for examined, cut in zip(looked_at, bench.cut(looked_at), strict=True):
                summary.add(cut.cuts.records, cut.cuts.rejects)
                run.count(examined.shown_name)
    summary.forecast = bench.forecast
    if summary.forecast is None:
        _require_slices(collection, summary)
    return summary


def _choose_executor(config: DecomposeConfig, images: int, device: str) -> Executor:
    """Processes that would start for nothing, crowd one GPU or ask one endpoint side by side are not started."""
    detectors = [detector for level in config.levels.values() for detector in level.detectors]
    asking = config.captioner is not None or any(detector.asks_others for detector in detectors)
    alone = images < _FEW_IMAGES or device != "cpu" or asking
    return local_executor(1 if alone else len(os.sched_getaffinity(0)))


class _Run:
    """Progress of a run."""

    def __init__(self, images: int, on_image: OnImage | None):
        self.unchanged = 0
        self.clock = Clock()
        self.spent = Spending()
        self._images, self._done, self._on_image = images, 0, on_image

    def count(self, name: str) -> None:
        self._done += 1
        if self._on_image:
            self._on_image(name, self._done, self._images)


def _finish(store: Store, chunks: Sequence[str], collection: Collection, config: DecomposeConfig) -> Summary:
    """From the records of all chunks to the manifest; a part at a time."""
    summary = Summary(tuple(config.levels))
    summary.removed = store.clean(chunks)
    first: list[SliceRecord] = []
    roots: set[str] = set()

    def counted() -> Iterable:
        for part in store.parts(chunks):
            summary.add(part.records, part.rejects)
            for record in part.records:
                if record.root in roots or len(roots) < MAX_ROOTS:
                    roots.add(record.root)
                    first.append(record)
            yield part

    unlisted = [
        RejectRecord(image=shown(place), code=UNLISTED, reason=printable(reason))
        for place, reason in collection.problems()
    ]
    summary.rejects.update(("", reject.code) for reject in unlisted)
    summary.fingerprint = store.write_manifest(counted(), unlisted)
    store.write_about(
        summary.fingerprint,
        {
            "source": collection.title,
            "counts": summary.counts(),
            "config_hash": config.digest(),
            "config": config.model_dump(mode="json"),
        },
    )
    _require_slices(collection, summary)
    update_contact_sheet(store.folder, first)
    return summary


def _job_digest(collection: Collection, config: DecomposeConfig, names: Sequence[str]) -> str:
    """What processes that share a data set must agree on: the settings and the names of the pictures."""
    digest = hashlib.sha1(config.model_dump_json().encode())
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _check_apart(collection: Collection, origin: str | None, out: Path) -> None:
    """Refuse a data set in a folder that is searched for images. Tars and tables may lie beside it, or above."""
    searched = [collection.folder] if isinstance(collection, Folder) else []
    searched += [Path(origin)] if origin is not None and Path(origin).is_dir() else []
    if any(folder.resolve() in (out.resolve(), *out.resolve().parents) for folder in searched):
        raise DataError(f"{out}: lies in the source folder, its slices would be taken for images; put it elsewhere")


def _require_slices(collection: Collection, summary: Summary) -> None:
    if summary.slices:
        return
    where, unreadable = collection.folder, summary.rejects["", UNREADABLE]
    if unreadable == summary.images and summary.first_unreadable is not None:
        first = summary.first_unreadable
        raise DataError(f"{where}: none of its {summary.images} images can be read; {first.image}: {first.reason}")
    first = summary.first_reject
    reason = f"; {first.image}: {first.reason}" if first is not None else ""
    raise DataError(
        f"{where}: none of its {summary.images} images gives a slice{reason}. "
        "Choose a preset or targets of a smaller resolution, or raise max_upscale and lanczos_max"
    )
