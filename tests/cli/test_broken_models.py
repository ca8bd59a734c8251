"""Broken and foreign checkpoints, from the command line: one clear line, exit code 2, and no pickle is ever opened."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def truncated(folder, file, place):
    (place / "short.safetensors").write_bytes(file.read_bytes()[:-1000])
    return place / "short.safetensors"


def without_a_weight(folder, file, place):
    state = load_file(file)
    del state["model.diffusion_model.time_embed.0.weight"]
    save_file(state, place / "holes.safetensors")
    return place / "holes.safetensors"


def an_adapter(folder, file, place):
    save_file({"lora_unet_mid_block.lora_down.weight": torch.zeros(4, 4)}, place / "style.safetensors")
    return place / "style.safetensors"


def another_architecture(folder, file, place):
    save_file({"blocks.0.attn.weight": torch.zeros(4, 4)}, place / "video.safetensors")
    return place / "video.safetensors"


def pickled(folder, file, place):
    path = place / "model.ckpt"
    path.write_bytes(pickle.dumps(Trap(place / "executed")))
    return path


def pickled_in_disguise(folder, file, place):
    path = place / "model.safetensors"
    torch.save({"state_dict": Trap(place / "executed")}, path)
    return path


def missing(folder, file, place):
    return place / "nothing.safetensors"


def an_empty_folder(folder, file, place):
    (place / "empty").mkdir()
    return place / "empty"


def copied(folder, place):
    return shutil.copytree(folder, place / "model")


def without_index(folder, file, place):
    model = copied(folder, place)
    (model / "model_index.json").unlink()
    return model


def without_a_weight_in_a_folder(folder, file, place):
    model = copied(folder, place)
    state = load_file(model / UNET)
    del state["time_embedding.linear_1.weight"]
    save_file(state, model / UNET, metadata={"format": "pt"})
    return model


def truncated_in_a_folder(folder, file, place):
    model = copied(folder, place)
    (model / UNET).write_bytes((model / UNET).read_bytes()[:-1000])
    return model


def pickled_in_a_folder(folder, file, place):
    model = copied(folder, place)
    (model / UNET).unlink()
    torch.save({"conv_in.weight": Trap(place / "executed")}, (model / UNET).with_suffix(".bin"))
    return model


def of_another_pipeline(folder, file, place):
    model = copied(folder, place)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableVideoDiffusionPipeline"}))
    return model


BY_NAMES = {
    truncated: "short.safetensors: is truncated or no safetensors file",
    an_adapter: "style.safetensors: is an adapter",
    another_architecture: "video.safetensors: .*no Stable Diffusion 1, 2 or XL in the original layout",
    pickled: "model.ckpt: a pickled checkpoint can run any code .* never read",
    pickled_in_disguise: "model.safetensors: a pickled checkpoint can run any code .* never read",
    missing: "nothing.safetensors: no such file",
    an_empty_folder: "empty: no model_index.json here",
    without_index: "model: no model_index.json here",
    of_another_pipeline: "pipeline class 'StableVideoDiffusionPipeline' is of no supported family",
}
"""What names, shapes and configuration files show: every command tells."""
BY_WEIGHTS = {
    without_a_weight: "holes.safetensors: does not fit the configuration .*weights of unet",
    without_a_weight_in_a_folder: "time_embedding.linear_1.weight",
    truncated_in_a_folder: "model: .*unet|model: .*cannot be (read|loaded)",
    pickled_in_a_folder: "model: .*safetensors",
}
"""What shows when weights are read."""
CASES = BY_NAMES | BY_WEIGHTS


@pytest.fixture
def arguments(photos, tmp_path):
    """The command line of a command, for a model and the configuration of a single file."""
    (tmp_path / "prompts.txt").write_text("a square\n")

    def build(name, model, config):
        described = [f"model.config={config}"] if model.suffix else []
        recipe = ["tiny-sdxl-baseline", f"model.path={model}", f"data.path={photos}", f"output={tmp_path / 'run'}"]
        option = ["--model-config", config] if model.suffix else []
        prompts = ["--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out", "--device", "cpu"]
        return {
            "train": ["train", *recipe, *described, "device=cpu"],
            "dry run": ["train", *recipe, *described, "--dry-run"],
            "check": ["check", *recipe, *described],
            "folder check": ["check", photos, "--model", model, *option],
            "sample": ["sample", "--model", model, *option, *prompts],
        }[name]

    return build


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, case) for name in ("train", "sample") for case in CASES),
        *((name, case) for name in ("dry run", "check", "folder check") for case in BY_NAMES),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_model_is_one_clear_line(command, arguments, sdxl_files, tmp_path, name, case):
    place = tmp_path / "place"
    place.mkdir()
    model = case(*sdxl_files, place)
    done = command(*arguments(name, model, sdxl_files[0]))
    assert done.code == 2, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("flowgrain: error:")]
    assert len(lines) == 1 and "Traceback" not in done.err, done.err
    assert str(place) in lines[0]
    assert re.search(CASES[case], lines[0]), lines[0]
    assert done.err.strip().splitlines()[-1] == lines[0]
    assert not (place / "executed").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_the_trap_works(tmp_path):
    """A pickle as these tests make it does run when it is opened."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()
