"""Any number of workers, processes and kills give the same files; one image never stops the others."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowgrain.config import describe_origins, load_config
from flowgrain.data.collections import Folder, Item
from flowgrain.data.collections.base import by_stem, stem_of
from flowgrain.errors import ConfigError, DataError, ModelError
from flowgrain.slices.chunks import MOST, cut_into_chunks
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.detectors import Detection, Detector, DetectorConfig, DetectorContext, View
from flowgrain.slices.detectors.grid import GridConfig
from flowgrain.slices.executors.local import WorkerProcesses
from flowgrain.slices.presets import preset_path
from flowgrain.slices.scheme import Schemes
from flowgrain.slices.settings import load_settings, settings_of_image
from flowgrain.slices.sharing import Presence
from flowgrain.slices.store import Store

PRESET = preset_path("tiny-128")


def config(*overrides):
    return load_config(DecomposeConfig, PRESET, list(overrides))[0]


def photos(folder, count, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        path = folder / f"{'ab'[index % 2]}" / f"photo{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((200 + index % 40, 180), Image.Resampling.BICUBIC).save(path, compress_level=1)
        path.with_suffix(".txt").write_text(f"picture {index}")
    return folder


def data_of(out):
    """Every file of a data set that is data: not the report of the command, nor what is remembered of the sources."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith((".decompose/", "report.html"))}


names = st.lists(st.text("abc.-/", min_size=1, max_size=8), unique=True, min_size=1, max_size=300)


@given(names)
@settings(deadline=None)
def test_chunks_hold_every_name_once_in_order_and_never_part_a_stem(found):
    ordered = sorted(found, key=by_stem)
    chunks = list(cut_into_chunks(ordered))
    assert [name for chunk in chunks for name in chunk.names] == ordered
    stems = [{stem_of(name) for name in chunk.names} for chunk in chunks]
    assert all(a.isdisjoint(b) for i, a in enumerate(stems) for b in stems[i + 1 :])
    assert all(len(chunk.names) <= MOST or len({stem_of(n) for n in chunk.names}) == 1 for chunk in chunks)
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@given(st.integers(0, 999), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_an_image_more_changes_few_chunks(place, salt):
    before = [f"{index:05d}.png" for index in range(1000)]
    after = sorted([*before, f"{place:05d}x{salt}.png"], key=by_stem)
    old = {chunk.id: chunk.names for chunk in cut_into_chunks(before)}
    new = {chunk.id: chunk.names for chunk in cut_into_chunks(after)}
    changed = [key for key, members in new.items() if old.get(key) != members]
    assert len(changed) <= 4 and len(new) > 20


@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_worker_processes_give_the_same_files(tmp_path, layout):
    source = photos(tmp_path / "photos", 70)
    (source / "a" / "broken.png").write_bytes(b"no picture")
    settings = config(f"layout={layout}")
    decompose(source, tmp_path / "one", settings)
    counted = []
    options = RunOptions(WorkerProcesses(2))
    summary = decompose(source, tmp_path / "two", settings, lambda *args: counted.append(args), options)
    assert data_of(tmp_path / "one") == data_of(tmp_path / "two")
    assert summary.images == 71 == len(counted) and summary.rejects["", "unreadable"] == 1
    assert {done for _, done, _ in counted} == set(range(1, 72))
    assert decompose(source, tmp_path / "two", settings, None, options).unchanged == 71


def test_what_a_worker_cannot_load_stops_the_run_with_its_own_words(tmp_path):
    source = photos(tmp_path / "photos", 3)
    settings = config("levels.micro.detector=yolo-onnx:missing.onnx")
    for executor in (None, WorkerProcesses(2)):
        with pytest.raises(ModelError, match=r"missing\.onnx: no such file"):
            decompose(source, tmp_path / "out", settings, None, RunOptions(executor))


RUN = """
import sys
from pathlib import Path
from flowgrain.cli.main import main
main(["decompose", *sys.argv[1:]])
"""


def command(source, out, *more):
    return [sys.executable, "-c", RUN, str(source), "--out", str(out), "--preset", "tiny-128", *more]


def test_two_processes_share_one_output(tmp_path):
    source = photos(tmp_path / "photos", 90)
    out = tmp_path / "out"
    both = [subprocess.Popen(command(source, out, "--workers", "1"), stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all("from 90 images" in text for text in said)
    decompose(source, tmp_path / "whole", config())
    assert data_of(out) == data_of(tmp_path / "whole")
    assert not list((out / ".decompose" / "claims").iterdir()) and not list((out / ".decompose" / "workers").iterdir())


def test_another_job_in_the_same_folder_is_refused(tmp_path):
    store = Store(tmp_path / "out")
    with Presence(store.state, "one"):
        with Presence(store.state, "one"):
            pass
        with pytest.raises(DataError, match=r"out: process \d+ on .* is making another data set there"):
            Presence(store.state, "two").__enter__()
    with Presence(store.state, "two"):
        pass


def test_claims_of_the_dead_are_taken_over(tmp_path):
    state = Store(tmp_path / "out").state
    chunks = list(cut_into_chunks([f"{index}.png" for index in range(100)]))
    dead = Presence(state, "one")
    dead.__enter__()
    first = next(iter(dead.claimed(chunks)))
    dead._ended.set()
    (state / "workers" / dead._token).write_text(json.dumps({"host": "elsewhere", "process": 1, "digest": "one"}))
    os.utime(state / "workers" / dead._token, (time.time() - 600,) * 2)
    with Presence(state, "one") as alive:
        assert {chunk.id for chunk in alive.claimed(chunks)} == {chunk.id for chunk in chunks}
        assert (state / "claims" / first.id).read_text() == alive._token


def test_an_image_that_moves_to_another_chunk_keeps_its_files(tmp_path):
    source = photos(tmp_path / "photos", 80)
    out = tmp_path / "out"
    decompose(source, out, config())
    for path in sorted(source.rglob("photo*"))[10:40]:
        path.unlink()
    photos(source, 30, start=200)
    summary = decompose(source, out, config())
    decompose(source, tmp_path / "fresh", config())
    assert data_of(out) == data_of(tmp_path / "fresh")
    assert summary.removed == 15


class Exploding(Detector):
    kind = "grid"

    def detect(self, view):
        if "photo001" in view.name:
            raise DataError(f"{view.name}: its sidecar is wrong")
        return [Detection((0.0, 0.0, 100.0, 90.0), "part", 0.123456789)]


def test_one_image_with_a_bad_file_beside_it_is_rejected_alone(tmp_path):
    source = photos(tmp_path / "photos", 4)
    (source / "a" / "photo000.txt").write_bytes(b"\xff\xfe\xff")
    (source / "b" / "photo003.boxes.json").write_text("[{]")
    (source / "a" / "photo002.decompose.yaml").write_text("levels: {micro: {fraktion: 2}}")
    summary = decompose(source, tmp_path / "out", config("levels.micro.detector=[boxes, saliency]"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    reasons = {line["image"]: (line["code"], line["reason"]) for line in lines if line["level"] is None}
    assert reasons["a/photo000.png"] == (
        "bad_sidecar",
        "a/photo000.txt: caption is not UTF-8 (byte 0); save the file as UTF-8",
    )
    assert (
        reasons["b/photo003.png"][0] == "bad_sidecar"
        and "photo003.boxes.json:1: not valid JSON" in reasons["b/photo003.png"][1]
    )
    assert "fraktion" in reasons["a/photo002.png"][1] and summary.roots == 1
    assert summary.detectors["micro", "saliency"] == 1


def test_of_several_detectors_the_first_that_finds_something_counts(tmp_path):
    source = photos(tmp_path / "photos", 2)
    (source / "a" / "photo000.boxes.json").write_text('[{"box": [10, 10, 90, 90], "label": "micro", "score": 0.7}]')
    decompose(source, tmp_path / "out", config("levels.micro.detector=[boxes, saliency]"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    micro = {line["image"]: line for line in lines if line["level"] == "micro"}
    assert (micro["a/photo000.png"]["detector"], micro["a/photo000.png"]["label"]) == ("boxes", "micro")
    assert micro["b/photo001.png"]["detector"] == "saliency"


def test_a_detector_whose_boxes_are_all_too_small_leaves_the_next_a_chance(tmp_path):
    source = photos(tmp_path / "photos", 1)
    (source / "a" / "photo000.boxes.json").write_text('[{"box": [10, 10, 20, 20], "label": "micro"}]')
    decompose(source, tmp_path / "out", config("levels.micro.detector=[boxes, saliency]"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [line["detector"] for line in lines if line["level"] == "micro"] == ["saliency"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [line["code"] for line in rejects if line["detector"] == "boxes"] == ["min_side"]


def test_settings_of_single_images(tmp_path):
    source = photos(tmp_path / "photos", 3)
    (source / "a" / "photo000.decompose.yaml").write_text("levels: {micro: null}\neach_level: {max_downscale: 3}")
    settings = config("images={'b/*': {levels: {meso: {detector: grid}}}}", "images={'b/photo001*': {trigger: xyz}}")
    decompose(source, tmp_path / "out", settings)
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    by_image = {
        name: {line["level"]: line for line in lines if line["image"] == name}
        for name in ("a/photo000.png", "a/photo002.png", "b/photo001.png")
    }
    assert set(by_image["a/photo000.png"]) == {"macro", "meso"}
    assert by_image["a/photo000.png"]["macro"]["action"] == "native" != by_image["a/photo002.png"]["macro"]["action"]
    assert by_image["b/photo001.png"]["meso"]["detector"] == "grid"
    assert by_image["b/photo001.png"]["macro"]["caption"] == "picture 1, xyz"
    # an image's own settings are part of what decides whether it is done again
    (source / "a" / "photo000.decompose.yaml").unlink()
    assert decompose(source, tmp_path / "out", settings).unchanged == 2


def test_where_settings_come_from(tmp_path):
    source = photos(tmp_path / "photos", 2)
    (source / "decompose.yaml").write_text("each_level: {min_side: 40, max_upscale: 1.5}\ntrigger: from the folder\n")
    (source / "a" / "photo000.decompose.yaml").write_text("trigger: its own")
    settings, layered = load_settings(["tiny-128"], source, None, ["levels.meso.min_side=50"])
    assert [level.min_side for level in settings.levels.values()] == [40, 50, 40]
    # what the folder says of each level stands over what the preset says of micro
    assert [level.max_upscale for level in settings.levels.values()] == [1.5, 1.5, 1.5]
    assert layered.origins["levels.macro.min_side"].endswith("photos/decompose.yaml:1")
    printed = {key: origin for key, _, origin in describe_origins(settings, layered)}
    assert printed["levels.micro.min_side"].endswith("decompose.yaml:1")
    assert printed["levels.micro.min_score"] == "default"  # though the file touches the level
    only = load_settings([], None, None, ["each_level.min_side=20"])[0]
    assert [level.min_side for level in only.levels.values()] == [20, 20, 20]
    assert layered.origins["levels.meso.min_side"] == "command line"
    own, origins = settings_of_image(settings, layered, Folder(source), "a/photo000.png")
    assert own.trigger == "its own" and origins.origins["trigger"].endswith("photo000.decompose.yaml:1")
    assert settings_of_image(settings, layered, Folder(source), "b/photo001.png")[0] == settings
    (source / "a" / "photo000.decompose.yaml").write_text("layout: webdataset")
    with pytest.raises(ConfigError, match="layout: holds for the whole data set"):
        settings_of_image(settings, layered, Folder(source), "a/photo000.png")


def test_boxes_and_scores_are_rounded_before_decisions():
    settled = Detection((1.13, 2.374, 9.9, 8.0), "part", 0.123456789).settled("grid")
    assert (settled.box, settled.score, settled.detector) == ((1.25, 2.25, 10.0, 8.0), 0.1235, "grid")


def test_detectors_are_built_once_and_shared(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(GridConfig, "build", lambda self, context: built.append(context) or Exploding())
    schemes = Schemes(config("levels.micro.detector=grid"), DetectorContext(tmp_path, "", 1))
    assert schemes.of({}) is schemes.base and schemes.of({"trigger": "a"}) is schemes.of({"trigger": "a"})
    assert schemes.of({"trigger": "a"}).levels[2].detectors == schemes.base.levels[2].detectors and len(built) == 1
    assert isinstance(GridConfig(), DetectorConfig)


class Weighty(Exploding):
    def fingerprint(self):
        return "weights of 40 MB"


def test_what_is_known_of_weights_stands_in_for_them(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(GridConfig, "build", lambda self, context: built.append(context) or Weighty())
    settings, context = config("levels.micro.detector=grid"), DetectorContext(tmp_path, "", 1)
    full = Schemes(settings, context)
    assert len(built) == 1 and not full.weights().upscalers
    light = Schemes(settings, context, elsewhere=full.weights())
    assert len(built) == 1 and light.base.digest == full.base.digest
    (stand_in,) = light.base.levels[2].detectors
    assert (stand_in.kind, stand_in.batch_size) == ("grid", 1)
    with pytest.raises(RuntimeError, match="weights in another process"):
        stand_in.detect(View(Image.new("RGB", (8, 8)), (0.0, 0.0, 8.0, 8.0), Item(Folder(tmp_path), "fox.png")))
    assert light.base.levels[1].detectors[0].kind == "saliency"  # has none, and is built
