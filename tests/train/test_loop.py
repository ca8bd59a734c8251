"""Whole runs: resume equals not stopping, neutral modulation equals none, errors leave everything as it was."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from whole_runs import Listening, StopAfter, assert_same_run, log_without_times

from flowgrain.config import dump_yaml
from flowgrain.errors import CheckpointError
from flowgrain.sample.run_folder import choose_checkpoint
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.state import complete_checkpoints

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


class StopTwice(Observer):
    """Ctrl-C during update 2, and again and again while it saves."""

    def __init__(self):
        self.told = 0

    def updated(self, progress, part, result):
        if progress.updates == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def stopping(self):
        self.told += 1


def test_ctrl_c_again_while_saving_does_not_hurt(recipe, monkeypatch):
    from flowgrain.train import loop

    write = loop.write_checkpoint

    def interrupted_write(run, info, tensors, optimizer, save_adapter):
        def save(folder):
            os.kill(os.getpid(), signal.SIGINT)
            save_adapter(folder)
            os.kill(os.getpid(), signal.SIGTERM)

        return write(run, info, tensors, optimizer, save)

    whole, parts, observer = recipe("whole"), recipe("parts"), StopTwice()
    train(whole, False, Observer())
    monkeypatch.setattr(loop, "write_checkpoint", interrupted_write)
    assert train(parts, False, observer).interrupted
    monkeypatch.undo()
    assert observer.told == 1
    train(parts, True, Observer())
    assert_same_run(whole.output, parts.output)


def test_ctrl_c_on_the_command_line_saves_and_exits_with_130(recipe, tmp_path):
    config = recipe("run", budget={"amount": 100000, "checkpoints": [1.0]})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "flowgrain", "train", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_log(config.output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command with --resume" in errors and "again has no effect" in errors
    (checkpoint,) = complete_checkpoints(config.output)
    assert json.loads((checkpoint / "state.json").read_text())["update"] == read_log(config.output)[-1]["update"]
    assert json.loads((config.output / "run.json").read_text())["status"] == "interrupted"


def test_an_update_that_crosses_two_marks_keeps_both(recipe):
    config = recipe("marks", budget={"amount": 1, "unit": "slices", "checkpoints": [1.0, 1.5]})
    assert train(config, False, Observer()).progress.updates == 1
    assert [choose_checkpoint(config.output, mark).update for mark in (1.0, 1.5)] == [1, 1]


def test_a_finished_run_made_longer_is_the_longer_run(recipe):
    longer = {"amount": 4, "checkpoints": [1.0]}
    whole, short = recipe("whole", budget=longer), recipe("short", budget={"amount": 2, "checkpoints": [1.0]})
    train(whole, False, Observer())
    assert not train(short, False, Observer()).interrupted
    assert not train(recipe("short", budget=longer), True, Observer()).interrupted
    assert log_without_times(whole.output) == log_without_times(short.output)
    assert choose_checkpoint(short.output, 1.0).update == 4
    (complete_checkpoints(short.output)[0] / "COMPLETE").unlink()  # the mark of the shorter budget, kept as it was
    assert_same_run(whole.output, short.output)


def test_a_run_with_a_decaying_schedule_cannot_be_made_longer(recipe):
    schedule = {"kind": "linear"}
    train(recipe("run", schedule=schedule, budget={"amount": 1, "checkpoints": [1.0]}), False, Observer())
    with pytest.raises(CheckpointError) as caught:
        train(recipe("run", schedule=schedule, budget={"amount": 2, "checkpoints": [1.0]}), True, Observer())
    message = str(caught.value)
    assert "budget.amount: 1.0 -> 2.0" in message and "only a run with a constant schedule" in message
    assert "\n" not in message


def test_resuming_a_run_without_checkpoint_starts_over_and_says_so(recipe):
    whole, killed, observer = recipe("whole"), recipe("killed"), Listening()
    killed.output.mkdir()
    (killed.output / "run.json").write_text("{}")
    (killed.output / "metrics.jsonl").write_text('{"kind": "update", "update": 1}\n{"kind": "upd')
    train(whole, False, Observer())
    train(killed, True, observer)
    assert observer.notes == [f"{killed.output}: no complete checkpoint yet, starting from the beginning"]
    assert_same_run(whole.output, killed.output)


def test_files_left_out_are_listed_and_told(recipe, dataset, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (dataset / "slices").glob("r[012].macro.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"not a picture")
    data = {"path": str(folder), "resolution": 64}
    config = recipe("run", data=data, time={}, budget={"amount": 1, "checkpoints": [1.0]})
    observer = Listening()
    train(config, False, observer)
    (line,) = [json.loads(text) for text in (config.output / "quarantine.jsonl").read_text().splitlines()]
    assert line["file"].endswith("broken.png") and line["reason"]
    assert len(observer.notes) == 1 and "1 files left out (broken.png" in observer.notes[0]


def test_times_go_on_from_the_checkpoint(recipe):
    config = recipe("times")
    first = train(config, False, StopAfter(2)).progress.seconds
    train(config, True, Observer())
    seconds = [line["seconds"] for line in read_log(config.output)]
    assert seconds == sorted(seconds) and seconds[1] == pytest.approx(first, abs=1e-3) and seconds[2] > first


def test_a_full_disk_at_a_log_line_says_what_is_safe(recipe, monkeypatch):
    from flowgrain.train.sinks import WholeLines

    append = WholeLines.append

    def full_in_update_4(self, record):
        if b'"update": 4' in record:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")
        append(self, record)

    whole, full = recipe("whole", save_every=3), recipe("full", save_every=3)
    train(whole, False, Observer())
    monkeypatch.setattr(WholeLines, "append", full_in_update_4)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written.*complete checkpoint is update 3"):
        train(full, False, Observer())
    monkeypatch.undo()
    train(full, True, Observer())
    assert_same_run(whole.output, full.output)
