"""Where the models' original code keeps the layers that diffusers names otherwise.

kohya's sd-scripts and ComfyUI run the original code of SDXL, FLUX.1 and Stable Diffusion 3, hence name layers as that
does. The modulation before an output layer holds shift and scale there, scale and shift in diffusers: its halves swap.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A layer's place in the original code."""

    module: str
    """Dotted name of the module that holds its weight."""
    order: int = 0
    """Position among the layers that the module holds one under another."""
    halves_swapped: bool = False


Places = Callable[[str], Place | None]
"""diffusers' name of a layer -> its place, None for a layer that the original code does not have."""


def _fused(module: str, *layers: str) -> dict[str, Place]:
    return {layer: Place(module, order) for order, layer in enumerate(layers)}


_FLUX_BLOCKS = {
    "transformer_blocks": (
        "double_blocks",
        _fused("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v")
        | _fused("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
        | {
            "attn.to_out.0": Place("img_attn.proj"),
            "attn.to_add_out": Place("txt_attn.proj"),
            "ff.net.0.proj": Place("img_mlp.0"),
            "ff.net.2": Place("img_mlp.2"),
            "ff_context.net.0.proj": Place("txt_mlp.0"),
            "ff_context.net.2": Place("txt_mlp.2"),
            "norm1.linear": Place("img_mod.lin"),
            "norm1_context.linear": Place("txt_mod.lin"),
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        _fused("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        | {"proj_out": Place("linear2"), "norm.linear": Place("modulation.lin")},
    ),
}
_FLUX_REST = {
    "x_embedder": Place("img_in"),
    "context_embedder": Place("txt_in"),
    "time_text_embed.timestep_embedder.linear_1": Place("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": Place("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": Place("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": Place("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": Place("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": Place("guidance_in.out_layer"),
    "norm_out.linear": Place("final_layer.adaLN_modulation.1", halves_swapped=True),
    "proj_out": Place("final_layer.linear"),
}

_SD3_BLOCK = (
    _fused("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v")
    | _fused("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v")
    | _fused("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    | {
        "attn.to_out.0": Place("x_block.attn.proj"),
        "attn2.to_out.0": Place("x_block.attn2.proj"),
        "attn.to_add_out": Place("context_block.attn.proj"),
        "ff.net.0.proj": Place("x_block.mlp.fc1"),
        "ff.net.2": Place("x_block.mlp.fc2"),
        "ff_context.net.0.proj": Place("context_block.mlp.fc1"),
        "ff_context.net.2": Place("context_block.mlp.fc2"),
        "norm1.linear": Place("x_block.adaLN_modulation.1"),
        "norm1_context.linear": Place("context_block.adaLN_modulation.1"),
    }
)
_SD3_REST = {
    "pos_embed.proj": Place("x_embedder.proj"),
    "context_embedder": Place("context_embedder"),
    "time_text_embed.timestep_embedder.linear_1": Place("t_embedder.mlp.0"),
    "time_text_embed.timestep_embedder.linear_2": Place("t_embedder.mlp.2"),
    "time_text_embed.text_embedder.linear_1": Place("y_embedder.mlp.0"),
    "time_text_embed.text_embedder.linear_2": Place("y_embedder.mlp.2"),
    "norm_out.linear": Place("final_layer.adaLN_modulation.1", halves_swapped=True),
    "proj_out": Place("final_layer.linear"),
}

_UNET_REST = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_PART = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}


def flux_places() -> Places:
    """FLUX.1."""
    return lambda layer: _in_blocks(layer, _FLUX_BLOCKS, _FLUX_REST)


def sd3_places(layers: Iterable[str]) -> Places:
    """Stable Diffusion 3; the last block of the text ends in attention, so its modulation is one of an output layer."""
    indices = [int(layer.split(".")[1]) for layer in layers if layer.startswith("transformer_blocks.")]
    last = f"transformer_blocks.{max(indices)}.norm1_context.linear"

    def place(layer: str) -> Place | None:
        found = _in_blocks(layer, {"transformer_blocks": ("joint_blocks", _SD3_BLOCK)}, _SD3_REST)
        return Place(found.module, halves_swapped=True) if found is not None and layer == last else found

    return place


def sdxl_places(layers: Iterable[str]) -> Places:
    """SDXL: its original code numbers resnets, with the attention behind each, and resamplers in running order."""
    parts = [match for layer in layers if (match := _UNET_PART.fullmatch(layer))]
    there = {(match[1], int(match[2]), match[3], int(match[4])) for match in parts}
    numbers = _running_numbers(there)

    def place(layer: str) -> Place | None:
        if layer in _UNET_REST:
            return Place(_UNET_REST[layer])
        if layer.startswith("mid_block."):
            kind, index, rest = layer.removeprefix("mid_block.").split(".", 2)
            where = _MIDDLE.get(f"{kind}.{index}")
            return None if where is None else Place(f"{where}.{_RESNET.get(rest, rest)}")
        match = _UNET_PART.fullmatch(layer)
        if match is None:
            return None
        where = numbers[match[1], int(match[2]), match[3], int(match[4])]
        rest = _RESNET.get(match[5], match[5])
        return Place(f"{where}.{'op' if match[3] == 'downsamplers' else rest}")

    return place


def same_places() -> Places:
    """Layers under the names that diffusers gives them."""
    return Place


def _in_blocks(layer: str, blocks: dict[str, tuple[str, dict[str, Place]]], rest: dict[str, Place]) -> Place | None:
    stack, *inside = layer.split(".", 2)
    if stack not in blocks:
        return rest.get(layer)
    name, table = blocks[stack]
    found = table.get(inside[1])
    return None if found is None else Place(f"{name}.{inside[0]}.{found.module}", found.order)


def _running_numbers(there: set[tuple[str, int, str, int]]) -> dict[tuple[str, int, str, int], str]:
    """(stack, block, kind, index) -> ``input_blocks.N.M`` or ``output_blocks.N.M``."""
    numbers: dict[tuple[str, int, str, int], str] = {}
    for stack, name, number in (("down_blocks", "input_blocks", 1), ("up_blocks", "output_blocks", 0)):
        for block in sorted({entry[1] for entry in there if entry[0] == stack}):
            resnets = sorted(entry[3] for entry in there if entry[:3] == (stack, block, "resnets"))
            for index in resnets:
                numbers[stack, block, "resnets", index] = f"{name}.{number}.0"
                numbers[stack, block, "attentions", index] = f"{name}.{number}.1"
                number += 1
            if (stack, block, "downsamplers", 0) in there:
                numbers[stack, block, "downsamplers", 0] = f"{name}.{number}.0"
                number += 1
            if (stack, block, "upsamplers", 0) in there:  # behind the last resnet and its attention, in one entry
                behind = 2 if (stack, block, "attentions", resnets[-1]) in there else 1
                numbers[stack, block, "upsamplers", 0] = f"{name}.{number - 1}.{behind}"
    return numbers
