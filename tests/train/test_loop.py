"""Whole runs: resume equals not stopping, neutral modulation equals none, errors leave everything as it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowgrain.config import dump_yaml
from flowgrain.errors import CheckpointError
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.state import complete_checkpoints

TIMES = ("seconds", "update_seconds")


class StopAfter(Observer):
    """Asks to stop, as Ctrl-C would, during the given update."""

    def __init__(self, update):
        self.update = update

    def updated(self, progress, part, result):
        if progress.updates == self.update:
            os.kill(os.getpid(), signal.SIGINT)


def final_state(output):
    folder = complete_checkpoints(Path(output))[-1]
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {f"{i}.{k}": v for i, state in optimizer["state"].items() for k, v in state.items()}
    adapter = load_file(next((folder / "adapter").glob("*.safetensors")))
    return {**load_file(folder / "trainable.safetensors"), **moments, **{f"adapter.{k}": v for k, v in adapter.items()}}


def log_without_times(output):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(Path(output))]


def assert_same_run(a, b):
    left, right = final_state(a), final_state(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert log_without_times(a) == log_without_times(b)


VALIDATED = {"ema": {"decay": 0.5}, "save_every": 1}


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(recipe, dataset, stop):
    sections = {**VALIDATED, "validation": {"path": str(dataset), "max_roots": 2}}
    whole, parts = recipe("whole", **sections), recipe("parts", **sections)
    train(whole, False, Observer())
    first = train(parts, False, StopAfter(stop))
    assert first.interrupted and first.progress.updates == stop
    second = train(parts, True, Observer())
    assert not second.interrupted and second.progress.updates == 6
    assert_same_run(whole.output, parts.output)


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(recipe, tmp_path):
    whole, killed = recipe("whole", **VALIDATED), recipe("killed", **VALIDATED)
    train(whole, False, Observer())
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(killed), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-m", "flowgrain", "train", str(path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(complete_checkpoints(killed.output)) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(complete_checkpoints(killed.output))
    train(killed, True, Observer())
    assert_same_run(whole.output, killed.output)


def test_neutral_modulation_is_bitwise_the_unmodulated_run(recipe):
    neutral = recipe("neutral", time={"granularity_shift": {"macro": 0.0, "meso": 0.0, "micro": 0.0}})
    plain = recipe("plain", time={})
    train(neutral, False, Observer())
    train(plain, False, Observer())
    assert_same_run(neutral.output, plain.output)


def test_micro_batch_size_and_cache_change_nothing_that_is_drawn(recipe):
    small = recipe("small", tuples={"batch_size": 2, "micro_batch": 1})
    large = recipe("large", tuples={"batch_size": 2})
    train(small, False, Observer())
    train(large, False, Observer())
    for a, b in zip(log_without_times(small.output), log_without_times(large.output), strict=True):
        assert a["mean_t_by_level"] == pytest.approx(b["mean_t_by_level"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_loss_falls(recipe):
    config = recipe("falls", optimizer={"lr": 3e-3}, budget={"amount": 40, "checkpoints": [1.0]}, clip=None,
                    validation=None, data=recipe().data.model_dump() | {"flip": False})  # fmt: skip
    session_log = train(config, False, Observer())
    assert session_log.progress.updates == 40
    losses = [line["loss"] for line in read_log(config.output) if line["kind"] == "update"]
    assert sum(losses[-9:]) < 0.9 * sum(losses[:9])


def test_log_has_levels_and_checkpoints_have_their_fraction(recipe):
    config = recipe("levels")
    train(config, False, Observer())
    lines = [line for line in read_log(config.output) if line["kind"] == "update"]
    assert {level for line in lines for level in line["loss_by_level"]} == {"macro", "meso", "micro"}
    assert sum(line["slices_in_update"] for line in lines) == lines[-1]["slices"]
    fractions = [
        json.loads((f / "state.json").read_text())["budget_fraction"] for f in complete_checkpoints(config.output)
    ]
    assert fractions == [1.0, 1.5]
    assert (config.output / "tensorboard").exists()


def test_refuses_to_write_over_a_run(recipe):
    config = recipe("twice", budget={"amount": 1, "checkpoints": [1.0]})
    train(config, False, Observer())
    with pytest.raises(CheckpointError, match="already holds a run: add --resume"):
        train(config, False, Observer())


def test_refuses_to_resume_another_recipe_or_data_set(recipe, tmp_path):
    config = recipe("other", budget={"amount": 1, "checkpoints": [1.0, 2.0]})
    train(config, False, StopAfter(1))
    changed = recipe("other", budget={"amount": 1, "checkpoints": [1.0, 2.0]}, seed=1)
    with pytest.raises(CheckpointError, match="the recipe and the plan changed"):
        train(changed, True, Observer())


def test_damaged_checkpoint_is_a_clear_error(recipe):
    config = recipe("damaged")
    train(config, False, StopAfter(2))
    folder = complete_checkpoints(config.output)[-1]
    (folder / "optimizer.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged checkpoint"):
        train(config, True, Observer())
