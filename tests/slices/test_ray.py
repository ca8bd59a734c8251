"""A local Ray cluster gives the same bytes as this process does, and stops and goes on as it does."""

import builtins
import json
import os
import shutil

import pytest
from decompose_runs import QUICK, config, data_of, flowgrain, leftovers, photos
from PIL import Image, ImageDraw
from yolo_models import save_yolo

from flowgrain.data.collections import Folder
from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.chunks import cut_into_chunks
from flowgrain.slices.decompose import RunOptions, decompose
from flowgrain.slices.executors import make_executor
from flowgrain.slices.executors.local import InProcess
from flowgrain.slices.executors.ray import RayExecutor, start_cluster

ray = pytest.importorskip("ray")
MICRO = "levels.micro={detector: {kind: grid, columns: 1, rows: 1}, max_upscale: 9, min_side: 8}"
DEADLY = (173, 91)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One cluster for all tests; in its processes a picture of one size kills whoever decodes it."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(
        "import os, PIL.PngImagePlugin as png\n"
        "real = png.PngImageFile.load\n"
        f"png.PngImageFile.load = lambda self: os.abort() if self.size == {DEADLY} else real(self)\n"
    )
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{site}{os.pathsep}{before}"
    start_cluster(2)
    os.environ["PYTHONPATH"] = before
    yield RayExecutor(2)
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pictures of three chunks: rectangles on noise, one with settings of its own, one broken, one with a mask."""
    folder = photos(tmp_path_factory.mktemp("source") / "photos", 40, size=(240, 180))
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        picture = Image.open(path).convert("RGB").point(lambda value: value // 2 + 60)
        draw, left = ImageDraw.Draw(picture), 10 + index % 30
        draw.rectangle((left, 20, left + 90, 130), fill=("#ff0000", "#00ff00", "#0000ff")[index % 3])
        picture.save(path, compress_level=1)
    (folder / "a" / "photo004.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (folder / "a" / "photo006.decompose.yaml").write_text("levels: {micro: null}\ntrigger: its own\n")
    mask = Image.new("L", (248, 180))
    ImageDraw.Draw(mask).rectangle((0, 0, 140, 179), fill=255)
    mask.save(folder / "a" / "photo008.mask.png")
    return folder


@pytest.fixture(scope="module")
def yolo(tmp_path_factory):
    """Settings of a level whose detector looks at four pictures at once."""
    model = save_yolo(tmp_path_factory.mktemp("model") / "colours.onnx", batch=None)
    return f"{{kind: yolo-onnx, model: {model}, batch_size: 4}}"


def same(source, folder, settings, cluster):
    """The summaries of both executors, whose files are the same."""
    here = decompose(source, folder / "here", settings, None, RunOptions(InProcess()))
    seen = []
    there = decompose(source, folder / "there", settings, lambda *args: seen.append(args), RunOptions(cluster))
    assert data_of(folder / "here") == data_of(folder / "there") and not leftovers(folder / "there")
    assert here.counts() == there.counts() and {done for _, done, _ in seen} == set(range(1, there.images + 1))
    assert there.rejects["", "unreadable"] == 1 and there.slices >= 60
    return there


def test_a_batching_detector_in_folders_with_masks(tmp_path, source, yolo, cluster):
    settings = config(f"levels.micro.detector={yolo}", "levels.meso.detector=grid", "masks=file")
    there = same(source, tmp_path, settings, cluster)
    assert there.detectors["micro", "yolo-onnx"] > 30
    assert list((tmp_path / "there").rglob("*.mask.png"))


def test_regions_in_shards(tmp_path, source, yolo, cluster):
    settings = config("mode=pre_split", f"levels.macro.detector={yolo}", "levels.meso=null", MICRO, "layout=webdataset")
    there = same(source, tmp_path, settings, cluster)
    assert there.detectors["macro", "yolo-onnx"] > 20
    assert decompose(source, tmp_path / "there", settings, None, RunOptions(cluster)).unchanged == 40
    # of shards that this process wrote, the cluster does the changed ones alone
    shutil.copytree(source, tmp_path / "more")
    photos(tmp_path / "more", 1, start=90)
    decompose(tmp_path / "more", tmp_path / "here", settings, None, RunOptions(InProcess()))
    more = decompose(tmp_path / "more", tmp_path / "there", settings, None, RunOptions(cluster))
    assert data_of(tmp_path / "here") == data_of(tmp_path / "there") and 0 < more.unchanged < 41


class Enough(Exception):
    pass


def test_a_driver_that_is_stopped_goes_on(tmp_path, source, cluster):
    settings = config(*QUICK)

    first, *_ = cut_into_chunks(Folder(source).names())

    def stop(name, done, total):
        if done > len(first.names):
            raise Enough

    with pytest.raises(Enough):
        decompose(source, tmp_path / "out", settings, stop, RunOptions(cluster))
    summary = decompose(source, tmp_path / "out", settings, None, RunOptions(cluster))
    decompose(source, tmp_path / "whole", settings, None, RunOptions(InProcess()))
    assert data_of(tmp_path / "out") == data_of(tmp_path / "whole") and not leftovers(tmp_path / "out")
    assert summary.unchanged == len(first.names) < 40


def test_an_error_of_a_stage_arrives_as_itself(tmp_path, source, cluster):
    (tmp_path / "damaged.onnx").write_bytes(b"no network")
    for name, words in (("missing", "no such file"), ("damaged", "")):
        settings = config(f"levels.micro.detector=yolo-onnx:{tmp_path / name}.onnx")
        with pytest.raises(ModelError, match=rf"{name}\.onnx: .*{words}"):
            decompose(source, tmp_path / "out", settings, None, RunOptions(cluster))


@pytest.mark.slow
def test_a_picture_that_kills_its_process_is_left_out(tmp_path, cluster):
    source = photos(tmp_path / "photos", 4)
    settings = config(*QUICK)
    decompose(source, tmp_path / "without", settings, None, RunOptions(InProcess()))
    shutil.copy(photos(tmp_path / "deadly", 1, size=DEADLY) / "a" / "photo000.png", source / "a" / "photo002x.png")
    summary = decompose(source, tmp_path / "out", settings, None, RunOptions(cluster))
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["level"] is None)
    assert (line["image"], line["code"]) == ("a/photo002x.png", "crashed") and "died, twice" in line["reason"]
    files = [data_of(tmp_path / name) for name in ("without", "out")]
    slices = [{name: data for name, data in each.items() if name.startswith("slices/")} for each in files]
    assert slices[0] == slices[1] and summary.images == 5 and not leftovers(tmp_path / "out")


def test_from_the_command_line(tmp_path, cluster):
    source = photos(tmp_path / "photos", 4)
    common = (source, "--preset", "tiny-128", *QUICK)
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    said, noise = flowgrain("decompose", *common, "--out", tmp_path / "there", "--executor", "ray", **address)
    assert "of 4 roots from 4 images" in said and not noise
    decompose(source, tmp_path / "here", config(*QUICK), None, RunOptions(InProcess()))
    assert data_of(tmp_path / "here") == data_of(tmp_path / "there")


def test_without_ray_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def guarded(name, *rest, **more):
        if name.startswith("ray"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", guarded)
    with pytest.raises(MissingExtraError, match=r"--executor ray needs ray, .*: pip install 'flowgrain\[ray\]'"):
        make_executor("ray", None)
