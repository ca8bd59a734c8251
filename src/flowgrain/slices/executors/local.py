"""Chunks in this process, or in worker processes of this machine."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.context import SpawnContext

from flowgrain.errors import ProcessLostError
from flowgrain.slices.chunk_work import process_chunk
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.executors.base import POLL, Executor, OnChunk, OnImage
from flowgrain.slices.executors.inquest import Inquest
from flowgrain.slices.executors.worker import At, Failed, Message, Task, open_store, serve
from flowgrain.slices.pieces import WorkSettings
from flowgrain.slices.work import Workbench

_AHEAD = 2
"""Chunks handed out per worker: one that it does and one that waits, so that it never waits itself."""
_PATIENCE = 10.0
"""Seconds that a worker may take to end after it has closed its pipe."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class InProcess(Executor):
    """One chunk after another, here."""

    def run(self, settings: WorkSettings, chunks: Iterable[Chunk | None], on_chunk: OnChunk, on_image: OnImage) -> None:
        """See :class:`Executor`."""
        store, bench = open_store(settings), Workbench(settings)
        try:
            for chunk in chunks:
                if chunk is None:
                    time.sleep(POLL)
                else:
                    on_chunk(chunk, process_chunk(bench, store, chunk, on_image))
        finally:
            bench.close()


class WorkerProcesses(Executor):
    """``count`` processes, each with detectors of its own and one thread for its libraries."""

    def __init__(self, count: int):
        self._count = count

    def run(self, settings: WorkSettings, chunks: Iterable[Chunk | None], on_chunk: OnChunk, on_image: OnImage) -> None:
        """See :class:`Executor`. Progress comes a chunk at a time.

        A worker that dies, as it does where memory runs out or a decoder crashes, is replaced and its chunk done
        again; a picture at which workers die twice is rejected. Raises ProcessLostError where they die for no picture.
        """
        with _one_thread(), _Crew(settings, self._count, iter(chunks)) as crew:
            crew.run(on_chunk, on_image)


class _Worker:
    """A process and what it has been given."""

    def __init__(self, context: SpawnContext, settings: WorkSettings):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(settings, theirs), name="decompose worker")
        self.process.start()
        theirs.close()
        self.tasks: deque[Task] = deque()
        self.at: tuple[str, ...] = ()
        """Images that it is looking at."""

    def give(self, task: Task) -> None:
        self.tasks.append(task)
        self._send(task)

    def dismiss(self) -> None:
        """Let it finish what it is doing, and end."""
        self._send(None)

    def end(self, patience: float) -> int | None:
        """Wait so many seconds for its end, then kill it; returns its exit code."""
        self.pipe.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return code

    def _send(self, what: Task | None) -> None:
        with suppress(OSError):  # it has died, which its pipe tells
            self.pipe.send(what)


class _Crew:
    """The workers of a run. As a context: none of them outlives it."""

    def __init__(self, settings: WorkSettings, count: int, chunks: Iterator[Chunk | None]):
        self._settings, self._count, self._chunks = settings, count, chunks
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._again: deque[Task] = deque()
        """Of workers that died."""
        self._exhausted = False
        self._inquest = Inquest()
        self._error: Exception | None = None

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end(0.0)

    def run(self, on_chunk: OnChunk, on_image: OnImage) -> None:
        """Do all chunks. After an error nothing more is taken up, but what is being done is finished."""
        while self._error is None:
            while self._has_room() and (task := self._next_task()):
                self._give(task)
            if any(worker.tasks for worker in self._workers):
                self._listen(None if self._exhausted or not self._has_room() else POLL, on_chunk, on_image)
            elif self._exhausted:
                break
            else:
                time.sleep(POLL)
        for worker in self._workers:
            worker.dismiss()
        while self._workers:
            self._listen(None, on_chunk, on_image)
        if self._error is not None:
            raise self._error

    def _next_task(self) -> Task | None:
        """What is to be done next; None where there is nothing, or nothing at the moment."""
        if self._again:
            return self._again.popleft()
        if self._exhausted:
            return None
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._exhausted = True
            return None
        return None if chunk is None else Task(chunk)

    def _has_room(self) -> bool:
        return len(self._workers) < self._count or any(len(worker.tasks) < _AHEAD for worker in self._workers)

    def _give(self, task: Task) -> None:
        """To who has least to do; a new process only where nobody is idle."""
        worker = min(self._workers, key=lambda each: len(each.tasks), default=None)
        if worker is None or (worker.tasks and len(self._workers) < self._count):
            worker = _Worker(self._context, self._settings)
            self._workers.append(worker)
        worker.give(task)

    def _listen(self, timeout: float | None, on_chunk: OnChunk, on_image: OnImage) -> None:
        """Wait until somebody has something to say, or dies."""
        ready = connection.wait([worker.pipe for worker in self._workers], timeout)
        for worker in [worker for worker in self._workers if worker.pipe in ready]:
            try:
                message: Message = worker.pipe.recv()
            except (EOFError, OSError):
                self._bury(worker)
            else:
                self._take(worker, message, on_chunk, on_image)

    def _take(self, worker: _Worker, message: Message, on_chunk: OnChunk, on_image: OnImage) -> None:
        if isinstance(message, At):
            if worker.at:
                self._inquest.survived()
            worker.at = message.names
            return
        chunk, worker.at = worker.tasks.popleft().chunk, ()
        if isinstance(message, Failed):
            self._error = self._error or message.error
            return
        on_chunk(chunk, message.report)
        for name in chunk.names:
            on_image(name)

    def _bury(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        code = worker.end(_PATIENCE)
        if not worker.tasks or self._error is not None:
            return
        try:
            self._again.append(self._inquest.next_try(worker.tasks.popleft(), worker.at, code))
            self._again.extend(worker.tasks)
        except ProcessLostError as error:
            self._error = error


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
