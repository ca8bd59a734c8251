"""Where a task of a cluster is, on the disk: so that its next attempt knows at which picture a process died.

The cluster repeats what a lost process was doing for as long as it takes, which would be for ever where a picture or
a model kills every process that touches it.
"""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

from flowgrain.errors import ProcessLostError
from flowgrain.slices.executors.inquest import CRASHED
from flowgrain.slices.pieces import Fault

TRAILS = "trails"
"""Folder of all trails, beside what decompose remembers."""
_DEATHS = 2
_NO_PICTURE = ""
FAULT = Fault(
    CRASHED, "the process that read it died, twice; the next run tries again, with --executor local it says why", False
)


class Trail:
    """What a task goes through, one after another, and where earlier attempts at it died."""

    def __init__(self, path: Path):
        """``path``: of this task in this run alone. Raises :class:`ProcessLostError` if it died too often elsewhere."""
        self._path = path
        self._deaths: Counter[str] = Counter()
        with suppress(FileNotFoundError, ValueError):  # the first attempt, or one that died while it wrote this
            before = json.loads(path.read_text(encoding="ascii"))
            self._deaths.update(before["deaths"])
            self._deaths[before["at"]] += 1
        self.leave()

    def may_enter(self, name: str) -> bool:
        """Go on to a picture, unless attempts have died at it twice."""
        if self._deaths[name] >= _DEATHS:
            return False
        self._write(name)
        return True

    def enter(self, name: str) -> None:
        """Go on to what cannot be left out; raises :class:`ProcessLostError` where attempts have died at it twice."""
        if not self.may_enter(name):
            raise ProcessLostError(
                f"{_DEATHS} processes of the cluster died, one after another{f', at {name!r}' if name else ''}; "
                "finished chunks are kept; run the same command with --executor local to learn more"
            )

    def leave(self) -> None:
        """Go on to what is no picture's own, such as loading models; raises as :meth:`enter`."""
        self.enter(_NO_PICTURE)

    def end(self) -> None:
        """The task is done."""
        self._path.unlink(missing_ok=True)

    def _write(self, name: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"at": name, "deaths": self._deaths}), encoding="ascii")
