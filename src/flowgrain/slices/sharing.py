"""Several processes, perhaps of several machines, at work on one data set.

Each has a file that it touches every few seconds; while that happens, what it has claimed is left to it. Whether a
file was touched lately is judged by the file system's own clock, so the machines' clocks need not agree. Claims save
work and protect nothing: two processes that do the same chunk write the same bytes.
"""

import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from flowgrain.data.records import MANIFEST_NAME, REJECTS_NAME
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.contact_sheet import CONTACT_SHEET_NAME
from flowgrain.slices.store import DATASET_NAME

BEAT = 5.0
"""Seconds between touches."""
_SETTLED = 1.0
"""Seconds after which a file under a temporary name is nobody's who has announced himself in this instant."""
_AT_THE_END = (MANIFEST_NAME, REJECTS_NAME, DATASET_NAME, CONTACT_SHEET_NAME, "report.html")
"""Files of the data set that are written when all chunks are finished."""
PATIENCE = 60.0
"""Seconds without a touch after which a process counts as dead."""


class Presence:
    """This process among those that work on a data set. Use as a context."""

    def __init__(self, state: Path, digest: str):
        """``digest`` says what is being made of which pictures: all who work on a folder must agree on it."""
        self._workers, self._claims = state / "workers", state / "claims"
        self._digest = digest
        self._token = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._file = self._workers / self._token
        self._ended = threading.Event()

    def __enter__(self) -> "Presence":
        """Announce this process. Raises :class:`DataError` where another one makes something else of the folder."""
        self._workers.mkdir(parents=True, exist_ok=True)
        self._claims.mkdir(exist_ok=True)
        about = {"host": socket.gethostname(), "process": os.getpid(), "digest": self._digest}
        atomic_write_text(self._file, json.dumps(about) + "\n")
        others = [(path, self._read(path)) for path in self._workers.iterdir() if path != self._file]
        alive = [other for path, other in others if other is not None and self._is_alive(path.name)]
        for other in alive:
            if other["digest"] != self._digest:
                self._file.unlink()
                raise DataError(
                    f"{self._workers.parent.parent}: process {other['process']} on {other['host']} is making another "
                    "data set there (other pictures or other settings); wait for it, stop it, or choose another --out"
                )
        if not alive:
            self._clear([path for path, _ in others])
        threading.Thread(target=self._beat, name="presence", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take back the announcement and what is still claimed."""
        self._ended.set()
        for path in self._claims.iterdir():
            if self._owner(path) == self._token:
                path.unlink(missing_ok=True)
        self._file.unlink(missing_ok=True)

    def _clear(self, dead: Iterable[Path]) -> None:
        """Remove what killed processes left: announcements, claims, half-written files. Nobody else is at work."""
        state, now = self._workers.parent, self._file.stat().st_mtime
        shutil.rmtree(state / "trails", ignore_errors=True)
        for path in dead:
            if not path.name.startswith("."):
                path.unlink(missing_ok=True)
        for path in self._claims.iterdir():
            owner = self._owner(path)
            if owner is not None and not self._is_alive(owner):
                path.unlink(missing_ok=True)
        unfinished = [path for name in _AT_THE_END for path in state.parent.glob(f".{name}.*.tmp")]
        for path in (*unfinished, *state.glob(".*.tmp"), *state.glob("*/.*.tmp")):
            with suppress(OSError):
                if now - path.stat().st_mtime > _SETTLED:
                    path.unlink()

    def claimed(self, chunks: Iterable[Chunk]) -> Iterator[Chunk | None]:
        """Every chunk: first those that nobody else has, then the others' as they finish or die.

        A chunk that another process has finished is handed out too, and found to be up to date. None where all that
        are left are the others' at the moment: they may be waiting for those that this process has in hand.
        """
        left = []
        for chunk in chunks:
            if self._claim(chunk):
                yield chunk
            else:
                left.append(chunk)
        while left:
            still = []
            for chunk in left:
                if self._claim(chunk):
                    yield chunk
                else:
                    still.append(chunk)
            if len(still) == len(left):
                yield None
            left = still

    def release(self, chunk: Chunk) -> None:
        """Give a claim back."""
        (self._claims / chunk.id).unlink(missing_ok=True)

    def _claim(self, chunk: Chunk) -> bool:
        path = self._claims / chunk.id
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(self._token)
            return True
        except FileExistsError:
            owner = self._owner(path)
        if owner is None:  # given back in this instant, or being written: look again later
            return False
        if owner != self._token and self._is_alive(owner):
            return False
        atomic_write_text(path, self._token)
        return True

    def _is_alive(self, token: str) -> bool:
        path = self._workers / token
        about = self._read(path)
        if about is None:
            return False
        if about["host"] == socket.gethostname() and not psutil.pid_exists(about["process"]):
            return False
        try:
            return self._file.stat().st_mtime - path.stat().st_mtime < PATIENCE
        except OSError:
            return False

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return {"host": str(about["host"]), "process": int(about["process"]), "digest": str(about["digest"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _owner(self, claim: Path) -> str | None:
        try:
            return claim.read_text(encoding="utf-8") or None
        except OSError:
            return None

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):
                os.utime(self._file)
