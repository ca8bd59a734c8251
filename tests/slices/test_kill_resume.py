"""Killed at any moment and run again, or by several processes at once, a decomposition is what it would have been."""

import os
import random
import shutil
import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from decompose_runs import QUICK, config, data_of, decompose_command, kill_when, leftovers, photos, start_decompose

from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors.local import InProcess


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("source") / "photos", 40)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What an uninterrupted run gives, by layout."""
    given = {}
    for layout in ("folder", "webdataset"):
        out = tmp_path_factory.mktemp("whole") / "out"
        decompose(source, out, config(*QUICK, f"layout={layout}"), None, RunOptions(InProcess()))
        given[layout] = data_of(out)
    return given


def layouts(slow):
    """Both layouts, of which one is left to the slow tests."""
    return pytest.mark.parametrize(
        "layout", [pytest.param(each, marks=[pytest.mark.slow] * (each == slow)) for each in ("folder", "webdataset")]
    )


def written(out, since=0):
    """Bytes below the slices or shards, unfinished files included, that were written since a time (nanoseconds)."""
    total = 0
    for folder in ("slices", "shards"):
        for parent, _, files in os.walk(out / folder):
            for name in files:
                with suppress(FileNotFoundError):
                    status = os.stat(os.path.join(parent, name))
                    total += status.st_size if status.st_mtime_ns > since else 0
    return total


@layouts(slow=None)
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(tmp_path, source, whole, layout, rounds):
    expected = whole[layout]
    out = tmp_path / "out"
    size = sum(len(data) for name, data in expected.items() if name.startswith(("slices/", "shards/")))
    rng = random.Random(rounds)
    killed = 0
    for turn in range(rounds):
        settings = [*QUICK, f"layout={layout}"]
        if turn % 3 == 1:  # somebody changes his mind, and changes it back: everything is made again
            settings.append("levels.micro.max_instances=2")
        if turn % 6 == 5:
            shutil.rmtree(out, ignore_errors=True)
        process = start_decompose(source, out, settings, 1 + turn % 2)
        goal, since = 1.1 * rng.random() * size, time.time_ns()
        killed += kill_when(process, lambda goal=goal, since=since: written(out, since) > goal)
    assert killed >= rounds // 2
    time.sleep(1.1)  # what is younger than a second may be somebody's who has just begun
    decompose(source, out, config(*QUICK, f"layout={layout}"), None, RunOptions(InProcess()))
    assert data_of(out) == expected
    assert not leftovers(out)


def workers_of(process):
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


@layouts(slow="webdataset")
def test_a_worker_that_is_killed_is_replaced(tmp_path, source, whole, layout):
    expected = whole[layout]
    out = tmp_path / "out"
    process = start_decompose(source, out, [*QUICK, f"layout={layout}"], 2)
    while not written(out):
        time.sleep(0.005)
    workers_of(psutil.Process(process.pid))[0].kill()
    process.join()
    assert process.exitcode == 0
    assert data_of(out) == expected and not leftovers(out)


def test_workers_that_always_die_end_the_run_with_a_clear_error(tmp_path, source, whole):
    out, quick = tmp_path / "out", [*QUICK, "--workers", "2"]
    arguments = decompose_command(source, out, *quick)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        for worker in workers_of(parent) if parent.is_running() else []:
            worker.kill()
        time.sleep(0.05)
    said = process.stderr.read()
    process.stderr.close()
    assert process.returncode == 4 and said.count("\n") == 1, said
    assert "workers died 3 times" in said and "SIGKILL" in said and "run again with fewer --workers" in said
    assert not list((out / ".decompose" / "workers").iterdir())
    decompose(source, out, config(*QUICK), None, RunOptions(InProcess()))
    assert data_of(out) == whole["folder"] and not leftovers(out)


@layouts(slow="folder")
def test_two_runs_of_several_workers_share_one_output(tmp_path, source, whole, layout):
    expected = whole[layout]
    out = tmp_path / "out"
    both = [start_decompose(source, out, [*QUICK, f"layout={layout}"], 2) for _ in "ab"]
    for process in both:
        process.join(120)  # they would wait for each other for ever if they held on to what they have finished
    assert [process.exitcode for process in both] == [0, 0]
    assert data_of(out) == expected and not leftovers(out)
