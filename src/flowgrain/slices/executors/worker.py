"""A worker process of this machine: chunks come in through a pipe, what becomes of them goes back through it."""

import os
import pickle
import queue
import signal
import threading
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from flowgrain.errors import FlowgrainError
from flowgrain.slices.chunk_work import Care, ChunkReport, process_chunk
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.pieces import Fault, WorkSettings
from flowgrain.slices.store import Store
from flowgrain.slices.work import Workbench


@dataclass(frozen=True)
class Task:
    """A chunk, and what is known of those of its images at which a process died."""

    chunk: Chunk
    suspects: frozenset[str] = frozenset()
    """A process died at them once: they are looked at one by one."""
    crashed: dict[str, Fault] = field(default_factory=dict)
    """A process died at them again: they are rejected."""


@dataclass(frozen=True)
class At:
    """A worker begins with these images, together; with none: with what is no image's own."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """A worker has finished its chunk."""

    report: ChunkReport


@dataclass(frozen=True)
class Failed:
    """A worker met an error that ends the run."""

    error: Exception


Message = At | Done | Failed


def serve(settings: WorkSettings, pipe: Connection) -> None:
    """Do the tasks that come, until None does: then finish what is being done and leave the rest.

    Ctrl-C is the parent's to handle; without a parent there is nothing to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    inbox: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    ending = threading.Event()
    threading.Thread(target=_receive, args=(pipe, inbox, ending), name="inbox", daemon=True).start()
    bench = store = None
    while (task := inbox.get()) is not None and not ending.is_set():
        try:
            # loaded with the first chunk, where an error has somebody to hear it
            bench, store = bench or Workbench(settings), store or open_store(settings)
            care = Care(lambda names: pipe.send(At(tuple(names))), task.suspects, task.crashed)
            message: Message = Done(process_chunk(bench, store, task.chunk, _ignore, care))
        except Exception as error:
            message = Failed(_portable(error))
        pipe.send(message)
    if bench is not None:
        bench.close()


def open_store(settings: WorkSettings) -> Store:
    """The data set that ``settings`` name. Raises ValueError where they name none."""
    if settings.out is None:
        raise ValueError("chunks are written: settings.out is needed")
    return Store(settings.out)


def _receive(pipe: Connection, inbox: "queue.SimpleQueue[Task | None]", ending: threading.Event) -> None:
    """Empty the pipe at all times, so that neither side ever waits for the other to read."""
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):  # the parent is gone
            os._exit(1)
        if task is None:
            ending.set()
        inbox.put(task)


def _portable(error: Exception) -> Exception:
    """The error as it can travel; a bug with the place where it happened."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, FlowgrainError):
        error.add_note(f"in a worker process:\n{text}")
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # of whatever kind: an exception's class decides how it is made again
        return RuntimeError(f"in a worker process:\n{text}")


def _ignore(name: str) -> None:
    """Progress of single images stays in the worker."""
