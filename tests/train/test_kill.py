"""Killed at random moments and resumed until it ends: bitwise the run that nobody killed.

Runs are forked off a server process that has imported everything, so that a kill can fall into any part of one:
preparation, caching, updates, validation, previews, saving, and the start of the next session.
"""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from whole_runs import SMALL_PREVIEWS, assert_same_run

from flowgrain.config import dump_yaml, load_config
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe

AT_MOST = 3
"""Updates of one session, so that the run does not end before its last kill."""


def run_to_the_end(path):
    torch.set_num_threads(1)
    recipe, _ = load_config(Recipe, Path(path), [])
    train(recipe, True, Observer())


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowgrain.train.loop", "diffusers", "peft", "transformers"])
    return context


def start(server, config, tmp_path):
    path = tmp_path / f"{config.output.name}.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    process = server.Process(target=run_to_the_end, args=(str(path),))
    process.start()
    return process


def updates(output):
    return max((line["update"] for line in read_log(output)), default=0)


def kill_in_time(process, output, delay):
    """Kill after ``delay`` seconds, or as soon as the session has done AT_MOST updates."""
    deadline, before = time.monotonic() + delay, updates(output)
    while time.monotonic() < deadline and updates(output) < before + AT_MOST:
        time.sleep(0.005)
    assert process.exitcode is None, f"the run ended by itself with exit code {process.exitcode}"
    process.kill()
    process.join()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(recipe, dataset, tmp_path, server, kills):
    sections = {
        "save_every": 1,
        "ema": {"decay": 0.5},
        "validation": {"path": str(dataset), "max_roots": 2, "every": 2},
        "previews": {**SMALL_PREVIEWS, "every": 2},
        "budget": {"amount": AT_MOST * kills + 1, "checkpoints": [0.5, 1.0]},
    }
    data = recipe().data.model_dump(mode="json")
    whole = recipe("whole", **sections, data={**data, "cache": str(tmp_path / "whole-cache")})
    killed = recipe("killed", **sections, data={**data, "cache": str(tmp_path / "killed-cache")})
    began = time.monotonic()
    process = start(server, whole, tmp_path)
    process.join()
    assert process.exitcode == 0
    duration = time.monotonic() - began
    chance = random.Random(kills)
    for _ in range(kills):
        kill_in_time(start(server, killed, tmp_path), killed.output, chance.uniform(0.0, 0.6) * duration)
    last = start(server, killed, tmp_path)
    last.join()
    assert last.exitcode == 0
    assert_same_run(whole.output, killed.output)
    assert not list(killed.output.rglob(".*.tmp"))
