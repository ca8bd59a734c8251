"""``flowgrain check``: the arithmetic adds up, and planted problems are found with their files."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

sys.path.append(str(Path(__file__).parents[1] / "align"))  # the random vision models of the encoders' tests

from structure_models import dino, saved

from flowgrain.check.inspect import inspect_folder, inspect_recipe
from flowgrain.check.render import as_json, as_page, as_text, size
from flowgrain.cli.main import main
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import ModelConfig, Recipe


def silent(_what, _done, _total):
    """No progress."""


def picture(seed, size=(160, 128)):
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for index in range(6):
        picture(index).save(path / f"p{index}.png")
        (path / f"p{index}.txt").write_text(f"a pattern number {index}")
    return path


def kinds(inspection):
    return {finding.kind: finding for finding in inspection.findings}


def recipe(folder, **sections):
    values = {
        "name": "checked", "model": "tiny-flux", "data": {"path": str(folder), "resolution": 128},
        "tuples": {"grouping": "slice", "batch_size": 4}, "budget": {"amount": 6},
    }  # fmt: skip
    return Recipe.model_validate({**values, **sections})


def test_clean_data_has_facts_and_no_grave_finding(folder):
    inspection = inspect_recipe(recipe(folder), silent)
    assert inspection.worst() in (None, "note")
    counts, plan = inspection.arithmetic, inspection.schedule
    assert (counts.images, counts.roots, counts.slices, counts.quarantined) == (6, 6, 6, 0)
    assert (plan.units, plan.updates, plan.last_update_units, plan.dropped_slices) == (6, 2, 2, 0)
    assert plan.epochs == pytest.approx(6 * 1.5 / 2)  # 9 updates in all, 2 an epoch
    assert sum(row.slices for row in inspection.buckets) == counts.slices


def test_planted_problems_are_found_with_their_files(folder):
    (folder / "broken.png").write_bytes(b"not a picture")
    shutil.copy(folder / "p0.png", folder / "copy.png")
    (folder / "p1.txt").unlink()
    (folder / "p2.txt").write_text("word " * 60)
    picture(40, (40, 40)).save(folder / "small.png")
    picture(41, (800, 100)).save(folder / "wide.png")
    found = kinds(inspect_recipe(recipe(folder), silent))
    assert found["unreadable"].files == (str(folder / "broken.png"),)
    assert found["duplicate"].files == (str(folder / "copy.png"), str(folder / "p0.png"))
    assert str(folder / "p1.png") in found["caption_missing"].files
    assert "p2.png" in found["caption_cut"].files[0] and "24 tokens" in found["caption_cut"].message
    assert "small.png (40x40" in found["enlarged"].files[0]
    assert any("wide.png" in name for name in found["cropped"].files)


def test_leaks_between_training_and_held_out_pictures(folder, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(folder / "p3.png", held / "same.png")
    Image.open(folder / "p4.png").filter(ImageFilter.GaussianBlur(1)).save(held / "similar.png")
    picture(99).save(held / "other.png")
    found = kinds(inspect_recipe(recipe(folder, validation={"path": str(held)}), silent))
    assert found["leak"].files == (str(folder / "p3.png"), str(held / "same.png"))
    assert found["leak"].severity == "problem"
    assert found["near_leak"].files == (str(folder / "p4.png"), str(held / "similar.png"))


def test_a_held_out_share_adds_up_and_leaks_nothing(folder):
    inspection = inspect_recipe(recipe(folder, data={"path": str(folder), "resolution": 128, "holdout": 0.34},
                                       validation={}), silent)  # fmt: skip
    counts = inspection.arithmetic
    assert (counts.images, counts.held_out_images) == (4, 2)
    assert not {"leak", "near_leak"} & kinds(inspection).keys()


def test_bytes_of_checkpoints_and_captions_are_those_of_a_run(folder, tmp_path):
    config = recipe(folder, output=str(tmp_path / "run"), ema={}, budget={"amount": 1, "checkpoints": [1.0]},
                    data={"path": str(folder), "resolution": 128, "cache": str(tmp_path / "cache")})  # fmt: skip
    storage = inspect_recipe(config, silent).storage
    train(config, False, Observer())
    written = sum(file.stat().st_size for file in next((tmp_path / "run/checkpoints").iterdir()).rglob("*"))
    assert storage.checkpoint == pytest.approx(written, rel=0.05)  # headers and names come on top
    cached = sum(file.stat().st_size for file in (tmp_path / "cache").glob("embedding-*"))
    assert storage.embeddings == pytest.approx(cached, rel=0.1)


def test_settings_for_granularities_that_the_data_lacks(folder):
    config = recipe(folder, time={"granularity_shift": {"micro": -0.5, "meso": 0.0}}, tuples={"lambdas": {"meso": 2.0}})
    found = kinds(inspect_recipe(config, silent))
    assert found["unread_granularity"].message.startswith("time.granularity_shift.micro, tuples.lambdas.meso:")


def test_folder_check_needs_no_recipe(folder):
    inspection = inspect_folder(folder, ModelConfig(path="tiny-flux"), silent)
    assert inspection.schedule is not None and inspection.schedule.epochs is None
    assert inspection.storage.free > 0


def test_forms_say_the_same(folder):
    (folder / "broken<b>.png").write_bytes(b"not a picture")
    inspection = inspect_recipe(recipe(folder), silent)
    text, page = as_text(inspection), as_page(inspection).render()
    values = json.loads(as_json(inspection))
    assert values["arithmetic"]["quarantined"] == 1 and values["findings"][0]["kind"] == "unreadable"
    for words in ("6 pictures to train on", "broken"):
        assert words in text and words in page
    assert "broken<b>" not in page  # names of files are not trusted


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB")])
def test_sizes_in_units(count, text):
    assert size(count) == text


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["check", *map(str, arguments)])
    return stopped.value.code, capsys.readouterr()


def test_command_exits_with_2_on_problems_and_on_warnings_when_strict(folder, tmp_path, capsys):
    assert run(capsys, folder)[0] == 0
    (folder / "broken.png").write_bytes(b"not a picture")
    assert run(capsys, folder)[0] == 0
    assert run(capsys, folder, "--strict")[0] == 2
    code, _ = run(capsys, folder, "--format", "html", "--out", tmp_path / "check.html")
    assert code == 0 and "broken.png" in (tmp_path / "check.html").read_text()


def test_maps_of_features_are_drawn_beside_the_slices(folder, tmp_path, capsys):
    (tmp_path / "dino").mkdir()
    saved(dino("dinov2", 14), tmp_path / "dino")
    page = tmp_path / "check.html"
    assert run(capsys, folder, "--features", f"dino:{tmp_path}/dino", "--format", "html", "--out", page)[0] == 0
    text = page.read_text()
    assert "DINOv2" in text and "6 of 6 slices" in text
    assert text.count('alt="features of ') == 6
    assert len(set(re.findall(r'src="(data:image/webp[^"]+)" alt="features of', text))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder"], "neither a folder nor a recipe"),
        (["nosuchrecipe"], "no recipe 'nosuchrecipe'"),
        (["{folder}", "--format", "html"], "needs --out"),
        (["{folder}", "--features", "mobilenet"], "--features draws pictures: add --format html"),
        (["{folder}", "--features", "nobody", "--format", "html", "--out", "{folder}/x.html"], "unknown encoder"),
        (["{folder}", "data.flip=true"], "settings apply to a recipe"),
    ],
)
def test_wrong_use_is_one_clear_line(folder, capsys, arguments, message):
    code, output = run(capsys, *(argument.format(folder=folder) for argument in arguments))
    assert code == 2 and message in output.err
