"""Whatever lies in the source folder, the run goes on and says what became of every file."""

import json
import os

import pytest
from hostile_files import hostile_files

from flowgrain.config import load_config
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors.local import WorkerProcesses
from flowgrain.slices.presets import preset_path
from flowgrain.slices.work import shown

SETTINGS = load_config(DecomposeConfig, preset_path("tiny-128"), [])[0]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "photos"
    return folder, hostile_files(folder)


@pytest.fixture(scope="module")
def decomposed(hostile, tmp_path_factory):
    out = tmp_path_factory.mktemp("decomposed") / "out"
    summary = decompose(hostile[0], out, SETTINGS, None, RunOptions(WorkerProcesses(2)))
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    return out, summary, records, rejects


def test_every_file_is_used_or_has_a_reason(hostile, decomposed):
    folder, names = hostile
    _, summary, records, rejects = decomposed
    assert len(names) >= 490 and summary.images == len(names)
    used = {record["image"] for record in records}
    reasons = {reject["image"]: reject["reason"] for reject in rejects if reject["level"] is None}
    boxes = {reject["image"] for reject in rejects if reject["level"] is not None}
    assert used | set(reasons) | boxes == {shown(name) for name in names}
    assert not used & set(reasons)
    for name, reason in reasons.items():
        assert reason and "\n" not in reason and str(folder) not in reason, (name, reason)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero.jpg", "the file is empty"),
        ("page.webp", "HTML page"),
        ("bomb.png", "pixels; scale it down first"),
        ("just too large.png", "more than 178956970 pixels"),
        ("lie.png", "truncated"),
        ("float.tif", "no agreed range"),
        ("pipe.jpg", "not a regular file"),
        ("device.png", "not a regular file"),
        ("gone.png", "no such file"),
        ("round.png", "symbolic links"),
        ("caf\\xe9.png", "not valid UTF-8"),
        ("text bomb.png", ""),
    ],
)
def test_reasons(decomposed, name, words):
    reasons = {reject["image"]: reject["reason"] for reject in decomposed[3] if reject["level"] is None}
    assert words in reasons[name]


@pytest.mark.parametrize(
    "name",
    ["cmyk.jpg", "turned.jpg", "odd exif.jpg", "animated.gif", "really jpg.png", "日本語.png", "line\nbreak.png",
     "palette.png", "sixteen.png", "panorama.png", "linked.png"],
)  # fmt: skip
def test_odd_files_that_viewers_show_are_used(decomposed, name):
    assert name in {record["image"] for record in decomposed[2]}


def test_a_second_run_has_nothing_to_do(hostile, decomposed):
    out, summary, _, _ = decomposed
    assert decompose(hostile[0], out, SETTINGS).unchanged == summary.images


def test_a_folder_that_may_not_be_entered_is_listed(tmp_path, monkeypatch):
    hostile_files(tmp_path / "photos", 80)
    real = os.scandir

    def guarded(path="."):
        if str(path).endswith("damaged"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    decompose(tmp_path / "photos", tmp_path / "out", SETTINGS)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().split("\n")[:-1]]
    (listed,) = [reject for reject in rejects if reject["code"] == "unlisted"]
    assert (listed["image"], listed["reason"]) == ("damaged", "the folder cannot be read (Permission denied)")
