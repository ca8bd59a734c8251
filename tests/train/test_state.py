"""Checkpoints: complete or not there, whatever fails while they are written."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_bytes
from flowgrain.sample.run_folder import choose_checkpoint
from flowgrain.train.disk import low_space, writing
from flowgrain.train.resume import clean
from flowgrain.train.schedule import Progress
from flowgrain.train.state import (
    CheckpointInfo,
    checkpoint_bytes,
    checkpoint_path,
    complete_checkpoints,
    prune_resume_points,
    read_tensors,
    write_checkpoint,
)

TENSORS = {"parameter.a": torch.arange(2000.0), "ema.a": torch.zeros(2000)}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2000)}}, "param_groups": []}


def info(update, marks=()):
    progress = Progress(window=update, updates=update, slices=3 * update)
    return CheckpointInfo(progress, marks[-1] if marks else None, tuple(marks), "recipe", "data", "plan", "fp32")


def save_adapter(folder):
    atomic_write_bytes(folder / "adapter" / "pytorch_lora_weights.safetensors", b"a" * 8000)


def write(run, update, marks=()):
    return write_checkpoint(run, info(update, marks), TENSORS, OPTIMIZER, save_adapter)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    folder = write(tmp_path, 3, (1.0, 1.5))
    assert CheckpointInfo.read(folder) == info(3, (1.0, 1.5))
    tensors, optimizer = read_tensors(folder)
    assert tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.ones(2000))


def test_the_forecast_of_a_checkpoint_is_close(tmp_path):
    size = sum(f.stat().st_size for f in write(tmp_path, 3).rglob("*") if f.is_file())
    assert checkpoint_bytes(TENSORS, OPTIMIZER) == pytest.approx(size, rel=0.25)


def test_two_marks_of_one_update_are_both_found(tmp_path):
    write(tmp_path, 3, (1.0, 1.5))
    for mark in (1.0, 1.5):
        chosen = choose_checkpoint(tmp_path, mark)
        assert (chosen.update, chosen.budget_fraction) == (3, mark)
    with pytest.raises(CheckpointError, match=r"there are: 1, 1\.5"):
        choose_checkpoint(tmp_path, 2.0)


def test_a_run_made_longer_is_sampled_at_its_new_marks(tmp_path):
    for update, mark in ((4, 1.0), (6, 1.5), (8, 1.0), (12, 1.5)):
        write(tmp_path, update, (mark,))
    assert [choose_checkpoint(tmp_path, mark).update for mark in (1.0, 1.5)] == [8, 12]


def test_the_state_of_version_0_1_still_reads(tmp_path):
    folder = write(tmp_path, 4, (1.0,))
    values = json.loads((folder / "state.json").read_text())
    del values["budget_fractions"]
    (folder / "state.json").write_text(json.dumps(values))
    assert CheckpointInfo.read(folder).budget_fractions == (1.0,)
    assert choose_checkpoint(tmp_path, 1.0).update == 4


def test_pruning_keeps_marks_the_named_and_the_unreadable(tmp_path):
    for update, marks in ((1, ()), (2, (1.0,)), (3, ()), (4, ()), (5, ())):
        write(tmp_path, update, marks)
    (checkpoint_path(tmp_path, 4) / "state.json").write_text("{")
    prune_resume_points(tmp_path, keep={5})
    assert [folder.name[-1] for folder in complete_checkpoints(tmp_path)] == ["2", "4", "5"]


def test_leftovers_of_killed_processes_are_cleaned(tmp_path):
    write(tmp_path, 1)
    left = [".run.json.abc.tmp", "checkpoints/.update-000002.abc.tmp", "previews/.update-000002.abc.tmp"]
    for name in left[1:]:
        (tmp_path / name / "adapter").mkdir(parents=True)
    (tmp_path / left[0]).write_text("half")
    clean(tmp_path)
    assert not any((tmp_path / name).exists() for name in left)
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["update-000001"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("nth", [1, 3, 5])
def test_a_failing_disk_leaves_the_last_checkpoint_and_says_so(tmp_path, monkeypatch, number, nth):
    """The ``nth`` file of the checkpoint fails when it is synced."""
    write(tmp_path, 3)
    calls = []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CheckpointError) as caught, writing(tmp_path, checkpoint_path(tmp_path, 7), 3 * 2**20):
        write(tmp_path, 7)
    monkeypatch.undo()
    message = str(caught.value)
    assert "\n" not in message and "update-000007" in message and os.strerror(number) in message
    assert "3.0 MiB are needed" in message and "last complete checkpoint is update 3" in message
    file = ("pytorch_lora_weights.safetensors", "optimizer.pt", "COMPLETE")[nth // 2]
    assert f"update-000007: {file}: cannot be written" in message
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["update-000003"]
    read_tensors(checkpoint_path(tmp_path, 3))


@pytest.fixture
def full_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(full_disk):
    write(full_disk, 3)
    (full_disk / "ballast").write_bytes(
        b"x" * (os.statvfs(full_disk).f_bavail * os.statvfs(full_disk).f_frsize - 20480)
    )
    with pytest.raises(CheckpointError, match=r"update-000007: .*: cannot be written \(No space left on device"):
        with writing(full_disk, checkpoint_path(full_disk, 7), checkpoint_bytes(TENSORS, OPTIMIZER)):
            write(full_disk, 7)
    assert sorted(item.name for item in (full_disk / "checkpoints").iterdir()) == ["update-000003"]
    read_tensors(checkpoint_path(full_disk, 3))
    (full_disk / "ballast").unlink()
    assert write(full_disk, 7) == complete_checkpoints(full_disk)[-1]


def test_little_space_is_told_early(tmp_path):
    assert low_space(tmp_path, 1000) is None
    assert "MiB are free and a checkpoint takes" in low_space(tmp_path, 2**60)


def test_an_error_without_checkpoint_says_that_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="there is no complete checkpoint yet"), writing(tmp_path, Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")
