"""Chunks on a Ray cluster: the same steps as here, spread by Ray Data over its machines.

Three stages stream into one another: tasks on CPUs examine and decode, actors that hold the detectors find the boxes
(and ask for captions), tasks on CPUs crop, encode and write. What travels is a batch: the images of one chunk that
detectors look at together, the same batches as on a single machine, so that the same boxes come out. The driver writes
the record of a chunk when all of its batches are back. Every machine needs the pictures and the folder of the data set
under the same path.
"""

import logging
import os
import pickle
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flowgrain.clock import Clock
from flowgrain.data.records import SliceRecord
from flowgrain.errors import FlowgrainError, MissingExtraError, ProcessLostError
from flowgrain.slices.chunk_work import ChunkReport, ChunkWork, write_image
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.executors.base import POLL, Executor, OnChunk, OnImage
from flowgrain.slices.executors.trail import FAULT, TRAILS, Trail
from flowgrain.slices.outputs import FolderOutput, Output, ShardOutput
from flowgrain.slices.pieces import Cut, Fault, Looked, Picture, WorkSettings
from flowgrain.slices.store import Part, Store
from flowgrain.slices.work import Workbench
from flowgrain.vlm.asker import Spending

_COLUMN = "pickled"
_LONGEST = 300
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_Row = Mapping[str, Any]


@dataclass
class _Batch:
    """Images of a chunk on their way through the stages; each stage adds what it knows."""

    chunk: Chunk
    number: int
    looked: list[Looked] = field(default_factory=list)
    pictures: list[Picture | Fault] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    """By the image's own name: those kept come with the first batch."""
    kept: int = 0
    last: bool = True
    unchanged: bool = False
    slices: list[tuple[SliceRecord, bytes, bytes | None]] = field(default_factory=list)
    """Encoded slices of a data set of shards, which the driver writes: a shard is one file."""
    sizes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    spent: Spending = field(default_factory=Spending)
    written: bool = False

    def add_seconds(self, clock: Clock) -> None:
        """Add what a stage took."""
        for stage, seconds in clock.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class _Failure:
    """An error that ends the run, raised by the driver and not by Ray."""

    error: FlowgrainError | OSError


class RayExecutor(Executor):
    """A Ray cluster: the one of RAY_ADDRESS, or one of ``workers`` CPUs on this machine that ends with the run."""

    def __init__(self, workers: int | None):
        """Raises :class:`MissingExtraError` where Ray is not installed."""
        self._workers = workers
        _require_ray()

    def run(self, settings: WorkSettings, chunks: Iterable[Chunk | None], on_chunk: OnChunk, on_image: OnImage) -> None:
        """See :class:`Executor`. All chunks are claimed at once: one driver works on a data set."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        started_here = not ray.is_initialized()
        if started_here:
            start_cluster(self._workers)
        trails = _store(settings).state / TRAILS / uuid.uuid4().hex
        light = replace(settings, device="cpu", threads=1)
        light = replace(light, elsewhere=Workbench(light).weights)
        try:
            for some in _rounds(chunks):
                _collect(light, _stream(settings, light, some, trails), on_chunk, on_image)
        except RayTaskError:
            raise  # a bug
        except RayError as error:
            what = " ".join(str(error).split())[:_LONGEST]
            raise ProcessLostError(
                f"the cluster failed ({type(error).__name__}: {what}); finished chunks are kept, run the same command "
                "to go on"
            ) from None
        finally:
            if started_here:
                ray.shutdown()
            shutil.rmtree(trails, ignore_errors=True)
            with suppress(OSError):  # another driver's are there, or none were
                trails.parent.rmdir()


def _rounds(chunks: Iterable[Chunk | None]) -> Iterator[list[Chunk]]:
    """All chunks that can be had at a time; what others have is waited for when these are done."""
    some: list[Chunk] = []
    for chunk in chunks:
        if chunk is not None:
            some.append(chunk)
        elif some:
            yield some
            some = []
        else:
            time.sleep(POLL)
    if some:
        yield some


def _require_ray() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise MissingExtraError("ray", "ray", "--executor ray") from None


def start_cluster(workers: int | None) -> None:
    """Join the cluster of RAY_ADDRESS or start one here."""
    import ray

    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # actors keep half a CPU each, the tasks need another
        options |= {"num_cpus": max(workers or len(os.sched_getaffinity(0)), 2), "include_dashboard": False}
    with _quiet():
        ray.init(**options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of Ray's own below fatal errors on the terminal, where it is started in the block.

    It says so itself, past every setting, so that stderr is closed meanwhile. RAY_BACKEND_LOG_LEVEL brings all back.
    """
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = "fatal"
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
        del os.environ[_LOG_LEVEL]


def _stream(settings: WorkSettings, light: WorkSettings, chunks: list[Chunk], trails: Path) -> Iterator[_Batch]:
    """The batches of all chunks in their order, through the three stages; ``light`` is for those without weights."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    cluster = ray.cluster_resources()
    gpu = settings.device != "cpu"
    actors = int(cluster.get("GPU", 0)) if gpu else int(cluster.get("CPU", 2)) // 4
    # asking for other resources than the tasks do keeps Ray from putting both in one process
    share = {"num_gpus": 1} if gpu else {"num_cpus": 0.5}
    tasks = {"settings": light, "trails": trails}
    heavy = {"settings": replace(settings, threads=1), "trails": trails}
    sent = [{_COLUMN: pickle.dumps(chunk)} for chunk in chunks]
    dataset: Any = ray.data.from_items(sent, override_num_blocks=len(sent))
    dataset = dataset.map_batches(_look, batch_size=1, fn_kwargs=tasks, num_cpus=1)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(actors, 1))
    dataset = dataset.map_batches(_Finder, batch_size=1, fn_constructor_kwargs=heavy, compute=pool, **share)
    dataset = dataset.map_batches(_write, batch_size=1, fn_kwargs=tasks, num_cpus=1)
    for row in dataset.iter_rows():
        sent_back = pickle.loads(row[_COLUMN])
        if isinstance(sent_back, _Failure):
            raise sent_back.error
        yield sent_back


def _collect(settings: WorkSettings, batches: Iterator[_Batch], on_chunk: OnChunk, on_image: OnImage) -> None:
    """On the driver: write the record of each chunk when its last batch is back. Batches come in order."""
    bench, store = _light_bench(settings), _store(settings)
    output: Output | None = None
    parts: dict[str, Part] = {}
    sizes: dict[str, int] = {}
    clock, kept, spent = Clock(), 0, Spending()
    for batch in batches:
        chunk = batch.chunk
        if not batch.unchanged:
            parts |= batch.parts
            sizes |= batch.sizes
            kept += batch.kept
            clock.add(batch.seconds)
            spent += batch.spent
            if settings.config.layout == "webdataset":
                output = output or ShardOutput(store, store.journal(chunk.id), chunk.index)
                parts |= _shelve(batch, output)
            for looked in batch.looked:
                on_image(looked.name)
            if not batch.last:
                continue
            if output is not None:
                sizes |= output.close()
            ChunkWork(bench, store, chunk).commit(parts, sizes)
        report = ChunkReport(len(chunk.names), len(chunk.names) if batch.unchanged else kept, clock.seconds, spent)
        output, parts, sizes, clock, kept, spent = None, {}, {}, Clock(), 0, Spending()
        on_chunk(chunk, report)


def _shelve(batch: _Batch, output: Output) -> dict[str, Part]:
    """Put the encoded slices of a batch in the chunk's shard; the parts as they are then."""
    encoded = {record.slice_id: (picture, mask) for record, picture, mask in batch.slices}
    parts: dict[str, Part] = {}
    for looked in batch.looked:
        part, records, files = batch.parts[looked.name], [], {}
        for record in part.records:
            placed, where = output.add(record, *encoded[record.slice_id])
            records.append(placed)
            files |= dict.fromkeys(where, 0)
        output.end_image(records)
        parts[looked.name] = part.model_copy(update={"records": tuple(records), "files": files})
    return parts


@cache
def _bench(pickled: bytes) -> Workbench:
    return Workbench(pickle.loads(pickled))


def _light_bench(settings: WorkSettings) -> Workbench:
    """A bench of this process that loads no weights, made once a process."""
    return _bench(pickle.dumps(settings))


def _store(settings: WorkSettings) -> Store:
    if settings.out is None:
        raise ValueError("chunks are written: settings.out is needed")
    return Store(settings.out)


def _look(row: _Row, settings: WorkSettings, trails: Path) -> Iterator[dict[str, np.ndarray]]:
    """On a CPU: what has to be done of a chunk, and its images decoded.

    Where a decoder kills the process, Ray tries again; an image at which that happened twice is rejected.
    """
    chunk: Chunk = pickle.loads(row[_COLUMN][0])
    try:
        trail = Trail(trails / f"{chunk.id}-look")
        bench, store = _light_bench(settings), _store(settings)
        work = ChunkWork(bench, store, chunk)
        kept = work.unchanged()
        if kept is None:
            yield _sent(_Batch(chunk, 0, unchanged=True))
            trail.end()
            return
        store.begin(chunk.id)
        batches = list(work.batches(kept))
        for number, examined in enumerate(batches or [[]]):
            clock = Clock()
            bench.clock = clock
            batch = _Batch(chunk, number, [each.looked() for each in examined], last=number == len(batches) - 1)
            batch.pictures = [bench.open(each) if trail.may_enter(each.item.name) else FAULT for each in examined]
            trail.leave()
            if number == 0:
                batch.parts, batch.kept = dict(kept), len(kept)
            batch.seconds = clock.seconds
            yield _sent(batch)
        trail.end()
    except (FlowgrainError, OSError) as error:
        yield _sent(_Failure(error))


class _Finder:
    """On an actor: the detectors of the configuration, loaded once."""

    def __init__(self, settings: WorkSettings, trails: Path):
        self._settings, self._trails = settings, trails
        self._bench: Workbench | None = None

    def __call__(self, row: _Row) -> dict[str, np.ndarray]:
        """Add the boxes of a batch."""
        batch = pickle.loads(row[_COLUMN][0])
        if isinstance(batch, _Failure) or batch.unchanged:
            return _sent(batch)
        try:
            trail = Trail(self._trails / f"{batch.chunk.id}-find-{batch.number}")
            bench = self._bench = self._bench or Workbench(self._settings)
            bench.clock = Clock()
            spent = bench.spending
            if len(batch.looked) != 1:
                trail.enter(", ".join(each.name for each in batch.looked))
            elif not trail.may_enter(batch.looked[0].name):
                batch.pictures = [FAULT]
            examined = [bench.recall(each) for each in batch.looked]
            batch.cuts = bench.cut_opened(examined, batch.pictures)
            batch.pictures, batch.spent = [], bench.spending - spent
            if any(each.scheme.upscaler.fingerprint() for each in examined):
                _write_batch(batch, bench, self._settings, trail)  # enlarging is for who has the network
            else:
                batch.add_seconds(bench.clock)
            trail.end()
        except (FlowgrainError, OSError) as error:
            return _sent(_Failure(error))
        return _sent(batch)


def _write(row: _Row, settings: WorkSettings, trails: Path) -> dict[str, np.ndarray]:
    """On a CPU: cut, encode and write a batch."""
    batch = pickle.loads(row[_COLUMN][0])
    if isinstance(batch, _Failure) or batch.unchanged or batch.written:
        return _sent(batch)
    try:
        trail = Trail(trails / f"{batch.chunk.id}-write-{batch.number}")
        bench = _light_bench(settings)
        bench.clock = Clock()
        _write_batch(batch, bench, settings, trail)
        trail.end()
    except (FlowgrainError, OSError) as error:
        return _sent(_Failure(error))
    return _sent(batch)


def _write_batch(batch: _Batch, bench: Workbench, settings: WorkSettings, trail: Trail) -> None:
    """Crop, encode and write the slices of a batch."""
    store = _store(settings)
    shards = settings.config.layout == "webdataset"
    output: Output = _Encoded() if shards else FolderOutput(store, store.journal(batch.chunk.id))
    for looked, cut in zip(batch.looked, batch.cuts, strict=True):
        trail.enter(looked.name)
        batch.parts[looked.name] = write_image(bench.recall(looked), cut, output, bench.clock)
    batch.sizes = output.close()
    batch.slices = output.slices if isinstance(output, _Encoded) else []
    batch.cuts, batch.written = [], True
    batch.add_seconds(bench.clock)


class _Encoded(Output):
    """Keeps encoded slices for the driver."""

    def __init__(self):
        self.slices: list[tuple[SliceRecord, bytes, bytes | None]] = []

    def add(self, record: SliceRecord, picture: bytes, mask: bytes | None) -> tuple[SliceRecord, tuple[str, ...]]:
        self.slices.append((record, picture, mask))
        return record, ()

    def end_image(self, records: Any) -> None:
        """Nothing to do before the driver."""

    def close(self) -> dict[str, int]:
        return {}

    def abandon(self) -> None:
        """Nothing was written."""


def _sent(batch: _Batch | _Failure) -> dict[str, np.ndarray]:
    column = np.empty(1, dtype=object)
    column[0] = pickle.dumps(batch, protocol=5)
    return {_COLUMN: column}
