"""Runs of a small random autoencoder on drawn pictures, for the tests of autoencoder fine-tuning."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from small_autoencoders import small_vae
from whole_runs import files, log_without_times

from flowgrain.train.state import complete_checkpoints
from flowgrain.train.vae_recipe import VaeRecipe

SIDE = 32
LOSSES = {
    "perceptual": {"weight": 0},
    "adversarial": {
        "weight": 0.05,
        "discriminator": {"layers": 1, "width": 4},
        "adaptive": {"numerator": "reconstruction"},
    },
    "gram": {"weight": 0.1},
    "moments": {"weight": 1.0},
}
GRAM = {"encoder": {"model": "mobilenet"}, "grid": {"edge": 4}, "head": {"kind": "conv"}}
PLAIN = {"perceptual": {"weight": 0}, "adversarial": {"weight": 0}, "gram": {"weight": 0}, "moments": {"weight": 0}}


def write_pictures(folder, count=6, side=SIDE):
    """Smooth random pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def write_model(folder, **options):
    small_vae(**options).save_pretrained(folder)
    return folder


def vae_values(pictures, folder, output, **sections):
    """A run of six updates in which all that can be is switched on."""
    values = {
        "name": "test",
        "output": str(output),
        "model": {"path": str(folder)},
        "data": {"path": str(pictures), "resolution": SIDE, "flip": True},
        "tuples": {"batch_size": 3, "grouping": "slice"},
        "losses": LOSSES,
        "gram": GRAM,
        "optimizer": {"lr": 1e-3},
        "discriminator_optimizer": {"lr": 1e-3},
        "ema": {"decay": 0.5},
        "precision": "fp32",
        "save_every": None,
        "budget": {"amount": 4, "checkpoints": [1.0, 1.5]},
    }
    return {**values, **sections}


def vae_recipe(pictures, folder, output, **sections):
    return VaeRecipe.model_validate(vae_values(pictures, folder, output, **sections))


def flat(value, prefix=""):
    """All leaves of nested maps and lists by dotted name."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in items for name, leaf in flat(item, f"{prefix}.{key}").items()}
    return {prefix: value}


def last_state(output):
    """Tensors, optimizers and the saved autoencoder of the last checkpoint."""
    folder = complete_checkpoints(output)[-1]
    optimizer = flat(torch.load(folder / "optimizer.pt", weights_only=True))
    saved = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return {**load_file(folder / "trainable.safetensors"), **optimizer, **{f"vae:{k}": v for k, v in saved.items()}}


def assert_same_vae_run(a, b):
    """Parameters, buffers, both optimizers, moving average, saved model, log and previews are bitwise equal."""
    left, right = last_state(a), last_state(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        assert same, name
    assert log_without_times(a) == log_without_times(b)
    assert files(a, "previews/*/*.png") == files(b, "previews/*/*.png")
    names = [folder.name for folder in complete_checkpoints(a)]
    assert names == [folder.name for folder in complete_checkpoints(b)]
