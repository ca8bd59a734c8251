"""Names and orders of rows, against diffusers' converters of whole checkpoints and of kohya's files.

Weights are compared by what they do to a few random inputs: W x for x of shape (in, 3), so that the published widths,
which diffusers' converters have built in, need no memory.
"""

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

from flowgrain.adapters.plan import Component
from flowgrain.adapters.source import LayerUpdate
from flowgrain.adapters.targets import adaptable_layers
from flowgrain.export.layout import placed_modules
from flowgrain.export.original_names import flux_places, sd3_places
from flowgrain.export.updates import under_one_another


def flux():
    """Published widths, one block of each kind, without values."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


def sd3():
    with torch.device("meta"):
        return SD3Transformer2DModel(
            num_layers=2, num_attention_heads=2, attention_head_dim=8, caption_projection_dim=16,
            joint_attention_dim=24, pooled_projection_dim=12, dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip


def probe(inputs):
    return torch.randn(inputs, 3, generator=torch.Generator().manual_seed(inputs))


def random_updates(model):
    """An update of rank 2 for every linear layer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: layer.weight.shape for name, layer in adaptable_layers(model).items() if layer.weight.ndim == 2}
    return {
        name: LayerUpdate(
            torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator), None, 3.0
        )
        for name, shape in shapes.items()
    }


def effect(update):
    return update.alpha / update.rank * (update.up @ (update.down @ probe(update.down.shape[1])))


def joined(modules, updates):
    for module in modules:
        if module.rows[0].layer in updates:
            parts = [updates[rows.layer] for rows in module.rows]
            cut = [
                LayerUpdate(u.down, u.up[r.start : r.stop], None, u.alpha)
                for u, r in zip(parts, module.rows, strict=True)
            ]
            yield module.name, under_one_another(cut, [r.stop - r.start for r in module.rows])[0]


class Checkpoint(dict):
    """A checkpoint whose biases and norms are zeros, whatever the converter asks for."""

    def pop(self, key, *default):
        return super().pop(key, *default) if key in self or default else torch.zeros(21504)


@pytest.mark.parametrize(
    ("model", "places", "convert"),
    [
        (flux, lambda layers: flux_places(), convert_flux_transformer_checkpoint_to_diffusers),
        (sd3, sd3_places, convert_sd3_transformer_checkpoint_to_diffusers),
    ],
    ids=["flux", "sd3"],
)
def test_original_places_are_those_of_whole_checkpoints(model, places, convert):
    model = model()
    updates = random_updates(model)
    modules = placed_modules(
        Component("transformer", model, False), places(list(adaptable_layers(model))), "", dotted=True
    )
    checkpoint = Checkpoint({f"{name}.weight": effect(update) for name, update in joined(modules, updates)})
    if "context_embedder.weight" in checkpoint:
        checkpoint["joint_blocks.0.x_block.attn2.ln_q.weight"] = torch.zeros(8)  # says which blocks attend twice
    converted = convert(checkpoint)
    for layer, update in updates.items():
        torch.testing.assert_close(converted[f"{layer}.weight"], effect(update), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "left_out", [(), ("proj_mlp",), ("attn.to_k", "attn.add_k_proj")], ids=["all", "no-mlp", "no-k"]
)
def test_diffusers_reads_our_kohya_flux_file(left_out):
    model = flux()
    known = ("transformer_blocks.", "single_transformer_blocks.")
    updates = {
        name: update
        for name, update in random_updates(model).items()
        if name.startswith(known) and not name.endswith(left_out)
    }
    rows = {name: layer.weight.shape[0] for name, layer in adaptable_layers(model).items()}
    state = {}
    for module in placed_modules(Component("transformer", model, False), flux_places(), "lora_unet_"):
        parts = [updates.get(part.layer) for part in module.rows]
        if any(parts):
            whole, _ = under_one_another(parts, [rows[part.layer] for part in module.rows])
            state[f"{module.name}.lora_down.weight"] = whole.down
            state[f"{module.name}.lora_up.weight"] = whole.up
            state[f"{module.name}.alpha"] = torch.tensor(whole.alpha)
    found = _convert_kohya_flux_lora_to_diffusers(state)
    for layer, update in updates.items():
        down, up = (found[f"transformer.{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(up @ (down @ probe(down.shape[1])), effect(update), rtol=1e-4, atol=1e-2)
