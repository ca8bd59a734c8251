"""The best checkpoint: the lowest finite held-out loss of a kept checkpoint, the earlier one of two equal ones."""

import json
from pathlib import Path

import pytest
from whole_runs import Listening, StopAfter, assert_same_run

from flowgrain.cli.sample import _choose
from flowgrain.errors import CheckpointError
from flowgrain.sample.run_folder import best_checkpoint
from flowgrain.train.best import Best, best_of_log, improves, read_best, write_best
from flowgrain.train.log import read_log
from flowgrain.train.loop import train
from flowgrain.train.state import CheckpointInfo, checkpoint_path, complete_checkpoints
from flowgrain.train.validation import Validator


def write_log(run, losses, kept):
    run.mkdir(exist_ok=True)
    lines = [{"kind": "validation", "update": update, "loss": loss} for update, loss in losses.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for update in kept:
        checkpoint_path(run, update).mkdir(parents=True)
        (checkpoint_path(run, update) / "COMPLETE").touch()


def test_the_lowest_kept_finite_loss_is_the_best(tmp_path):
    write_log(tmp_path, {0: 0.1, 1: 0.9, 2: float("nan"), 3: 0.5, 4: 0.5, 5: 0.2}, kept=[1, 2, 3, 4])
    assert best_of_log(tmp_path) == Best(3, 0.5)


def test_nothing_measured_is_no_best(tmp_path):
    assert best_of_log(tmp_path) is None and read_best(tmp_path) is None
    assert improves(None, 1.0) and not improves(None, float("nan")) and not improves(Best(1, 1.0), 1.0)
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        best_checkpoint(tmp_path)


def test_best_json_is_read_written_and_removed(tmp_path):
    write_best(tmp_path, Best(3, 0.5))
    assert read_best(tmp_path) == Best(3, 0.5)
    assert json.loads((tmp_path / "best.json").read_text())["checkpoint"] == "checkpoints/update-000003"
    write_best(tmp_path, None)
    assert read_best(tmp_path) is None
    (tmp_path / "best.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        read_best(tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        best_checkpoint(tmp_path)


def test_a_run_keeps_and_names_its_best_checkpoint(recipe, dataset, monkeypatch):
    """Losses turned round rise as training goes on: the best is the first update, which marks nothing."""
    summary = Validator.summary

    def turned_round(self, losses):
        values = summary(self, losses)
        return {**values, "loss": -values["loss"]}

    monkeypatch.setattr(Validator, "summary", turned_round)
    sections = {"validation": {"path": str(dataset), "max_roots": 2, "every": 1}}
    config, parts = recipe("best", **sections), recipe("parts", **sections)
    train(config, False, Listening())
    measured = {line["update"]: line["loss"] for line in read_log(config.output) if line["kind"] == "validation"}
    assert list(measured) == list(range(7))
    best = read_best(config.output)
    assert best.update == min(range(1, 7), key=measured.get) and best.loss == measured[best.update]
    assert best.update < 4, "the best must not be a marked one here"
    assert [CheckpointInfo.read(f).progress.updates for f in complete_checkpoints(config.output)] == [best.update, 4, 6]
    assert best_checkpoint(config.output).update == best.update
    assert _choose(config.output, None, None, None, None, None, Path("best"))[2].update == best.update
    train(parts, False, StopAfter(best.update + 1))
    train(parts, True, Listening())
    assert_same_run(config.output, parts.output)


def test_without_keep_best_nothing_is_named(recipe, dataset):
    validation = {"path": str(dataset), "max_roots": 1, "every": 1, "keep_best": False}
    config = recipe("none", validation=validation, budget={"amount": 2, "checkpoints": [1.0]})
    train(config, False, Listening())
    assert read_best(config.output) is None and len(complete_checkpoints(config.output)) == 1
