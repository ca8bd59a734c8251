"""Random Stable Diffusion models of a few thousand weights with real tokenizers, for tests that need no trained one.

SDXL with two text encoders and size conditioning, SD 1.5 with a transformer's 1x1 convolutions, SD 2.1 with linear
ones, v-prediction: the layouts of the published models, each in small. Sides are multiples of 8 pixels (4 of latents).
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from flowgrain.families.registry import resolve_model
from flowgrain.families.sdxl import StableDiffusionXL
from flowgrain.families.stable_diffusion import StableDiffusion

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""The noise levels of Stable Diffusion 1, 2 and XL."""

TEXT_LENGTH = 12
TEXT_WIDTH, TEXT_WIDTH_2 = 8, 12


def random_sdxl(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusionXL:
    return StableDiffusionXL(random_sdxl_pipeline(scheduler, **unet), "random")


def random_sd15(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusion:
    return StableDiffusion(random_sd15_pipeline(scheduler, **unet), "random")


def random_sd21(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusion:
    return StableDiffusion(random_sd21_pipeline(scheduler, **unet), "random")


def random_sdxl_pipeline(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer()
    tokenizer_2.pad_token = tokenizer_2.convert_ids_to_tokens(0)  # as SDXL's second one, which pads with "!"
    settings = {
        "attention_head_dim": (1, 2, 2), "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": TEXT_WIDTH_2 + 6 * 4,
    }  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_autoencoder(0.13025),
        text_encoder=CLIPTextModel(_text_config(tokenizer, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, "gelu", TEXT_WIDTH_2)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=_unet({**settings, **unet}),
        scheduler=scheduler or EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def random_sd15_pipeline(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusionPipeline:
    settings = {"attention_head_dim": 2, "cross_attention_dim": TEXT_WIDTH}
    default = PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False)
    return _stable_diffusion("quick_gelu", scheduler or default, {**settings, **unet})


def random_sd21_pipeline(scheduler: SchedulerMixin | None = None, **unet) -> StableDiffusionPipeline:
    settings = {"attention_head_dim": (1, 2, 2), "cross_attention_dim": TEXT_WIDTH, "use_linear_projection": True}
    default = DDIMScheduler(**NOISE, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False)
    return _stable_diffusion("gelu", scheduler or default, {**settings, **unet})


def _stable_diffusion(activation: str, scheduler: SchedulerMixin, unet: dict) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    crossed = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return StableDiffusionPipeline(
        vae=_autoencoder(0.18215),
        text_encoder=CLIPTextModel(_text_config(tokenizer, activation)),
        tokenizer=tokenizer,
        unet=_unet({**crossed, **unet}),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _tokenizer() -> CLIPTokenizer:
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny-flux"), subfolder="tokenizer")
    tokenizer.model_max_length = TEXT_LENGTH
    return tokenizer


def _text_config(tokenizer: CLIPTokenizer, activation: str, width: int = TEXT_WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=width, hidden_act=activation, max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip


def _unet(settings: dict) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (4, 8, 8),
        "layers_per_block": 1, "norm_num_groups": 2, **settings,
    })  # fmt: skip


def _autoencoder(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=16,
        scaling_factor=scaling_factor,
    )  # fmt: skip
