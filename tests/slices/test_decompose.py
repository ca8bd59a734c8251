"""A folder in, a data set out: promises about repeats, crashes, changes, and what users get wrong."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flowgrain import files
from flowgrain.config import load_config
from flowgrain.data.records import SliceRecord
from flowgrain.errors import DataError
from flowgrain.slices import outputs
from flowgrain.slices import store as store_module
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose, survey
from flowgrain.slices.presets import preset_path


def config(*overrides):
    return load_config(DecomposeConfig, preset_path("tiny-128"), list(overrides))[0]


def picture(seed, size=(256, 256)):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.uniform(0.2, 0.7, 2) * size
        draw.ellipse((x, y, x + 50, y + 40), fill=tuple(int(v) for v in rng.integers(0, 256, 3)), outline="black")
    return image


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "photos"
    for index, name in enumerate(("fox.png", "owl.png", "sub/fox.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(path)
        path.with_suffix(".txt").write_text(f"a {path.stem}, emo style")
    return folder


def manifest(out):
    return [SliceRecord.model_validate_json(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def rejects(out):
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]


def snapshot(out):
    """Every file but what the file system said of the sources, which is none of the data."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(".decompose/source")}


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_levels_captions_parents_and_pixels(source, tmp_path):
    summary = decompose(source, tmp_path / "out", config())
    records = manifest(tmp_path / "out")
    assert summary.slices_by_level == {"macro": 3, "meso": 3, "micro": 3} and summary.levels_per_root == {3: 3}
    assert len({record.root for record in records}) == 3  # fox.png and sub/fox.png are two roots
    first = {record.level: record for record in records[:3]}
    assert [first[level].caption for level in ("macro", "meso", "micro")] == [
        "a fox, emo style",
        "close-up of a fox, emo style",
        "extreme close-up of a fox, emo style",
    ]
    assert first["macro"].parent is None and first["meso"].parent == first["macro"].slice_id
    original = Image.open(source / "fox.png")
    for record in first.values():
        pixels = Image.open(tmp_path / "out" / record.path)
        assert pixels.size == (record.width, record.height)
        expected = original.resize(pixels.size, Image.Resampling.LANCZOS, record.crop)
        assert np.array_equal(np.asarray(pixels), np.asarray(expected))
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["fingerprint"] == summary.fingerprint and about["counts"]["slices"] == 9
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 400


def test_native_slices_are_the_source_pixels(source, tmp_path):
    picture(9, (140, 130)).save(source / "near.png")
    decompose(source, tmp_path / "out", config())
    (record,) = [r for r in manifest(tmp_path / "out") if r.image == "near.png" and r.level == "macro"]
    assert (record.action, record.scale) == ("native", 1.0)
    expected = Image.open(source / "near.png").crop(record.crop)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / record.path)), np.asarray(expected))


def test_a_second_run_touches_nothing(source, tmp_path):
    decompose(source, tmp_path / "out", config())
    before = stamps(tmp_path / "out")
    assert decompose(source, tmp_path / "out", config()).unchanged == 3
    assert stamps(tmp_path / "out") == before


@pytest.mark.parametrize("writes", [0, 1, 2, 5, 9])
def test_killed_and_run_again_equals_uninterrupted(source, tmp_path, monkeypatch, writes):
    decompose(source, tmp_path / "whole", config())
    left = [writes]

    def dying(path, data, real=files.atomic_write_bytes):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "replace_bytes", dying)
        patch.setattr(store_module, "atomic_write_text", lambda path, text: dying(path, text.encode()))
        with pytest.raises(KeyboardInterrupt):
            decompose(source, tmp_path / "out", config())
    # a different configuration in between must leave no file behind either
    decompose(source, tmp_path / "out", config("levels.micro=null", "image_format=webp"))
    decompose(source, tmp_path / "out", config())
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_added_changed_and_removed_sources(source, tmp_path):
    decompose(source, tmp_path / "out", config())
    before = stamps(tmp_path / "out" / "slices")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "slices" / "mine.txt").write_text("mine")
    (source / "owl.png").unlink()
    picture(7).save(source / "fox.png")
    picture(8).save(source / "cat.png")
    summary = decompose(source, tmp_path / "out", config())
    assert (summary.unchanged, summary.removed) == (1, 1)
    assert {record.image for record in manifest(tmp_path / "out")} == {"cat.png", "fox.png", "sub/fox.png"}
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "slices").rglob("*.png")}
    assert files == {record.path for record in manifest(tmp_path / "out")}
    assert (tmp_path / "out" / "notes.txt").exists() and (tmp_path / "out" / "slices" / "mine.txt").exists()
    after = stamps(tmp_path / "out" / "slices")
    assert sum(after.get(path) == stamp for path, stamp in before.items()) == 3


def test_a_changed_caption_or_a_lost_slice_is_done_again(source, tmp_path):
    decompose(source, tmp_path / "out", config())
    (source / "owl.txt").write_text("an owl")
    (tmp_path / "out" / manifest(tmp_path / "out")[0].path).unlink()
    assert decompose(source, tmp_path / "out", config()).unchanged == 1
    records = manifest(tmp_path / "out")
    assert [r.caption for r in records if r.image == "owl.png" and r.level == "meso"] == ["close-up of an owl"]
    assert all((tmp_path / "out" / record.path).exists() for record in records)


def test_same_stem_and_bytes_are_one_root_whoever_comes_first(source, tmp_path):
    shutil.copy(source / "owl.png", source / "owl.webp")
    decompose(source, tmp_path / "out", config())
    (reject,) = [item for item in rejects(tmp_path / "out") if item["code"] == "duplicate_root"]
    assert (reject["image"], reject["reason"]) == ("owl.webp", "same stem and bytes as owl.png")
    shutil.copy(source / "owl.png", source / "owl.bmp")  # sorts before, takes the root over
    decompose(source, tmp_path / "out", config())
    records = manifest(tmp_path / "out")
    assert "owl.bmp" in {record.image for record in records} and len(records) == 9
    assert all((tmp_path / "out" / record.path).exists() for record in records)


def test_pre_split_gives_a_root_a_box_in_reading_order(source, tmp_path):
    boxes = [
        {"box": [130, 0, 256, 256], "label": "person", "score": 0.9},
        {"box": [0, 0, 128, 256], "label": "person", "score": 0.5},
        {"box": [140, 20, 200, 80], "label": "face", "caption": "her face"},
    ]
    (source / "owl.boxes.json").write_text(json.dumps(boxes))
    (source / "owl.p0.macro0.txt").write_text("the one on the left")
    settings = config(
        "mode=pre_split",
        "levels={macro: {granularity: macro, detector: {kind: boxes, labels: [person]}, max_instances: 4}, meso: null,"
        " micro: {detector: null}}",
        "levels={micro: {detector: {kind: boxes, labels: [face]}, max_upscale: 3.0}}",
        "lanczos_max=3",
    )
    decompose(source, tmp_path / "out", settings)
    owl = [record for record in manifest(tmp_path / "out") if record.image == "owl.png"]
    assert [record.slice_id.partition("/")[2] for record in owl] == ["p0/macro0", "p1/macro0", "p1/micro0"]
    assert [record.box[0] for record in owl] == [0.0, 130.0, 140.0]
    assert [record.caption for record in owl] == ["the one on the left", "a owl, emo style", "her face"]
    assert [record.caption_source for record in owl] == ["sidecar", "root", "sidecar"]
    assert owl[2].parent == owl[1].slice_id
    # an image without a region is one region
    assert [r.root.endswith("/p0") for r in manifest(tmp_path / "out") if r.image == "fox.png"] == [True]
    skipping = settings.model_copy(update={"no_region": "skip"})
    assert survey(source, skipping).levels_per_root == {1: 1, 2: 1}


def test_macro_is_framed_on_the_finer_boxes(source, tmp_path):
    Image.new("RGB", (600, 150), "grey").save(source / "wide.png")
    (source / "wide.boxes.json").write_text(json.dumps([{"box": [400, 20, 500, 120], "label": "micro"}]))
    settings = config("levels.meso=null", "levels.micro.detector=boxes", "targets=[[128, 128]]")
    decompose(source, tmp_path / "out", settings)
    (macro,) = [r for r in manifest(tmp_path / "out") if r.image == "wide.png" and r.level == "macro"]
    assert macro.crop == (375.0, 0.0, 525.0, 150.0)


def test_one_broken_image_goes_to_the_rejects(source, tmp_path):
    (source / "bad.png").write_bytes((source / "fox.png").read_bytes()[:500])
    summary = decompose(source, tmp_path / "out", config())
    assert summary.rejects["", "unreadable"] == 1 and summary.slices == 9
    (reject,) = [item for item in rejects(tmp_path / "out") if item["code"] == "unreadable"]
    assert reject["image"] == "bad.png" and reject["reason"].startswith("damaged or truncated image")
    assert decompose(source, tmp_path / "out", config()).unchanged == 4


def test_survey_counts_what_decompose_does(source, tmp_path):
    assert survey(source, config()).counts() == decompose(source, tmp_path / "out", config()).counts()


def test_errors_of_users(source, tmp_path):
    for path in source.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of its 3 images can be read; fox\.png: not an image"):
        decompose(source, tmp_path / "out", config())
    with pytest.raises(DataError, match="lies in the source folder"):
        decompose(source, source / "out", config())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="full: not empty"):
        decompose(source, tmp_path / "full", config())


def test_images_too_small_for_the_targets(source, tmp_path):
    flux = load_config(DecomposeConfig, preset_path("flux-1024"), [])[0]
    with pytest.raises(
        DataError, match=r"none of its 3 images gives a slice; .*needs x.*max_upscale 2.*Choose a preset"
    ):
        decompose(source, tmp_path / "out", flux)
