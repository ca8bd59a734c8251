"""Random PixArt-alpha and PixArt-sigma models of some tens of thousands of weights."""

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SchedulerMixin,
)
from random_sd3 import random_autoencoder, tiny_tokenizer
from transformers import T5Config, T5EncoderModel

NOISE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""The noise levels of both models."""

TEXT_WIDTH = 16


def random_alpha_pipeline(scheduler: SchedulerMixin | None = None, **transformer) -> PixArtAlphaPipeline:
    return _random_pipeline(PixArtAlphaPipeline, 0.18215, scheduler, transformer)


def random_sigma_pipeline(scheduler: SchedulerMixin | None = None, **transformer) -> PixArtSigmaPipeline:
    return _random_pipeline(PixArtSigmaPipeline, 0.13025, scheduler, transformer)


def _random_pipeline(kind: Any, scaling_factor: float, scheduler: SchedulerMixin | None, transformer: dict) -> Any:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("tokenizer_2", 12)
    config = T5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    blocks = {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": TEXT_WIDTH,
    }  # fmt: skip
    return kind(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(config),
        vae=random_autoencoder(scaling_factor),
        transformer=PixArtTransformer2DModel(**{**blocks, **transformer}),
        scheduler=scheduler or DPMSolverMultistepScheduler(**NOISE),
    )
