"""Taps of every family: where their features lie on the picture is known before any weight is loaded."""

import importlib

import pytest
import torch

from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family, load_skeleton
from flowgrain.train.tap_layout import tap_layouts

MADE = {
    "auraflow": "random_auraflow_pipeline",
    "flux": "random_pipeline",
    "flux2": "random_flux2_pipeline",
    "pixart": "random_sigma_pipeline",
    "qwen": "random_qwen_pipeline",
    "sd3": "random_sd3_pipeline",
    "unet": "random_sd15_pipeline",
    "z": "random_z_pipeline",
}


@pytest.mark.parametrize("name", MADE)
def test_the_layout_without_weights_is_that_of_a_forward_pass(name, tmp_path):
    """The last block of every stack; a picture that is not square."""
    pipeline = getattr(importlib.import_module(f"random_{name}"), MADE[name])()
    pipeline.save_pretrained(tmp_path / "model")
    family = load_family(str(tmp_path / "model"), None, torch.float32, torch.device("cpu"))
    stacks = {stack: len(getattr(family.backbone, stack)) for stack in family.block_stacks}
    taps = tuple(f"{stack}.{count - 1}" for stack, count in stacks.items() if count)
    layouts = tap_layouts(load_skeleton(str(tmp_path / "model"), None, torch.float32), taps)
    cells = family.capabilities.pixel_multiple // family.capabilities.latent_scale
    height, width = 4 * cells, 2 * cells
    latents = torch.randn(1, family.capabilities.latent_channels, height, width)
    conditioning = family.condition(ConditionInputs(None, family.embed_text(["a fox"]), 1.0))
    with torch.no_grad():
        found = family.predict(latents, torch.full((1, 1), 0.5), conditioning, taps).taps
    assert taps and found.keys() == set(taps)
    for tap, layout in layouts.items():
        places = (height // layout.cells) * (width // layout.cells)
        assert found[tap].shape == (1, places, layout.width), tap
