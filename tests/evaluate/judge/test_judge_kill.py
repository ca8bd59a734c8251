"""The judge in a process of its own: killed, interrupted, started twice.

Processes are forked off a server that has imported everything.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter

import pytest
from fake_endpoint import FakeEndpoint, Say
from simulated_judge import answer, by_red

from flowgrain.evaluate.judge.results import Judging
from flowgrain.evaluate.ranking.records import read_rankings
from flowgrain.vlm.log import read_past

CONCURRENCY = 3


def command(arguments, errors):
    """The command line; what it says goes to the file ``errors``."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from flowgrain.cli import main as entry

    entry.main(["judge", *arguments])


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowgrain.cli.main", "flowgrain.cli.judge_progress", "openai"])
    return context


@pytest.fixture
def start(server, tmp_path):
    """(folder, url, options) -> process; ``said(process)`` is what it printed once it has ended."""
    started = []

    def go(root, url, *options):
        arguments = [str(root), "--model", "fake", "--base-url", url, "--concurrency", str(CONCURRENCY)]
        settings = ["--set", "endpoint.first_wait=0", "--set", "resamples=100"]
        errors = tmp_path / f"said-{len(started)}.txt"
        process = server.Process(target=command, args=([*arguments, *settings, *options], errors))
        process.start()
        started.append(process)
        process.said = errors
        return process

    yield go
    for process in started:
        process.kill()
        process.join()


def ended(process):
    """(exit code, what it said)."""
    process.join(60)
    return process.exitcode, " ".join(process.said.read_text().split())


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_resumed_no_answered_question_is_asked_twice(make_comparison, start):
    root = make_comparison(prompts=6)
    log = root / "judge" / "log.jsonl"

    def behave(call):
        time.sleep(0.03)
        return Say(answer(call, by_red), usage=(1000, 50))

    with FakeEndpoint(behave) as endpoint:
        answered = []
        for stop_at in (8, 18):
            process = start(root, endpoint.url)
            wait_for(lambda stop_at=stop_at: len(endpoint.calls) >= stop_at)
            process.kill()
            process.join()
            wait_for(lambda: endpoint.at_once == 0)  # the server still answers what the process had sent
            answered.append(set(read_past(log).answers))
        in_flight = Counter(read_past(log).killed)
        code, said = ended(start(root, endpoint.url))
        assert code == 0, said
        questions = 6 * 3 * 2
        assert len(endpoint.counts) == questions == len(read_past(log).answers)
        # what was in flight at a kill is asked again, once for each kill, and the log counts it; nothing else is
        assert len(endpoint.calls) - questions <= in_flight.total() <= 2 * CONCURRENCY
        assert max(endpoint.counts.values()) <= 3
        assert answered[0] and answered[0] < answered[1]
    again = [key for key in in_flight if key not in answered[1]]
    assert not again or f"{len(again)} of them were being asked when a judge was killed" in said
    judging = Judging.model_validate_json((root / "judge" / "judging.json").read_text())
    assert judging.answers == {"answered": questions} and judging.asked_again == in_flight.total()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_is_in_flight_finish_and_exits_130(make_comparison, start, number):
    root = make_comparison(prompts=6)

    def behave(call):
        time.sleep(0.2)
        return Say(answer(call, by_red))

    with FakeEndpoint(behave) as endpoint:
        process = start(root, endpoint.url)
        wait_for(lambda: len(endpoint.calls) >= 4)
        os.kill(process.pid, number)
        code, said = ended(process)
        assert code == 130 and "run the same command to go on" in said
        past = read_past(root / "judge" / "log.jsonl")
        done = [entry for entry in past.answers.values() if entry.status == "answered"]
        assert len(done) == len(endpoint.calls) < 36 and not past.killed
        assert len(read_rankings(root / "judge" / "rankings.jsonl")) == len(done)


def test_a_second_judge_in_another_process_is_refused(make_comparison, start):
    root = make_comparison(prompts=1)
    release = threading.Event()

    def behave(call):
        release.wait(60)
        return Say(answer(call, by_red))

    with FakeEndpoint(behave) as endpoint:
        first = start(root, endpoint.url)
        wait_for(lambda: endpoint.calls)
        code, said = ended(start(root, endpoint.url))
        assert code == 2 and f"in use by process {first.pid}" in said
        assert "Traceback" not in said
        release.set()
        code, said = ended(first)
        assert code == 0, said
        assert len(endpoint.calls) == 6
