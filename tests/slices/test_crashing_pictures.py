"""A picture that kills whoever reads it, as decoders sometimes do, costs itself only."""

import json
import os
import shutil
import signal

import pytest
from decompose_runs import QUICK, config, data_of, leftovers, photos
from yolo_models import save_yolo

from flowgrain.errors import ProcessLostError
from flowgrain.slices.chunks import Chunk
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors.inquest import Inquest
from flowgrain.slices.executors.local import InProcess, WorkerProcesses
from flowgrain.slices.executors.worker import Task

DEADLY = (173, 91)
"""Size of the pictures that kill who touches them."""
SITE = """
import os
from multiprocessing import parent_process
import PIL.Image, PIL.PngImagePlugin
kill = {kill!r}
if kill == "reader":
    real = PIL.PngImagePlugin.PngImageFile.load
    def load(self):
        if self.size == {size}:
            os.abort()
        return real(self)
    PIL.PngImagePlugin.PngImageFile.load = load
if kill == "detector":
    real = PIL.Image.Image.resize
    def resize(self, *arguments, **more):
        if self.size == {size}:
            os.kill(os.getpid(), 9)
        return real(self, *arguments, **more)
    PIL.Image.Image.resize = resize
"""


@pytest.mark.parametrize("kill", ["reader", "detector"])
def test_a_picture_that_kills_its_worker_costs_itself_only(tmp_path, monkeypatch, kill):
    source = photos(tmp_path / "photos", 24)
    deadly = photos(tmp_path / "deadly", 1, size=DEADLY) / "a" / "photo000.png"
    settings = config(*QUICK)
    if kill == "detector":
        save_yolo(tmp_path / "eyes.onnx", frame=(128, 128), batch=None)
        settings = config(f"levels.micro.detector={{kind: yolo-onnx, model: {tmp_path / 'eyes.onnx'}, batch_size: 4}}")
    decompose(source, tmp_path / "without", settings, None, RunOptions(InProcess()))
    shutil.copy(deadly, source / "a" / "photo006x.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE.format(kill=kill, size=DEADLY))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    summary = decompose(source, tmp_path / "out", settings, None, RunOptions(WorkerProcesses(1)))
    assert summary.images == 25 and summary.rejects["", "crashed"] == 1
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    crashed = {line["image"]: line["reason"] for line in rejects if line["code"] == "crashed"}
    how = {"reader": "(SIGABRT)", "detector": "(SIGKILL), perhaps for want of memory; the next run tries again"}[kill]
    reason = f"the process that read it died, twice {how}"
    assert crashed == {"a/photo006x.png": reason}
    slices = {name: data for name, data in data_of(tmp_path / "out").items() if name.startswith("slices/")}
    without = {name: data for name, data in data_of(tmp_path / "without").items() if name.startswith("slices/")}
    assert slices == without and not leftovers(tmp_path / "out")
    if kill == "reader":
        assert decompose(source, tmp_path / "out", settings, None, RunOptions(WorkerProcesses(1))).unchanged == 25


def task(*names):
    return Task(Chunk(0, names))


def test_who_is_blamed_for_a_death():
    inquest = Inquest()
    first = inquest.next_try(task(*"abcd"), ("b", "c"), -signal.SIGSEGV)
    assert (first.suspects, first.crashed) == ({"b", "c"}, {})
    second = inquest.next_try(first, ("c",), -signal.SIGSEGV)
    assert {name: (fault.code, fault.final) for name, fault in second.crashed.items()} == {"c": ("crashed", True)}
    assert "SIGSEGV" in second.crashed["c"].reason
    assert inquest.next_try(second, ("b", "c"), 1) is second  # each survived alone: nothing is known
    assert inquest.next_try(second, (), 1) is second
    with pytest.raises(ProcessLostError, match=r"died 3 times, the last one \(exit code 1\) while .* from 'a' on"):
        inquest.next_try(second, (), 1)


def test_where_every_picture_kills_none_is_to_blame():
    inquest, names = Inquest(), [f"{index}.png" for index in range(20)]
    tried = Task(Chunk(0, tuple(names)), frozenset(names))
    for name in names[:9]:
        tried = inquest.next_try(tried, (name,), -signal.SIGILL)
    assert len(tried.crashed) == 9
    with pytest.raises(ProcessLostError, match=r"10 pictures one after another, the last '9.png', .*\(SIGILL\)"):
        inquest.next_try(tried, (names[9],), -signal.SIGILL)
    inquest.survived()
    assert len(inquest.next_try(tried, (names[10],), -signal.SIGILL).crashed) == 10
