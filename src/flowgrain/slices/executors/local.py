"""Chunks in this process, or in worker processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from flowgrain.errors import ProcessLostError
from flowgrain.slices.chunk_work import ChunkReport, process_chunk
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.executors.base import Executor, OnChunk, OnImage
from flowgrain.slices.pieces import WorkSettings
from flowgrain.slices.store import Store
from flowgrain.slices.work import Workbench

_AHEAD = 2
"""Chunks handed out per worker: one that it does and one that waits, so that it never waits itself."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

_settings: WorkSettings | None = None
_bench: Workbench | None = None
_store: Store | None = None


class InProcess(Executor):
    """One chunk after another, here."""

    def run(self, settings: WorkSettings, chunks: Iterable[Chunk], on_chunk: OnChunk, on_image: OnImage) -> None:
        """See :class:`Executor`."""
        bench, store = _set_up(settings)
        for chunk in chunks:
            on_chunk(chunk, process_chunk(bench, store, chunk, on_image))


class WorkerProcesses(Executor):
    """``count`` processes, each with detectors of its own and one thread for its libraries."""

    def __init__(self, count: int):
        self._count = count

    def run(self, settings: WorkSettings, chunks: Iterable[Chunk], on_chunk: OnChunk, on_image: OnImage) -> None:
        """See :class:`Executor`. Progress comes a chunk at a time.

        Raises ProcessLostError where a worker dies, as it does where memory runs out.
        """
        context = multiprocessing.get_context("spawn")
        running: dict[Future[ChunkReport], Chunk] = {}
        source = iter(chunks)
        with (
            _one_thread(),
            ProcessPoolExecutor(self._count, context, initializer=_start_worker, initargs=(settings,)) as pool,
        ):
            try:
                for chunk in _bounded(source, running, self._count * _AHEAD):
                    if chunk is not None:
                        running[pool.submit(_work, chunk)] = chunk
                        continue
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        finished = running.pop(future)
                        on_chunk(finished, future.result())
                        for name in finished.names:
                            on_image(name)
            except BrokenProcessPool:
                names = ", ".join(f"'{chunk.names[0]}'" for chunk in running.values())
                raise ProcessLostError(
                    f"a worker died while cutting the images from {names or 'the last chunk'} on, perhaps for want of "
                    "memory; finished chunks are kept, run again with fewer --workers"
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _bounded(chunks: Iterator[Chunk], running: dict[Future[ChunkReport], Chunk], most: int) -> Iterator[Chunk | None]:
    """The next chunk while fewer than ``most`` run, None where one must finish first."""
    exhausted = False
    while True:
        if not exhausted and len(running) < most:
            chunk = next(chunks, None)
            exhausted = chunk is None
            if chunk is not None:
                yield chunk
        elif running:
            yield None
        else:
            return


def _set_up(settings: WorkSettings) -> tuple[Workbench, Store]:
    if settings.out is None:
        raise ValueError("chunks are written: settings.out is needed")
    return Workbench(settings), Store(settings.out)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for the numerical libraries of processes that are started in the block."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker(settings: WorkSettings) -> None:
    """In a worker: Ctrl-C is the parent's to handle, and without a parent there is nothing to do."""
    global _settings
    _settings = settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> ChunkReport:
    """In a worker: what it needs is loaded with its first chunk, since errors of initializers are lost."""
    global _bench, _store
    if _settings is None:
        raise RuntimeError("worker was not started")
    if _bench is None or _store is None:
        _bench, _store = _set_up(_settings)
    return process_chunk(_bench, _store, chunk, _ignore)


def _ignore(name: str) -> None:
    """Progress of single images stays in the worker."""
