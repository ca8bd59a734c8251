"""One process per output folder, held by a lock that the operating system drops when the process dies."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from flowgrain.errors import FlowgrainError

LOCK_NAME = ".lock"

_PATIENCE = 0.5
"""Seconds to wait for the lock: a look at a folder (:func:`is_held`) holds it for an instant."""


class FolderError(FlowgrainError):
    """An output folder is held by another process, or cannot be one."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder, or held it last."""

    process: int
    host: str


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; raises FolderError naming the process that holds it already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # opened for appending so that the holder's line stays readable to the process that finds it locked
        stream = (folder / LOCK_NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise FolderError(
            f"{folder}: cannot be used as output folder ({error.strerror}); choose another output"
        ) from None
    with stream:
        if not _acquire(stream):
            holder = read_holder(folder)
            who = f"process {holder.process} on {holder.host}" if holder else "another process"
            raise FolderError(f"{folder}: in use by {who}; wait for it, stop it, or choose another output")
        try:
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
        except OSError as error:
            raise FolderError(
                f"{folder / LOCK_NAME}: cannot be written ({error.strerror}); free some space and start again"
            ) from None
        yield


def is_held(folder: Path) -> bool | None:
    """Whether a process holds ``folder`` now; None where nothing can be said (no lock file, or not readable)."""
    try:
        with (folder / LOCK_NAME).open("r", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except OSError:
        return None


def read_holder(folder: Path) -> Holder | None:
    """Who holds the folder or held it last, None where the lock file does not say."""
    try:
        text = (folder / LOCK_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = re.fullmatch(r"process (\d+) on (\S+)\s*", text)
    return Holder(int(match[1]), match[2]) if match else None


def _acquire(stream: TextIO) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
