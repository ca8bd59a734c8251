"""Runs in tests: what two of them must have in common, and how to stop one."""

import json
import os
import signal
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flowgrain.adapters.base import FULL_NAME, WEIGHTS_NAME
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer
from flowgrain.train.state import complete_checkpoints

TIMES = ("seconds", "update_seconds")
SMALL_PREVIEWS = {"prompts": ["a red drawing"], "sampler": {"steps": 2, "height": 32, "width": 32}}


class StopAfter(Observer):
    """Asks to stop, as Ctrl-C would, during the given update."""

    def __init__(self, update):
        self.update = update

    def updated(self, progress, part, result):
        if progress.updates == self.update:
            os.kill(os.getpid(), signal.SIGINT)


class Listening(Observer):
    """Remembers what it is told."""

    def __init__(self):
        self.notes = []

    def noted(self, message):
        self.notes.append(message)


def final_state(output):
    folder = complete_checkpoints(Path(output))[-1]
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {f"{i}.{k}": v for i, state in optimizer["state"].items() for k, v in state.items()}
    saved = {
        f"{path.relative_to(folder).as_posix()}:{name}": tensor
        for path in sorted((folder / "adapter").rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }
    assert saved
    return {**load_file(folder / "trainable.safetensors"), **moments, **saved}


def header_without_date(output):
    """What the last adapter says about itself; the run's start differs between runs."""
    folder = complete_checkpoints(Path(output))[-1] / "adapter"
    if (folder / FULL_NAME).exists():
        header = json.loads((folder / FULL_NAME).read_text())["metadata"]
    else:
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as stream:
            header = stream.metadata()
    assert header["modelspec.date"] == json.loads((Path(output) / "run.json").read_text())["started"]
    return {key: value for key, value in header.items() if key != "modelspec.date"}


def log_without_times(output):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(Path(output))]


def files(output, pattern):
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in Path(output).glob(pattern)}


def assert_same_run(a, b):
    """Parameters, optimizer, moving average, adapter, log, previews and best.json are bitwise equal."""
    left, right = final_state(a), final_state(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert header_without_date(a) == header_without_date(b)
    assert log_without_times(a) == log_without_times(b)
    assert files(a, "previews/*/*.png") == files(b, "previews/*/*.png")
    assert files(a, "best.json") == files(b, "best.json")
    names = [folder.name for folder in complete_checkpoints(Path(a))]
    assert names == [folder.name for folder in complete_checkpoints(Path(b))]
