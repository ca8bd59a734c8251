"""Reconstructing folders: what is measured, resuming, quarantine, the sheet, and the command as a user meets it."""

import csv
import json

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from flowgrain.cli.reconstruct import reconstruct
from flowgrain.data.images import open_image, to_tensor
from flowgrain.errors import ConfigError, DataError, FlowgrainError, ModelError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.reconstruction.autoencoder import Autoencoder, DiffusersAutoencoder, load_vae, vae_multiple
from flowgrain.evaluate.reconstruction.folder import find_sources, reconstruct_folder
from flowgrain.evaluate.reconstruction.measure import PIXEL_SCORES
from flowgrain.evaluate.reconstruction.pictures import Preparation
from flowgrain.evaluate.reconstruction.session import ReconstructionPlan, arm_folders, compared_pairs, run
from flowgrain.evaluate.reconstruction.sheet import WINDOW, Example, reconstruction_sheet, worst_window
from flowgrain.evaluate.results import read_results
from flowgrain.families.registry import load_family, resolve_model

BOOTSTRAP = Bootstrap(resamples=100)


class Darken(Autoencoder):
    """Takes a constant off every pixel, and counts its calls."""

    pixel_multiple = 8

    def __init__(self, amount, fail_at=None):
        self.name = f"darken {amount}"
        self.version = self.name
        self.amount = amount
        self.fail_at = fail_at
        self.calls = 0

    def __call__(self, pixels, identity):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return (pixels - self.amount).clamp(-1, 1)


def picture(seed, width=48, height=40):
    return Image.fromarray(np.random.default_rng(seed).integers(60, 256, size=(height, width, 3)).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        picture(number).save(folder / f"{number}.png")
    picture(5, 61, 47).save(folder / "more" / "6.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    picture(7, 20, 20).save(folder / "tiny.png")
    return folder


def plan(photos, out, arms, **settings):
    given = {
        "sources": find_sources(photos),
        "preparation": Preparation(),
        "scores": PIXEL_SCORES,
        "ranked_by": PIXEL_SCORES[0],
        "encoder": None,
    }
    return ReconstructionPlan(arms={name: lambda a=a: a for name, a in arms.items()}, out=out, **(given | settings))


def silent(stage, done, total):
    pass


def test_a_folder_is_reconstructed_measured_and_written(photos, tmp_path):
    out = tmp_path / "out"
    stages = []
    arms = {"little": Darken(6 / 127.5), "much": Darken(24 / 127.5)}
    outcome = run(plan(photos, out, arms), lambda *stage: stages.append(stage), BOOTSTRAP)
    assert (outcome.done, outcome.kept) == (12, 0)
    table = read_results(out)
    assert table == outcome.table
    psnr = {result.arm: result.value for result in table.results if result.name == "PSNR"}
    # 6 and 24 of 255 levels
    assert psnr["little"] == pytest.approx(20 * np.log10(255 / 6), abs=0.02)
    assert psnr["much"] == pytest.approx(20 * np.log10(255 / 24), abs=0.02)
    assert {difference.ahead for difference in table.differences} == {"little"}
    with (out / "pictures.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["arm"], line["picture"]) for line in lines[:6]] == [
        ("little", name) for name in ("0.png", "1.png", "2.png", "3.png", "4.png", "more/6.jpg")
    ]
    assert np.mean([float(line["PSNR"]) for line in lines if line["arm"] == "much"]) == pytest.approx(psnr["much"])
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    names = [*(f"{number}.png" for number in range(5)), "more/6.jpg.png"]
    assert made == [*(f"{arm}/{name}" for arm in arms for name in names), "sheet.png"]
    assert stages[-1] == ("measuring", 12, 12) and ("much: reconstructing", 8, 8) in stages


def test_pictures_that_cannot_be_used_are_listed_with_reasons(photos, tmp_path):
    outcome = run(plan(photos, tmp_path / "out", {"a": Darken(0.1)}), silent, BOOTSTRAP)
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(photos / "broken.png"), str(photos / "tiny.png")]
    assert "20x20 pixels, at least 32 a side" in lines[1]["reason"] and str(photos) not in lines[1]["reason"]
    assert [path.name for path, _ in outcome.problems] == ["broken.png", "tiny.png"]
    assert {result.n for result in outcome.table.results} == {6}


def test_an_interrupted_run_goes_on_where_it_stopped(photos, tmp_path):
    sources, preparation = find_sources(photos), Preparation()
    whole = tmp_path / "whole"
    reconstruct_folder(Darken(0.1), sources, whole, preparation)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        reconstruct_folder(Darken(0.1, fail_at=3), sources, cut, preparation)
    rest = Darken(0.1)
    outcome = reconstruct_folder(rest, sources, cut, preparation)
    assert (outcome.done, outcome.kept, rest.calls) == (4, 2, 4)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.png"))
    assert len(files) == 6
    assert all((whole / file).read_bytes() == (cut / file).read_bytes() for file in files)


def test_a_changed_original_is_reconstructed_anew_and_another_setting_is_refused(photos, tmp_path):
    out, sources = tmp_path / "out", find_sources(photos)
    reconstruct_folder(Darken(0.1), sources, out, Preparation())
    picture(99).save(photos / "0.png")
    again = reconstruct_folder(Darken(0.1), sources, out, Preparation())
    assert (again.done, again.kept) == (1, 5)
    with pytest.raises(
        ConfigError, match=r"0\.png: was made otherwise \(autoencoder darken 0\.1 there, darken 0\.3 now\)"
    ):
        reconstruct_folder(Darken(0.3), sources, out, Preparation())
    with pytest.raises(ConfigError, match="preparation"):
        reconstruct_folder(Darken(0.1), sources, out, Preparation(size=32))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    picture(0).save(foreign / "0.png")
    with pytest.raises(ConfigError, match="no reconstruction of flowgrain"):
        reconstruct_folder(Darken(0.1), sources, foreign, Preparation())


def test_too_few_pictures_and_colliding_names(photos, tmp_path):
    with pytest.raises(DataError, match=r"2 usable pictures, at least 3"):
        run(plan(photos, tmp_path / "out", {"a": Darken(0.1)}, sources=find_sources(photos)[:2]), silent, BOOTSTRAP)
    picture(0).save(photos / "more" / "6.jpg.png")
    with pytest.raises(DataError, match=r"more/6\.jpg and more/6\.jpg\.png would share a name"):
        find_sources(photos)
    with pytest.raises(ConfigError, match="name them apart"):
        arm_folders(["a b", "a/b"], tmp_path)


def test_pairs_that_are_compared():
    assert compared_pairs(["a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert compared_pairs(list("abcde")) == [("a", other) for other in "bcde"]


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, (50, 43), (48, 40)),
        ({"multiple": 16}, (50, 43), (48, 32)),
        ({"size": 64}, (200, 100), (64, 64)),
        ({"size": 64}, (100, 333), (64, 64)),
        ({"max_pixels": 10_000}, (400, 100), (200, 48)),
        ({"max_pixels": 10_000}, (100, 100), (96, 96)),
    ],
)
def test_preparation(settings, size, expected):
    assert Preparation(**settings)(picture(0, *size)).size == expected


def test_preparation_crops_the_centre_and_keeps_pixels():
    original = picture(0, 50, 43)
    assert np.array_equal(np.array(Preparation()(original)), np.array(original)[1:41, 1:49])
    with pytest.raises(DataError, match="400x20 pixels, at least 32"):
        Preparation()(picture(0, 400, 20))


def test_the_window_of_the_sheet_finds_the_error():
    original = Image.new("RGB", (700, 500), "grey")
    marred = original.copy()
    marred.paste((255, 0, 0), (520, 330, 560, 360))
    left, top, right, bottom = worst_window(original, [original, marred])
    assert left <= 520 and right >= 560 and top <= 330 and bottom >= 360
    assert (right - left, bottom - top) == (WINDOW, WINDOW)
    small = picture(0)
    assert worst_window(small, [small]) == (0, 0, 48, 40)
    rows = [Example("a long name " * 9, original, [marred], ["PSNR 1\nLPIPS 2"])]
    sheet = reconstruction_sheet(["arm"], rows, rows, "PSNR")
    assert sheet.width > 3 * WINDOW and sheet.height > 2 * WINDOW
    assert any(pixel == (255, 0, 0) for _, pixel in sheet.getcolors(1 << 20))


@pytest.fixture(scope="module")
def vae():
    return load_vae(resolve_model("tiny-flux"), torch.float32, torch.device("cpu"))


def test_the_autoencoder_alone_is_the_one_of_the_family(vae, small_flux):
    pixels = to_tensor(picture(3, 64, 48))
    family = load_family(str(small_flux), None, torch.float32, torch.device("cpu"))
    posterior = family.encode_pixels(pixels[None])
    expected = family.decode(family.latents(posterior, torch.zeros_like(posterior.mean)))[0]
    ours = DiffusersAutoencoder("tiny", vae, "x")(pixels, "id")
    assert ours.shape == pixels.shape and ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_samples_of_the_posterior_depend_on_the_picture_alone(vae):
    pixels = to_tensor(picture(3, 32, 32))
    sampled = DiffusersAutoencoder("tiny", vae, "x", sample_seed=0)
    mean = DiffusersAutoencoder("tiny", vae, "x")
    assert torch.equal(sampled(pixels, "a"), sampled(pixels, "a"))
    assert not torch.equal(sampled(pixels, "a"), sampled(pixels, "b"))
    assert not torch.equal(sampled(pixels, "a"), mean(pixels, "a"))
    assert sampled.version != mean.version


def test_what_is_no_autoencoder_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for load in (lambda place: load_vae(place, torch.float32, torch.device("cpu")), vae_multiple):
        with pytest.raises(ModelError, match="no autoencoder can be loaded"):
            load(str(tmp_path / "empty"))
    assert vae_multiple(resolve_model("tiny-flux")) == 8


def test_a_picture_too_large_for_the_device_is_named(vae, monkeypatch):
    def full(*_args, **_keys):
        raise torch.OutOfMemoryError("CUDA out of memory")

    autoencoder = DiffusersAutoencoder("tiny", vae, "x")
    monkeypatch.setattr(vae, "decode", full)
    with pytest.raises(ModelError, match=r"tiny: no memory on cpu for a\.png \(40x32\); allow fewer pixels"):
        autoencoder(to_tensor(picture(0, 40, 32)), "a.png")


def test_a_result_that_is_not_finite_is_an_error():
    broken = load_vae(resolve_model("tiny-flux"), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        broken.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"reconstruction of a\.png is not finite"):
        DiffusersAutoencoder("tiny", broken, "x")(to_tensor(picture(0, 32, 32)), "a.png")


@pytest.fixture(scope="module")
def command():
    app = typer.Typer()
    app.command()(reconstruct)

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def test_the_command_compares_two_autoencoders(command, vae, photos, tmp_path):
    changed = load_vae(resolve_model("tiny-flux"), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        changed.decoder.conv_out.bias.add_(0.5)
    changed.save_pretrained(tmp_path / "vae")
    arguments = ["tiny-flux", f"brighter={tmp_path / 'vae'}", "--pictures", photos, "--out", tmp_path / "out"]
    arguments += ["--perceptual", "none", "--encoder", "none", "--limit", 6, "--size", 32]
    first = command(*arguments)
    assert first.exit_code == 0, first.output
    assert "10 reconstructed, 0 kept" in first.output and "ahead: tiny-flux" in first.output
    assert "pictures left out: 1" in first.output and "broken.png" in first.output
    table = read_results(tmp_path / "out")
    assert [d.ahead for d in table.differences if d.name == "PSNR"] == ["tiny-flux"]
    assert open_image(tmp_path / "out" / "brighter" / "0.png").size == (32, 32)
    second = command(*arguments)
    assert "0 reconstructed, 10 kept" in second.output
    assert read_results(tmp_path / "out") == table


def test_a_dry_run_writes_nothing(command, photos, tmp_path):
    done = command("tiny-flux", "--pictures", photos, "--out", tmp_path / "out", "--dry-run", "--perceptual", "none")
    assert done.exit_code == 0, done.output
    assert "8 pictures x 1 model (tiny-flux)" in done.output and not (tmp_path / "out").exists()


def test_stopping_the_command_says_how_to_go_on(command, photos, tmp_path, monkeypatch):
    def stopped(self, pixels, identity):
        raise KeyboardInterrupt

    monkeypatch.setattr(DiffusersAutoencoder, "__call__", stopped)
    arguments = ["--perceptual", "none", "--encoder", "none", "--out", tmp_path / "out"]
    done = command("tiny-flux", "--pictures", photos, *arguments)
    assert done.exit_code == 130 and "run the same command to go on" in done.output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tiny-flux", "--pictures", "nowhere"], ["nowhere", "no such folder"]),
        (["no/model/here", "--pictures", "{photos}"], ["no/model/here", "no autoencoder"]),
        (["tiny-flux", "tiny-flux", "--pictures", "{photos}"], ["two models are called 'tiny-flux'", "NAME=MODEL"]),
        (["tiny-flux", "--pictures", "{photos}", "--out", "{photos}/more/out"], ["--out", "lies in --pictures"]),
        (["=tiny-flux", "--pictures", "{photos}"], ["expected MODEL or NAME=MODEL"]),
        (["tiny-flux", "--pictures", "{photos}", "--size", "100"], ["--size 100", "multiple of 8", "96"]),
        (["tiny-flux", "--pictures", "{photos}", "--device", "tpu"], ["--device tpu"]),
        (["tiny-flux", "--pictures", "{photos}", "--perceptual", "lpips"], ["'lpips'", "st-lpips:vgg"]),
        (["tiny-flux", "--pictures", "{photos}", "--encoder", "incept"], ["unknown encoder 'incept'"]),
    ],
)
def test_mistakes_are_clear_errors(command, photos, arguments, parts):
    done = command(*(argument.format(photos=photos) for argument in arguments))
    assert isinstance(done.exception, FlowgrainError), done.output
    assert all(part in str(done.exception) for part in parts), str(done.exception)
    assert "\n" not in str(done.exception)
