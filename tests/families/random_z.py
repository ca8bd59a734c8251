"""Random Z-Image models of a few thousand weights, for tests that need no trained one."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from random_tokenizers import qwen_tokenizer
from transformers import Qwen3Config, Qwen3Model

from flowgrain.families.z_image import ZImage

TURBO = {"shift": 3.0, "use_dynamic_shifting": False}
"""Z-Image-Turbo's scheduler."""


def random_z_pipeline(scheduler: dict | None = None, **transformer) -> ZImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
    )  # fmt: skip
    blocks = {
        "in_channels": 4, "dim": 24, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
        "cap_feat_dim": 16, "axes_dims": [4, 4, 4], "axes_lens": [1024, 64, 64],
    }  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
        scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    backbone = ZImageTransformer2DModel(**{**blocks, **transformer})
    for token in (backbone.x_pad_token, backbone.cap_pad_token):  # zeros until they are trained
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(TURBO if scheduler is None else scheduler)),
        vae=vae,
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
        transformer=backbone,
    )


def random_z(scheduler: dict | None = None) -> ZImage:
    return ZImage(random_z_pipeline(scheduler), "random")
