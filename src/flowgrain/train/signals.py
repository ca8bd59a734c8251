"""Stopping on request: SIGINT and SIGTERM end a run after the running update, with everything saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def graceful_signals(on_first: Callable[[], None]) -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; the loop finishes its update, saves and returns.

    Pressing Ctrl-C again, also while it saves, changes nothing: the save goes on and the run ends after it.
    ``on_first`` is called from the signal handler, between two instructions of the loop: it must not write to a
    stream that the loop writes to.
    """
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            on_first()

    kept = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def ignored_once(requested: Callable[[], bool]) -> Iterator[None]:
    """For a command: while this holds, Ctrl-C does nothing as soon as a stop is ``requested``, and nothing ever after.

    Around ``graceful_signals``, this closes the gap between the end of a run that was stopped and the end of the
    process: one more Ctrl-C must not turn a clean end into an abort. Without a request the handler before is put back.
    """
    kept = signal.getsignal(signal.SIGINT)
    if callable(kept):  # else the system decides, by ending the process or ignoring: there is nothing to call

        def handle(number: int, frame: FrameType | None) -> None:
            if not requested():
                kept(number, frame)

        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if requested() else kept or signal.SIG_DFL)
