"""Stable Diffusion pipelines in the names of the original code (CompVis, SGM, OpenCLIP): the layout of single files.

Written from the original modules' own names, apart from diffusers' converters, so that a test compares two things.
"""

import re
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def original_sdxl(pipeline: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    return {
        **dict(unet_weights(pipeline.unet)),
        **dict(vae_weights(pipeline.vae)),
        **dict(clip_weights(pipeline.text_encoder, "conditioner.embedders.0.transformer.")),
        **dict(open_clip_weights(pipeline.text_encoder_2, "conditioner.embedders.1.model.")),
    }


def original_sd15(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    return {
        **dict(unet_weights(pipeline.unet)),
        **dict(vae_weights(pipeline.vae)),
        **dict(clip_weights(pipeline.text_encoder, "cond_stage_model.transformer.")),
    }


def original_sd21(pipeline: StableDiffusionPipeline) -> dict[str, Tensor]:
    return {
        **dict(unet_weights(pipeline.unet)),
        **dict(vae_weights(pipeline.vae)),
        **dict(open_clip_weights(pipeline.text_encoder, "cond_stage_model.model.")),
    }


def unet_weights(unet: UNet2DConditionModel) -> Iterator[tuple[str, Tensor]]:
    rows = unet.config.layers_per_block + 1
    places = dict(UNET_ENDS)
    for index in range(len(unet.down_blocks)):
        first = 1 + index * rows
        for layer in range(rows - 1):
            places[f"down_blocks.{index}.resnets.{layer}"] = f"input_blocks.{first + layer}.0"
            places[f"down_blocks.{index}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        places[f"down_blocks.{index}.downsamplers.0.conv"] = f"input_blocks.{first + rows - 1}.0.op"
    for index, block in enumerate(unet.up_blocks):
        for layer in range(rows):
            places[f"up_blocks.{index}.resnets.{layer}"] = f"output_blocks.{index * rows + layer}.0"
            places[f"up_blocks.{index}.attentions.{layer}"] = f"output_blocks.{index * rows + layer}.1"
        after = 2 if "CrossAttn" in type(block).__name__ else 1
        places[f"up_blocks.{index}.upsamplers.0.conv"] = f"output_blocks.{(index + 1) * rows - 1}.{after}.conv"
    for name, tensor in unet.state_dict().items():
        place, rest = _placed(name, places)
        if ".resnets." in name:
            inner, ending = rest.rsplit(".", 1)
            rest = f"{RESNET[inner]}.{ending}"
        yield f"model.diffusion_model.{place}.{rest}", tensor


def vae_weights(vae: AutoencoderKL) -> Iterator[tuple[str, Tensor]]:
    last = len(vae.config.block_out_channels) - 1
    for name, tensor in vae.state_dict().items():
        original = re.sub(r"encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
        original = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", original)
        original = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", original)
        original = original.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
        original = original.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        original = original.replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in original:
            before, inner = original.split("mid_block.attentions.0.")
            layer, ending = inner.rsplit(".", 1)
            original = f"{before}mid.attn_1.{VAE_ATTENTION[layer]}.{ending}"
            if layer != "group_norm" and ending == "weight":
                tensor = tensor[:, :, None, None]  # 1x1 convolutions there, linear layers here
        yield f"first_stage_model.{original}", tensor


def clip_weights(encoder: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in encoder.state_dict().items():
        yield f"{prefix}text_model.{name.removeprefix('text_model.')}", tensor
    length = encoder.config.max_position_embeddings
    yield f"{prefix}text_model.embeddings.position_ids", torch.arange(length)[None]


def open_clip_weights(encoder: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    yield f"{prefix}token_embedding.weight", state["embeddings.token_embedding.weight"]
    yield f"{prefix}positional_embedding", state["embeddings.position_embedding.weight"]
    yield f"{prefix}ln_final.weight", state["final_layer_norm.weight"]
    yield f"{prefix}ln_final.bias", state["final_layer_norm.bias"]
    yield f"{prefix}logit_scale", torch.tensor(4.6)
    if "text_projection.weight" in state:
        yield f"{prefix}text_projection", state["text_projection.weight"].T.contiguous()
    for layer in range(encoder.config.num_hidden_layers):
        here, there = f"encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
        for ending in ("weight", "bias"):
            joint = torch.cat([state[f"{here}self_attn.{part}_proj.{ending}"] for part in "qkv"])
            yield f"{there}attn.in_proj_{ending}", joint
            for name, original in OPEN_CLIP.items():
                yield f"{there}{original}.{ending}", state[f"{here}{name}.{ending}"]


def _placed(name: str, places: dict[str, str]) -> tuple[str, str]:
    """The original place of the module that a name belongs to, and the rest of the name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        start = ".".join(parts[:length])
        if start in places:
            return places[start], ".".join(parts[length:])
    raise KeyError(name)
