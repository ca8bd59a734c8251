"""Random FLUX.2 models of a few thousand weights, for tests that need no trained one.

The pipelines read layers 10, 20 and 30 (Klein: 9, 18, 27) of their language model: these ones have as many, 8 wide.
"""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from random_tokenizers import byte_level, qwen_tokenizer
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from flowgrain.families.flux2 import Flux2, Flux2Klein

SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}
"""FLUX.2-dev's."""

MISTRAL_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ message['content'][0]['text'] }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ message['content'][0]['text'] }}[/INST]{% endif %}{% endfor %}"
)
"""Mistral Small 3's, for messages of one text each."""

MISTRAL_TOKENS = (
    "<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]",
    "[IMG_BREAK]", "[IMG_END]",
)  # fmt: skip


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """What FLUX.2's processor does to text alone."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(MISTRAL_TOKENS), unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = MISTRAL_CHAT_TEMPLATE
    return tokenizer


def random_flux2_pipeline(scheduler: dict | None = None, **transformer) -> Flux2Pipeline:
    torch.manual_seed(0)
    tokenizer = mistral_tokenizer()
    text = {
        "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 31, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 8, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    return Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(SCHEDULER if scheduler is None else scheduler)),
        vae=_autoencoder(),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=_transformer({"guidance_embeds": True, **transformer}),
    )


def random_klein_pipeline(is_distilled: bool = False, **transformer) -> Flux2KleinPipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=28, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=_autoencoder(),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=_transformer({"guidance_embeds": False, **transformer}),
        is_distilled=is_distilled,
    )


def random_flux2(scheduler: dict | None = None) -> Flux2:
    return Flux2(random_flux2_pipeline(scheduler), "random")


def random_klein(is_distilled: bool = False) -> Flux2Klein:
    return Flux2Klein(random_klein_pipeline(is_distilled), "random")


def _transformer(settings: dict) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(**{
        "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (2, 2, 2, 2), **settings,
    })  # fmt: skip


def _autoencoder() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.linspace(-1.0, 1.0, 16))  # of the patched latents, as a trained one has
    vae.bn.running_var.copy_(torch.linspace(0.3, 3.0, 16))
    return vae
