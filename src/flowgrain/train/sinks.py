"""Where a run's numbers and pictures go for people to look at: TensorBoard always, Weights & Biases when asked."""

import io
import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] (generated)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from flowgrain.config import Config
from flowgrain.errors import CheckpointError, MissingExtraError
from flowgrain.files import atomic_write_text

WANDB_NAME = "wandb.json"


class WandbConfig(Config):
    """A run of Weights & Biases (extra ``wandb``)."""

    project: str = Field(default="flowgrain", min_length=1, description="project of the run")
    entity: str | None = Field(default=None, description="user or team; null: the account's default")
    name: str | None = Field(default=None, description="name of the run; null: the recipe's name")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline writes to the run folder, for 'wandb sync' later"
    )


class WholeLines:
    """Appends records to a file so that each is there whole or not at all, also on a full disk."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, record: bytes) -> None:
        """Write one record; raises OSError with the file's name, and then leaves no part of it."""
        start, rest = self._file.tell(), memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(start)
            error.filename = str(self._path)
            raise

    def sync(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Sink(ABC):
    """Takes numbers and pictures by update."""

    @abstractmethod
    def scalars(self, values: dict[str, float], update: int) -> None:
        """Numbers by name."""

    @abstractmethod
    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """One picture, uint8 pixels (height, width, 3)."""

    @abstractmethod
    def close(self) -> None:
        """Nothing comes after this."""


class TensorBoardSink(Sink):
    """One event file a session; written without the usual thread, so that a full disk is seen where it happens."""

    def __init__(self, folder: Path, first: int):
        """Events from update ``first`` on of earlier sessions are hidden by TensorBoard."""
        self._lines = WholeLines(folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}")
        self._event(Event(file_version="brain.Event:2"))
        self._event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, values: dict[str, float], update: int) -> None:
        """See :meth:`Sink.scalars`."""
        for name, value in values.items():
            self._event(Event(step=update, summary=summary.scalar(name, value)))

    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """See :meth:`Sink.picture`."""
        self._event(Event(step=update, summary=summary.image(name, pixels, dataformats="HWC")))

    def close(self) -> None:
        """See :meth:`Sink.close`."""
        self._lines.close()

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._lines.append(record.getvalue())


class WandbSink(Sink):
    """One run of Weights & Biases over all sessions of a run. A failure is told once and the training goes on."""

    def __init__(self, run: Path, config: WandbConfig, recipe: dict[str, Any], on_failure: Callable[[str], None]):
        self._wandb: Any = require_wandb()
        self._on_failure = on_failure
        self._run: Any = None

        def start() -> None:
            self._run = self._wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or recipe["name"],
                mode=config.mode,
                dir=str(run),
                id=_run_id(run),
                resume="allow",
                config=recipe,
            )
            # updates are logged as a value, not as W&B's step: after a resume they go back to the checkpoint's
            self._run.define_metric("*", step_metric="update")

        self._try("start", start)

    def scalars(self, values: dict[str, float], update: int) -> None:
        """See :meth:`Sink.scalars`."""
        self._try("log", lambda: self._run.log({**values, "update": update}))

    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """See :meth:`Sink.picture`."""
        self._try("log a picture", lambda: self._run.log({name: self._wandb.Image(pixels), "update": update}))

    def close(self) -> None:
        """See :meth:`Sink.close`."""
        self._try("finish", lambda: self._run.finish())

    def _try(self, what: str, action: Callable[[], object]) -> None:
        if self._wandb is None:
            return
        try:
            action()
        except Exception as error:  # of whatever kind: a logger on the network must not end a run
            self._wandb = None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._on_failure(f"Weights & Biases could not {what} ({reason}); the run goes on without it")


def require_wandb() -> Any:
    """The wandb module; raises MissingExtraError where it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise MissingExtraError("wandb", "wandb", "log.wandb") from None
    return wandb


def _run_id(run: Path) -> str:
    """The id that a run keeps over its sessions."""
    path = run / WANDB_NAME
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        identity = uuid.uuid4().hex[:12]
        atomic_write_text(path, json.dumps({"id": identity}) + "\n")
        return identity
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it to log to a new W&B run") from None
