"""What is known of files that did not change: their digest and size in pixels, so that opening a data set reads none.

A file counts as unchanged while its stamp is the same (:meth:`Collection.stamp`): of a file, length, modification
time, inode and inode-change time, of which the last cannot be set back by hand; of a member of a tar, those of the tar
and the member's place. A file that was written within ``SETTLED_NS`` before it was read is not entered, since a second
write in the same tick of the file system's clock would go unnoticed (git calls such entries racy).
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import PIL

from flowgrain.data.collections import Item
from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text

READERS = 4
SETTLED_NS = 2_000_000_000
"""Age in nanoseconds from which a file's times tell whether it changed: the coarsest clock in use (FAT) has 2 s."""
VERSION = f"2, Pillow {PIL.__version__}"
"""What a decoder accepts depends on the decoder: another version looks at every file again."""
_CHUNK = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileFacts:
    """What opening a data set asks of a file."""

    digest: str
    """SHA-1 of its bytes."""
    width: int
    """Pixels of the upright picture."""
    height: int
    peak: int | None
    """Largest value, 0 to 255, of the alpha channel (picture; None without one) or of the grey values (mask)."""


class FileIndex:
    """Facts of the files of a data set by name, kept in ``location`` (None: not kept)."""

    def __init__(self, location: Path | None):
        self._location = location
        self._entries: dict[str, tuple[str, FileFacts]] = {} if location is None else _read(location)
        self._changed = False

    def facts(self, items: Sequence[Item], inspect: Callable[[Item], FileFacts]) -> list[FileFacts | DataError]:
        """The facts of each file: known ones where it is unchanged, else those that ``inspect`` finds or its error."""
        stamps = [item.collection.stamp(item.name) for item in items]
        found: list[FileFacts | DataError | None] = [
            self._known(item.name, stamp) for item, stamp in zip(items, stamps, strict=True)
        ]
        missing = [index for index, facts in enumerate(found) if facts is None]
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]

        def look(chunk: list[int]) -> list[FileFacts | DataError]:
            return [_inspected(items[index], inspect) for index in chunk]

        now = time.time_ns()
        with ThreadPoolExecutor(READERS) as pool:
            for index, facts in zip(missing, chain.from_iterable(pool.map(look, chunks)), strict=True):
                found[index] = facts
                self._remember(items[index], stamps[index], facts, now)
        return [facts for facts in found if facts is not None]

    def save(self, present: Sequence[str]) -> None:
        """Write what was learnt, without the files that are no longer ``present``; a folder that is not writable
        costs a log line and nothing else.
        """
        kept = set(present)
        gone = [name for name in self._entries if name not in kept]
        if self._location is None or not (self._changed or gone):
            return
        for name in gone:
            del self._entries[name]
        files = {name: [stamp, *astuple(facts)] for name, (stamp, facts) in sorted(self._entries.items())}
        try:
            atomic_write_text(self._location, json.dumps({"version": VERSION, "files": files}) + "\n")
        except OSError as error:
            _log.warning("%s: not written (%s); the next run reads every file again", self._location, error.strerror)
        self._changed = False

    def _known(self, name: str, stamp: str | None) -> FileFacts | None:
        entry = self._entries.get(name)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def _remember(self, item: Item, stamp: str | None, facts: FileFacts | DataError, now: int) -> None:
        settled = stamp is not None and item.collection.changed(item.name) < now - SETTLED_NS
        if isinstance(facts, FileFacts) and stamp is not None and settled:
            self._entries[item.name] = (stamp, facts)
            self._changed = True
        elif self._entries.pop(item.name, None) is not None:
            self._changed = True


def _inspected(item: Item, inspect: Callable[[Item], FileFacts]) -> FileFacts | DataError:
    try:
        return inspect(item)
    except DataError as error:
        return error


def _read(location: Path) -> dict[str, tuple[str, FileFacts]]:
    """The entries of an index; none where it is missing, damaged or of another version, since it only saves time."""
    try:
        document = json.loads(location.read_bytes())
        if document["version"] != VERSION:
            return {}
        return {
            name: (stamp, FileFacts(digest, width, height, peak))
            for name, (stamp, digest, width, height, peak) in document["files"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _log.warning("%s: damaged, every file is read again", location)
        return {}
