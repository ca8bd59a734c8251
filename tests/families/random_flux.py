"""Random FLUX models of a few thousand weights, for tests that need no trained one."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flowgrain.families.flux import Flux
from flowgrain.families.registry import resolve_model

DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
"""FLUX.1-dev's scheduler."""


def random_pipeline(guidance: bool = True, scheduler: dict | None = None, **transformer) -> FluxPipeline:
    torch.manual_seed(0)
    folder = resolve_model("tiny-flux")
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    tokenizer_2 = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer_2")
    tokenizer_2.model_max_length = 12
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    t5 = T5Config(vocab_size=len(tokenizer_2), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blocks = {
        "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6), "in_channels": 16,
    }  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC if scheduler is None else scheduler)),
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(guidance_embeds=guidance, **{**blocks, **transformer}),
    )


def random_flux(guidance: bool = True, scheduler: dict | None = None) -> Flux:
    return Flux(random_pipeline(guidance, scheduler), "random")
