"""Which picture killed a worker: a decoder may crash on a file that another one only calls damaged."""

import signal
from dataclasses import replace

from flowgrain.errors import ProcessLostError
from flowgrain.slices.executors.worker import Task
from flowgrain.slices.pieces import Fault, shown

CRASHED = "crashed"
_UNEXPLAINED = 3
"""Deaths that no picture explains after which the run ends."""
_IN_A_ROW = 10
"""Pictures one after another that each kill a process, after which the run ends: they are not to blame then."""


class Inquest:
    """Decides from how workers died what is to be done again, and how.

    A picture at which a process dies is tried once more, by itself. One at which a process dies again is rejected.
    """

    def __init__(self):
        self._unexplained = self._in_a_row = 0

    def survived(self) -> None:
        """A picture was cut, so that not every one kills."""
        self._in_a_row = 0

    def next_try(self, task: Task, at: tuple[str, ...], exit_code: int | None) -> Task:
        """What is to be done of a task at whose images ``at`` a process died.

        Raises :class:`ProcessLostError` where no picture explains the deaths.
        """
        how, where = _how(exit_code), f"'{shown(task.chunk.names[0])}'"
        if at and not task.suspects.issuperset(at):
            return replace(task, suspects=task.suspects.union(at))
        if len(at) == 1:
            self._in_a_row += 1
            if self._in_a_row >= _IN_A_ROW:
                raise ProcessLostError(
                    f"{_IN_A_ROW} pictures one after another, the last '{shown(at[0])}', each ended the process that "
                    f"read it ({how}): not one of them but a library or a model is to blame; finished chunks are kept"
                )
            return replace(task, crashed={**task.crashed, at[0]: _fault(exit_code)})
        self._unexplained += 1
        if self._unexplained >= _UNEXPLAINED:
            raise ProcessLostError(
                f"workers died {_UNEXPLAINED} times, the last one ({how}) while cutting the images from {where} on, "
                "perhaps for want of memory; finished chunks are kept, run again with fewer --workers"
            )
        return task


def _fault(exit_code: int | None) -> Fault:
    killed = exit_code == -signal.SIGKILL  # from outside, as the system does when memory runs out
    more = ", perhaps for want of memory; the next run tries again" if killed else ""
    return Fault(CRASHED, f"the process that read it died, twice ({_how(exit_code)}){more}", final=not killed)


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return signal.Signals(-exit_code).name
