"""Weights of the open_clip library in transformers' CLIP: the names of one, the modules of the other."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import load_exactly

VIT_H_14 = {
    "projection_dim": 1024,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
}
"""open_clip's ViT-H-14 as settings of CLIPConfig."""

_PLAIN = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""open_clip multiplies by these from the right, a Linear layer of transformers from the left."""
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_IGNORED = {"attn_mask", "logit_bias"}
"""Buffers that some versions of open_clip save; they hold no weights."""


def clip_from_open_clip(tensors: Mapping[str, Tensor], config: CLIPConfig, source: str) -> CLIPModel:
    """A transformers CLIP in float32 with the weights of an open_clip state dict.

    Raises :class:`ModelError` for names that are unknown or missing and for shapes of another architecture.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if name not in _IGNORED:
            renamed |= _renamed(name, tensor.float(), source)
    with torch.device("meta"):
        model = CLIPModel(config)
    # empty, not random: every value is replaced, and load_exactly makes sure of it
    model = model.to_empty(device="cpu")
    load_exactly(model, renamed, source)
    for tower in (model.text_model, model.vision_model):
        positions = tower.embeddings.position_ids
        positions.copy_(torch.arange(positions.shape[1])[None])  # a buffer that files do not hold
    return model.eval().requires_grad_(False)


def _renamed(name: str, tensor: Tensor, source: str) -> dict[str, Tensor]:
    """The tensor under transformers' name, or names: the fused query, key and value become three."""
    if name in _PLAIN:
        return {_PLAIN[name]: tensor}
    if name in _TRANSPOSED:
        return {_TRANSPOSED[name]: tensor.T.contiguous()}
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise ModelError(f"{source}: not an open_clip state dict of a CLIP vision transformer: unknown weight '{name}'")
    visual, number, rest = match.groups()
    layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    fused = re.fullmatch(r"attn\.in_proj_(weight|bias)", rest)
    if fused is not None:
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=False)
        return {f"{layer}.self_attn.{part}.{fused[1]}": piece.contiguous() for part, piece in parts}
    module, _, kind = rest.rpartition(".")
    if module == "attn.out_proj":
        return {f"{layer}.self_attn.out_proj.{kind}": tensor}
    if module not in _IN_BLOCK:
        raise ModelError(f"{source}: not an open_clip state dict of a CLIP vision transformer: unknown weight '{name}'")
    return {f"{layer}.{_IN_BLOCK[module]}.{kind}": tensor}
