"""The presets on real photographs, the tuning mode, an upscaler and phrases: from the command line to the manifest."""

import json

import numpy as np
import pytest
from decompose_runs import leftovers
from PIL import Image
from tiny_detectors import save_grounding_dino

from flowgrain.cli.main import main
from flowgrain.slices.presets import preset_names

skimage_data = pytest.importorskip("skimage.data")
CAPTIONS = {
    "astronaut": "an astronaut in an orange suit",
    "coffee": "a cup of coffee on a saucer",
    "chelsea": "a tabby cat",
    "rocket": "a rocket on its launch pad",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of 400 pixels across."""
    folder = tmp_path_factory.mktemp("photos")
    for name, caption in CAPTIONS.items():
        image = Image.fromarray(getattr(skimage_data, name)()).convert("RGB")
        image.resize((400, round(400 * image.height / image.width)), Image.Resampling.LANCZOS).save(
            folder / f"{name}.png"
        )
        (folder / f"{name}.txt").write_text(caption)
    return folder


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["decompose", *map(str, arguments)])
    assert not ended.value.code


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("subject", preset_names("subjects"))
def test_every_subject_fills_its_levels_or_says_why(photos, tmp_path, capsys, subject):
    out = tmp_path / "out"
    run(photos, "--out", out, "--preset", subject, "--preset", "tiny-128")
    said = capsys.readouterr()
    records, rejects = lines(out / "manifest.jsonl"), lines(out / "rejects.jsonl")
    assert {r["image"] for r in records} == {f"{name}.png" for name in CAPTIONS}
    levels = json.loads((out / "dataset.json").read_text())["config"]["levels"]
    filled = {record["level"] for record in records}
    assert {"macro", "meso", "micro"} <= filled
    for level in set(levels) - filled:
        assert f"level '{level}' has no slice" in said.err and any(r["level"] == level for r in rejects)
    for record in records:
        picture = Image.open(out / record["path"])
        assert picture.size == (record["width"], record["height"]) and record["caption"]
        x0, y0, x1, y1 = record["crop"]
        assert 0 <= x0 < x1 <= 400 and 0 <= y0 < y1 <= 400, record
    # a finer level shows less of its picture than a coarser one
    area = {level: np.mean([_area(r["box"]) for r in records if r["level"] == level]) for level in filled}
    assert area["macro"] > area["meso"] > area["micro"]
    assert not leftovers(out) and (out / "report.html").is_file()


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def test_a_portrait_has_an_upper_body_a_head_and_two_eyes(photos, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    astronaut = Image.fromarray(skimage_data.astronaut())
    astronaut.resize((1024, 1024), Image.Resampling.LANCZOS).save(source / "astronaut.png")
    out = tmp_path / "out"
    settings = ("levels.eyes.targets.resolution=64", "levels.eyes.targets.step=16", "levels.eyes.min_side=16")
    run(source, "--out", out, "--preset", "portrait", "--preset", "tiny-128", *settings)
    found = {}
    for record in lines(out / "manifest.jsonl"):
        found.setdefault(record["level"], []).append([side / 2 for side in record["box"]])  # as of 512 x 512
        assert record["detector"] == ("whole_image" if record["level"] == "macro" else "people"), record
    (body,), (head,), eyes = found["meso"], found["micro"], sorted(found["eyes"])
    # by eye: the face is about 180..270 x 60..180, the pupils are at (202, 112) and (240, 110), the suit fills the rest
    assert body[0] < 150 and body[2] > 300 and body[3] > 330 and _area(body) < 512 * 512 * 0.95
    assert head[0] < 190 and head[2] > 255 and head[1] < 70 and 165 < head[3] < 260 and _area(head) < 200 * 220
    assert len(eyes) == 2
    for eye, pupil in zip(eyes, ((202, 112), (240, 110)), strict=True):
        assert eye[0] < pupil[0] < eye[2] and eye[1] < pupil[1] < eye[3] and _area(eye) < 60 * 60, eye
        assert head[0] <= eye[0] and eye[2] <= head[2] and head[1] <= eye[1] and eye[3] <= head[3]


def test_a_sample_writes_so_many_images_and_forecasts_the_rest(photos, tmp_path, capsys):
    out = tmp_path / "out"
    run(photos, "--out", out, "--preset", "tiny-128", "--sample", "2")
    said = capsys.readouterr().out
    images = {r["image"] for r in lines(out / "manifest.jsonl")}
    count = len(lines(out / "manifest.jsonl"))
    assert len(images) == 2 == len(list((out / "slices").iterdir()))
    assert f"forecast for all 4 images, from 2: about {2 * count} slices, " in said and " MB" in said
    slices = sum(path.stat().st_size for path in (out / "slices").rglob("*.png"))
    forecast = float(said.split(" of one process, ")[1].split(" MB")[0]) * 1e6
    assert 2 * slices <= forecast + 5e4 <= 2.1 * slices + 1e5
    run(photos, "--out", out, "--preset", "tiny-128", "--sample", "2")
    again = capsys.readouterr().out
    assert "2 images unchanged" in again and "time not measured again" in again
    run(photos, "--preset", "tiny-128", "--sample", "2", "--dry-run")
    assert "forecast for all 4 images, from 2" in capsys.readouterr().out


def test_an_upscaler_enlarges_what_is_too_small(photos, tmp_path):
    pytest.importorskip("ncnn")
    source = tmp_path / "source"
    source.mkdir()
    Image.open(photos / "chelsea.png").crop((120, 60, 210, 150)).save(source / "cat.png")
    out = tmp_path / "out"
    settings = ("upscaler=ncnn", "levels.meso=null", "levels.micro=null")
    run(source, "--out", out, "--preset", "tiny-128", *settings, "lanczos_max=1.25")
    (record,) = lines(out / "manifest.jsonl")
    assert record["action"] == "upscale" and record["upscaler"].startswith("ncnn ") and record["width"] == 128
    assert record["scale"] == pytest.approx(128 / 90, rel=1e-6)
    picture = Image.open(out / record["path"])
    plain = Image.open(source / "cat.png").resize((128, 128), Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(picture, float) - np.asarray(plain, float)).mean()
    assert 0.5 < difference < 25  # the same cat, not the same pixels


def test_phrases_find_slices_of_a_zero_shot_model(photos, tmp_path):
    model = save_grounding_dino(tmp_path / "model")
    keys = f"kind: zero-shot, model: {model}, phrases: [upper body, logo], text_threshold: 0.01, confidence: 0.01"
    level = f"levels.micro={{detector: {{{keys}}}, min_side: 8, max_upscale: 30, max_instances: 20, expand: 4}}"
    out = tmp_path / "out"
    settings = (level, "levels.meso=null", "lanczos_max=30", "targets=[[64, 64]]")
    run(photos, "--out", out, "--preset", "tiny-128", *settings)
    micro = [r for r in lines(out / "manifest.jsonl") if r["level"] == "micro"]
    assert micro and {r["detector"] for r in micro} == {"zero-shot"}
    assert {r["label"] for r in micro} <= {"upper body", "logo"}
