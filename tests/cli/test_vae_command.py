"""``flowgrain vae`` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

# random autoencoders and recipes over them
sys.path += [str(Path(__file__).parents[1] / "vae"), str(Path(__file__).parents[1] / "train")]

from vae_runs import LOSSES, PLAIN, vae_values, write_model, write_pictures

from flowgrain.train.log import read_log
from flowgrain.train.state import complete_checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    write_pictures(folder / "pictures")
    write_model(folder / "model")
    return folder


@pytest.fixture
def recipe(place, tmp_path):
    def build(**sections):
        values = vae_values(place / "pictures", place / "model", tmp_path / "run", **sections)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return build


def test_help_has_an_example(command):
    done = command("vae", "--help")
    assert done.code == 0 and "flowgrain vae tiny-vae data.path=photos" in done.out


def test_validate_print_and_dry_run_compute_nothing(command, recipe, tmp_path):
    path = recipe(model={"path": "nowhere"})
    done = command("vae", path, "--validate-only")
    assert (done.code, done.out) == (0, "recipe 'test' is valid\n")
    done = command("vae", path, "losses.gram.weight=0.25", "--print-config")
    assert "losses.gram.weight = 0.25    # command line" in done.out and "losses.kl = 0.0    # default" in done.out
    done = command("vae", recipe(), "model.doublings=1", "--dry-run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "encoder and decoder of" in lines[0] and "f4 (1 doublings), fp32 on cpu" in lines[0]
    losses = "losses: reconstruction (l2) 1 + adversarial 0.05 + gram 0.1 + moments 1 + scale 1"
    assert "data: 6 pictures" in lines and losses in lines
    assert any(line.startswith("gram: mobilenet on 4 x 4, head of") for line in lines)
    assert any(line.startswith("memory:") for line in lines)
    assert not (tmp_path / "run").exists()


def test_mistakes_get_one_line_and_exit_code_2(command, recipe):
    for overrides, part in (
        (["model.path=nowhere/at/all"], "model.path nowhere/at/all: no autoencoder here"),
        (["losses.gramm.weight=1"], "did you mean 'gram'?"),
        (["gram.encoder.model=dino:nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["losses.perceptual.weight=1", "losses.perceptual.network=lpips-vgg:vgg.pth"], "vgg.pth"),
        (["data.path=missing"], "missing"),
    ):
        done = command("vae", recipe(), *overrides)
        assert done.code == 2, (overrides, done.err)
        assert part in done.err and "Traceback" not in done.err, done.err
        assert len([line for line in done.err.splitlines() if line.startswith("flowgrain: error:")]) == 1


def test_a_run_is_reconstructed_and_told_by_status(command, recipe, place, tmp_path):
    path = recipe()
    done = command("vae", path)
    assert done.code == 0, done.err
    assert "test: 6 updates, 18 slices" in done.out and str(tmp_path / "run" / "vae") in done.out
    again = command("vae", path)
    assert again.code == 2 and "already holds a run: add --resume" in again.err
    state = json.loads(command("status", tmp_path / "run", "--json").out)
    assert (state["state"], state["update"]) == ("finished", 6)
    arms = [f"before={place / 'model'}", f"after={tmp_path / 'run'}"]
    options = [
        "--pictures",
        place / "pictures",
        "--out",
        tmp_path / "lost",
        "--perceptual",
        "none",
        "--encoder",
        "none",
    ]
    done = command("reconstruct", *arms, *options)
    assert done.code == 0, done.err
    assert "PSNR" in done.out and "after" in done.out


def test_a_collapse_is_one_line_and_exit_code_3(command, recipe, tmp_path):
    """A rate so large that the output leaves the range and is one colour after clipping."""
    losses = {**PLAIN, "collapse": {"patience": 3, "ratio": 0.9}}
    done = command("vae", recipe(losses=losses, gram=None, clip=None, optimizer={"lr": 3.0}, ema=None,
                                 budget={"amount": 50, "checkpoints": [1.0]}))  # fmt: skip
    assert done.code == 3, (done.code, done.err)
    errors = [line for line in done.err.splitlines() if "flowgrain: error:" in line]
    assert len(errors) == 1 and "the autoencoder's output is constant" in errors[0] and "Traceback" not in done.err
    assert "collapsed" in (tmp_path / "run" / "run.json").read_text()
    assert "had become constant" in command("status", tmp_path / "run").out


def test_ctrl_c_saves_and_exits_with_130(recipe, tmp_path):
    path = recipe(losses={**PLAIN, "gram": LOSSES["gram"]}, budget={"amount": 100000, "checkpoints": [1.0]})
    run = tmp_path / "run"
    command = [sys.executable, "-m", "flowgrain", "vae", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 180
    while not read_log(run) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "run the same command with --resume" in errors
    (checkpoint,) = complete_checkpoints(run)
    assert json.loads((checkpoint / "state.json").read_text())["update"] == read_log(run)[-1]["update"]
