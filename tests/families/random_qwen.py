"""Random Qwen-Image models of a few thousand weights, for tests that need no trained one."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from random_tokenizers import qwen_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from flowgrain.families.qwen_image import QwenImage

SCHEDULER = {
    "use_dynamic_shifting": True, "shift": 1.0, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip
"""Qwen-Image's."""


def random_qwen_pipeline(scheduler: dict | None = None, **transformer) -> QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    blocks = {
        "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
        "joint_attention_dim": 16, "axes_dims_rope": (2, 2, 4),
    }  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[-0.7, 0.1, 0.9, -0.2], latents_std=[2.8, 1.4, 0.6, 1.9],
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(SCHEDULER if scheduler is None else scheduler)),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(**{**blocks, **transformer}),
    )


def random_qwen(scheduler: dict | None = None) -> QwenImage:
    return QwenImage(random_qwen_pipeline(scheduler), "random")
