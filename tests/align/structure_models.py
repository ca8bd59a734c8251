"""Small random vision models of transformers' own classes, saved as its folders are."""

import json

import torch
import transformers
from transformers import Sam2HieraDetConfig, Sam2VisionConfig

TRANSFORMER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TRUNK = {
    "hidden_size": 8,
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 12, 16, 20],
    "num_attention_heads": 1,
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [8, 4, 14, 7],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [3, 3],
}


def random_model(model, config):
    """With weights far from the initialisations near zero and one, which would hide parts that are left out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = model(config)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval().requires_grad_(False)


def saved(model, folder, preprocessor=None, **options):
    model.save_pretrained(folder, **options)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def dino(kind, patch):
    if kind == "dinov3_vit":
        config = transformers.DINOv3ViTConfig(**TRANSFORMER, patch_size=patch, intermediate_size=32, image_size=64)
        config.num_register_tokens = 3
        return random_model(transformers.DINOv3ViTModel, config)
    sizes = {**TRANSFORMER, "patch_size": patch, "image_size": 3 * patch, "mlp_ratio": 2}
    if kind == "dinov2":
        return random_model(transformers.Dinov2Model, transformers.Dinov2Config(**sizes))
    config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
    return random_model(transformers.Dinov2WithRegistersModel, config)


def sam2_vision_config():
    trunk = Sam2HieraDetConfig(**TRUNK)
    return Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=[20, 16, 12, 8], fpn_hidden_size=16)


def sam2(kind):
    """A whole SAM 2, one for videos, or its vision model."""
    vision = sam2_vision_config()
    if kind == "sam2_vision_model":
        return random_model(transformers.Sam2VisionModel, vision)
    parts = {
        "vision_config": vision.to_dict(),
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 64, "mask_input_channels": 4},
        "mask_decoder_config": {
            "hidden_size": 16,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    }
    if kind == "sam2":
        return random_model(transformers.Sam2Model, transformers.Sam2Config(**parts))
    memory = {
        "memory_attention_hidden_size": 16,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [2, 2],
        "memory_encoder_hidden_size": 16,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": 16,
        "memory_fuser_embed_dim": 16,
        "memory_fuser_intermediate_dim": 16,
    }
    return random_model(transformers.Sam2VideoModel, transformers.Sam2VideoConfig(**parts, **memory))


def clip(tower=False):
    sizes = {**TRANSFORMER, "intermediate_size": 32, "image_size": 24, "patch_size": 8}
    if tower:
        return random_model(transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**sizes))
    text = {**TRANSFORMER, "intermediate_size": 32, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=sizes, projection_dim=8)
    return random_model(transformers.CLIPModel, config)


def siglip():
    sizes = {**TRANSFORMER, "intermediate_size": 32}
    text = {**sizes, "vocab_size": 50, "projection_size": 24}
    config = transformers.SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 24, "patch_size": 8})
    return random_model(transformers.SiglipModel, config)
