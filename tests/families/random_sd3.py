"""Random Stable Diffusion 3 and 3.5 models of some tens of thousands of weights, with and without T5."""

import copy
import functools
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from flowgrain.families.registry import resolve_model

CLIP_WIDTH = 8
T5_WIDTH = 24
DUAL_ATTENTION = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
"""SD3.5-medium: a second attention in the first blocks."""


def random_sd3_pipeline(t5: bool = True, scheduler: dict | None = None, **transformer) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizers = [tiny_tokenizer("tokenizer", 10) for _ in range(2)]
    tokenizer_3 = tiny_tokenizer("tokenizer_2", 12)
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=CLIP_WIDTH, intermediate_size=16, num_hidden_layers=2,
                num_attention_heads=2, projection_dim=CLIP_WIDTH, max_position_embeddings=10,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )
        for tokenizer in tokenizers
    ]  # fmt: skip
    config = T5Config(vocab_size=len(tokenizer_3), d_model=T5_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blocks = {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": T5_WIDTH,
        "caption_projection_dim": 16, "pooled_projection_dim": 2 * CLIP_WIDTH, "pos_embed_max_size": 12,
    }  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**{**blocks, **transformer}),
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
        vae=random_autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(config) if t5 else None,
        tokenizer_3=tokenizer_3 if t5 else None,
    )


def tiny_tokenizer(name: str, length: int) -> Any:
    """A tokenizer of tiny-flux (CLIP's ``tokenizer``, T5's ``tokenizer_2``) with another text length."""
    tokenizer = copy.deepcopy(_tokenizer(name))
    tokenizer.model_max_length = length
    return tokenizer


@functools.cache
def _tokenizer(name: str) -> Any:
    return AutoTokenizer.from_pretrained(resolve_model("tiny-flux"), subfolder=name)


def random_autoencoder(scaling_factor: float, shift_factor: float | None = None) -> AutoencoderKL:
    """Four latent channels, two pixels a latent cell."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=16,
        scaling_factor=scaling_factor, shift_factor=shift_factor,
    )  # fmt: skip
