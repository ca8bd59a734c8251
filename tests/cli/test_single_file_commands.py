"""A single safetensors file as the model: every command, from the command line."""

import json

import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from flowgrain.train.log import read_log

RECIPE = """
name: pony
model: {{path: {file}, config: {folder}}}
data: {{path: {photos}, resolution: 64}}
tuples: {{batch_size: 2}}
adapter: {{kind: lora, rank: 4, alpha: 2}}
optimizer: {{lr: 1.0e-2}}
precision: fp32
device: cpu
budget: {{amount: 2, checkpoints: [1.0]}}
"""


@pytest.fixture
def recipe(sdxl_files, photos, tmp_path):
    folder, file = sdxl_files
    path = tmp_path / "pony.yaml"
    path.write_text(RECIPE.format(file=file, folder=folder, photos=photos))
    (tmp_path / "prompts.txt").write_text("a square\n")
    return path


def picture(folder):
    (file,) = folder.rglob("*.png")
    return np.asarray(Image.open(file), np.int16)


def test_train_sample_and_export_a_single_file(command, recipe, sdxl_files, tmp_path):
    """The merged folder draws, without the adapter, what the run draws: the whole way round."""
    folder, file = sdxl_files
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert command("check", recipe).code == 0
    dry = command("train", recipe, "--dry-run")
    assert dry.code == 0 and "lora rank 4 on" in dry.out, dry.err
    trained = command("train", recipe, f"output={run}")
    assert trained.code == 0, trained.err
    size = ("--prompts", tmp_path / "prompts.txt", "--steps", 2, "--size", "64x64", "--device", "cpu")
    for source, name in (((run,), "adapted"), (("--model", file, "--model-config", folder), "base")):
        drawn = command("sample", *source, *size, "--out", tmp_path / name)
        assert drawn.code == 0 and "1 pictures drawn" in drawn.out, drawn.err
    exported = command("export", run, "--to", "merged", "--out", merged)
    assert exported.code == 0 and "saved too" in exported.out, exported.err
    assert isinstance(StableDiffusionXLPipeline.from_pretrained(merged), StableDiffusionXLPipeline)
    assert command("sample", "--model", merged, *size, "--out", tmp_path / "whole").code == 0
    base, adapted, whole = (picture(tmp_path / name) for name in ("base", "adapted", "whole"))
    assert np.abs(adapted - whole).max() <= 2 < np.abs(adapted - base).max()
    for to in ("kohya", "diffusers"):
        assert command("export", run, "--to", to, "--out", tmp_path / to).code == 0


def test_a_single_file_trains_as_its_folder_does(command, recipe, sdxl_files, tmp_path):
    folder, _ = sdxl_files
    losses = []
    for name, model in (("file", []), ("folder", [f"model={{path: {folder}, config: null}}"])):
        assert command("train", recipe, *model, f"output={tmp_path / name}").code == 0
        losses.append([entry["loss"] for entry in read_log(tmp_path / name) if "loss" in entry])
    assert losses[0] and losses[0] == losses[1]


def test_a_configuration_without_a_single_file_is_an_error(command, recipe, sdxl_files, photos, tmp_path):
    folder, _ = sdxl_files
    for arguments in (
        ("train", recipe, f"model.path={folder}", f"output={tmp_path / 'run'}"),
        ("train", recipe, f"model.path={folder}", "--dry-run"),
        ("check", photos, "--model", folder, "--model-config", folder),
    ):
        done = command(*arguments)
        assert done.code == 2 and "model.config describes single-file checkpoints" in done.err
    done = command("export", "anything", "--to", "kohya", "--model-config", folder)
    assert done.code == 2 and "--model-config describes a single file that --model names" in done.err


def test_check_counts_the_tokens_of_a_single_files_tokenizer(command, sdxl_files, tmp_path):
    folder, file = sdxl_files
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("word " * 40)
    done = command("check", tmp_path, "--model", file, "--model-config", folder, "--format", "json")
    kinds = [finding["kind"] for finding in json.loads(done.out)["findings"]]
    assert done.code == 0 and "caption_cut" in kinds, done.out


VELOCITY = "path={prediction: v_prediction, zero_terminal_snr: true}"


def test_an_adapter_that_changes_the_prediction_is_drawn_as_it_was_trained(command, recipe, sdxl_files, tmp_path):
    """With the run, with its checkpoint on the model, and merged: the same picture. Export says what a file lacks."""
    folder, _ = sdxl_files
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert command("train", recipe, VELOCITY, f"output={run}").code == 0
    checkpoint = run / "checkpoints" / "update-000002"
    size = ("--prompts", tmp_path / "prompts.txt", "--steps", 2, "--size", "64x64", "--device", "cpu")
    assert command("export", run, "--to", "merged", "--out", merged).code == 0
    sources = {
        "run": (run,),
        "checkpoint": ("--model", folder, "--checkpoint", checkpoint),
        "merged": ("--model", merged),
    }
    for name, source in sources.items():
        done = command("sample", *source, *size, "--out", tmp_path / f"from-{name}")
        assert done.code == 0, done.err
        assert ("drawn with prediction type v_prediction and zero terminal SNR" in done.err) == (name != "merged")
    of_run, of_checkpoint, of_merged = (picture(tmp_path / f"from-{name}") for name in sources)
    assert np.abs(of_run - of_checkpoint).max() <= 2 and np.abs(of_run - of_merged).max() <= 2
    plain = command("export", run, "--to", "kohya", "--out", tmp_path)
    assert plain.code == 0 and "note: trained with prediction type v_prediction and zero terminal SNR" in plain.err


def test_merging_such_an_adapter_into_a_folder_writes_its_scheduler(command, recipe, sdxl_files, tmp_path):
    folder, _ = sdxl_files
    run, merged = tmp_path / "run", tmp_path / "merged"
    model = f"model={{path: {folder}, config: null}}"
    assert command("train", recipe, VELOCITY, model, f"output={run}").code == 0
    done = command("export", run, "--to", "merged", "--out", merged)
    assert done.code == 0 and "copied" in done.out, done.err
    scheduler = StableDiffusionXLPipeline.from_pretrained(merged).scheduler.config
    assert scheduler.prediction_type == "v_prediction" and scheduler.rescale_betas_zero_snr
