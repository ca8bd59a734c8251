"""``flowgrain status`` and the live display, as a user meets them."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from flowgrain.cli import status as command
from flowgrain.cli.main import app, main
from flowgrain.cli.progress import STOPPING, TrainingProgress
from flowgrain.train.best import Best
from flowgrain.train.repro import BATCHES_NAME
from flowgrain.train.schedule import Progress
from flowgrain.train.status import CheckpointStatus, RunState
from flowgrain.train.step import LevelMeans, UpdateResult

STATE = RunState(
    name="fox", state="died", where="process 7 on host", update=150, slices=1200, seconds=3725.0, budget="300 updates",
    part=0.5, slices_per_second=12.5, seconds_left=125.0, loss_by_level={"macro": 0.5, "micro": 0.25},
    validation_update=100, validation_loss=0.4, best=Best(100, 0.4),
    checkpoints=(CheckpointStatus(100, (1.0, 1.5), 2**20), CheckpointStatus(150, (), 2**19)), bytes=3 * 2**20,
    error_bundle="nonfinite-update-000151",
)  # fmt: skip


def test_every_fact_has_its_line(tmp_path):
    bundle = tmp_path / "nonfinite-update-000151"
    bundle.mkdir()
    assert f"not finite: {bundle / 'update.json'}" in command._lines(tmp_path, STATE)  # an autoencoder's
    (bundle / BATCHES_NAME).touch()
    text = "\n".join(command._lines(tmp_path, STATE))
    for part in (
        "fox: died: its process is gone", "(process 7 on host)", "update 150, 1200 slices, 1 h 2 min of training",
        "50.0% of 300 updates", "12.5 slices/s", "2 min 5 s left", "macro 0.5000, micro 0.2500",
        "validation: 0.40000 at update 100; best 0.40000 at update 100",
        "checkpoint: update 100, 1.0 MiB, 1 N1, 1.5 N1, best", "checkpoint: update 150, 0.5 MiB, for resuming",
        "disk: 3.0 MiB", f"flowgrain replay {bundle}",
    ):  # fmt: skip
        assert part in text, part
    bare = replace(STATE, slices_per_second=None, seconds_left=None, loss_by_level={}, validation_loss=None, best=None,
                   checkpoints=(), error_bundle=None, state="running", where=None)  # fmt: skip
    assert "checkpoint: none yet" in command._lines(tmp_path, bare)


def test_json_is_one_object(tmp_path, monkeypatch):
    monkeypatch.setattr("flowgrain.train.status.read_status", lambda run: STATE)
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["checkpoints"][0]["marks"] == [1.0, 1.5]


@pytest.mark.parametrize("arguments", [["status", "{}"], ["replay", "{}"], ["status", "{}/nowhere"]])
def test_a_folder_that_is_none_is_one_line_and_exit_code_2(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main([part.format(tmp_path) for part in arguments])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_bar_starts_where_the_run_stands_and_speed_is_of_this_session():
    progress = TrainingProgress("fox")
    start = Progress(updates=10, slices=1000, seconds=10.0)
    progress.started(start, 0.25)
    (task,) = progress._bars.tasks
    assert (task.completed, task.total) == (0.25, 1.0) and task.fields["detail"] == "from update 10"
    later = replace(start, updates=11, slices=1020, seconds=14.0)
    progress.updated(later, 0.3, UpdateResult(0.5, 1.0, LevelMeans()))
    assert task.completed == 0.3 and "5.0 slices/s" in task.fields["detail"]
    progress.stopping()
    assert task.fields["detail"] == STOPPING
    progress.updated(replace(later, updates=12), 0.35, UpdateResult(0.5, 1.0, LevelMeans()))
    assert task.fields["detail"] == STOPPING and task.completed == 0.35


@pytest.mark.parametrize("command", ["status", "replay"])
def test_help_has_an_example(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0 and f"flowgrain {command} runs/fox" in done.stdout.split("Example", 1)[1]
