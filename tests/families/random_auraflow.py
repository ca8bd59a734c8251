"""A random AuraFlow model of some tens of thousands of weights."""

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from random_sd3 import random_autoencoder, tiny_tokenizer
from transformers import UMT5Config, UMT5EncoderModel

TEXT_WIDTH = 16


def random_auraflow_pipeline(scheduler: dict | None = None, **transformer) -> AuraFlowPipeline:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("tokenizer_2", 12)
    config = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blocks = {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1,
        "num_single_dit_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH, "caption_projection_dim": 16, "pos_embed_max_size": 144,
    }  # fmt: skip
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(config),
        vae=random_autoencoder(scaling_factor=0.13025),
        transformer=AuraFlowTransformer2DModel(**{**blocks, **transformer}),
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 1.73})),
    )
