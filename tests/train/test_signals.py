"""Ctrl-C at every moment of a command: before a run, in it, between its end and the end of the process."""

import signal

import pytest

from flowgrain.train.signals import graceful_signals, ignored_once


@pytest.fixture(autouse=True)
def _handlers_as_before():
    kept = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


def test_before_a_run_it_interrupts_and_without_a_request_nothing_changes():
    with pytest.raises(KeyboardInterrupt), ignored_once(lambda: False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_after_a_stopped_run_it_does_nothing_whenever_it_comes():
    heard: list[int] = []
    with ignored_once(lambda: bool(heard)):
        with graceful_signals(lambda: heard.append(1)) as received:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # between the run's end and the last line of the command
    signal.raise_signal(signal.SIGINT)  # while the process ends
    assert heard == [1] and len(received) == 2


def test_a_run_used_as_a_library_leaves_the_handler_of_its_caller():
    with graceful_signals(lambda: None):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
