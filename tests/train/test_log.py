"""The logs: whole lines, TensorBoard that its own reader reads, W&B that never stops a run."""

import errno
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from whole_runs import Listening

from flowgrain.errors import MissingExtraError
from flowgrain.train.log import LogConfig, RunLog, read_log
from flowgrain.train.sinks import WandbConfig, WholeLines


def line(update, loss=1.0):
    return {
        "update": update, "loss": loss, "grad_norm": 2.0, "lr": 1e-4, "slices_in_update": 8, "update_seconds": 2.0,
        "loss_by_level": {"macro": loss}, "mean_t_by_level": {"macro": 0.5},
    }  # fmt: skip


VALIDATION = {"loss": 0.5, "by_level": {"macro": [0.4, 0.6]}}


def open_log(run, keep_until=-1, wandb=None, notes=None):
    config = LogConfig(wandb=wandb)
    return RunLog(run, keep_until, config, {"name": "fox"}, (notes if notes is not None else []).append)


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    log = open_log(tmp_path)
    for update in (1, 2, 3):
        log.update(line(update))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "update", "upda')
    log = open_log(tmp_path, keep_until=2)
    log.update(line(3, loss=7.0))
    log.close()
    assert [(entry["update"], entry["loss"]) for entry in read_log(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]


def test_tensorboard_reads_what_is_written_and_hides_what_a_resume_replaced(tmp_path):
    log = open_log(tmp_path)
    for update in (1, 2, 3):
        log.update(line(update))
    log.validation({"update": 3, **VALIDATION})
    log.picture("fox", np.full((4, 6, 3), 200, np.uint8), 3)
    log.close()
    log = open_log(tmp_path, keep_until=1)
    log.update(line(2, loss=7.0))
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 1.0), (2, 7.0)]
    assert {"loss/macro", "mean_t/macro", "speed/slices_per_second"} <= set(board.Tags()["scalars"])


def test_a_record_is_whole_or_not_there(tmp_path):
    path = tmp_path / "lines"
    lines = WholeLines(path)
    lines.append(b"one\n")
    real = lines._file

    class Full:
        """Takes three bytes, then the disk is full."""

        def __init__(self):
            self.room = 3

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.room -= (written := min(self.room, len(data)))
            return real.write(data[:written])

        def __getattr__(self, name):
            return getattr(real, name)

    lines._file = Full()
    with pytest.raises(OSError) as caught:
        lines.append(b"two two\n")
    assert path.read_bytes() == b"one\n" and caught.value.filename == str(path)


class FakeRun:
    def __init__(self, calls, broken):
        self.calls, self.broken = calls, broken

    def define_metric(self, name, step_metric):
        self.calls.append(("define", name, step_metric))

    def log(self, values):
        if self.broken:
            raise ConnectionError("no route\nto host")
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb that remembers its calls."""
    module = types.ModuleType("wandb")
    module.calls, module.broken = [], False

    def init(**arguments):
        module.calls.append(("init", arguments))
        return FakeRun(module.calls, module.broken)

    module.init, module.Image = init, lambda pixels: pixels.shape
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_everything_and_goes_on_with_the_same_run(wandb, tmp_path):
    config = WandbConfig(project="p", entity="e", mode="offline")
    for keep_until in (-1, 1):
        log = open_log(tmp_path, keep_until, config)
        log.update(line(2))
        log.validation({"update": 2, **VALIDATION})
        log.picture("fox", np.zeros((4, 6, 3), np.uint8), 2)
        log.close()
    first, second = [arguments for kind, *rest in wandb.calls if kind == "init" for arguments in rest]
    assert first == second and first["resume"] == "allow" and first["id"]
    assert (first["project"], first["entity"], first["name"], first["mode"]) == ("p", "e", "fox", "offline")
    logged = [rest[0] for kind, *rest in wandb.calls if kind == "log"]
    assert logged[0]["train/loss"] == 1.0 and all(values["update"] == 2 for values in logged)
    assert logged[1]["validation/macro"] == 0.5 and logged[2]["previews/fox"] == (4, 6, 3)
    assert wandb.calls[-1] == ("finish",)


def test_a_failing_network_is_told_once_and_stops_nothing(wandb, tmp_path):
    wandb.broken, observer = True, Listening()
    log = open_log(tmp_path, wandb=WandbConfig(), notes=observer.notes)
    for update in (1, 2, 3):
        log.update(line(update))
    log.close()
    assert len(observer.notes) == 1 and "no route to host" in observer.notes[0] and "goes on" in observer.notes[0]
    assert len(read_log(tmp_path)) == 3


def test_a_missing_wandb_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    LogConfig().check()
    with pytest.raises(MissingExtraError, match=r"pip install 'flowgrain\[wandb\]'"):
        LogConfig(wandb=WandbConfig()).check()


def test_where_it_logs_is_no_part_of_a_recipes_identity(recipe):
    assert recipe().identity() == recipe(log={"wandb": {"project": "p"}}).identity()
