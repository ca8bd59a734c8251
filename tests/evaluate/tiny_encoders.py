"""Small random vision models in transformers layout, with the tokenizer of the embedded bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from flowgrain.families.registry import resolve_model

TOKENIZER = Path(resolve_model("tiny-flux")) / "tokenizer"
VOCABULARY = {"vocab_size": 2420, "bos_token_id": 2418, "eos_token_id": 2419, "pad_token_id": 2419}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP_PREPROCESSOR = {  # as the first CLIP models have it: sizes as plain numbers
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "crop_size": 32,
    "size": 32,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def clip_config(projection=16, image_size=32, patch=8, act="quick_gelu", layers=2, vocabulary=VOCABULARY):
    transformer = {"intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "hidden_act": act}
    text = {"hidden_size": 32, "projection_dim": projection, "max_position_embeddings": 24}
    vision = {"hidden_size": 48, "projection_dim": projection, "image_size": image_size, "patch_size": patch}
    return transformers.CLIPConfig(
        text_config={**vocabulary, **transformer, **text},
        vision_config={**transformer, **vision},
        projection_dim=projection,
    )


def random_model(model, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = model(config)
        for parameter in made.parameters():  # initialisations near zero would hide swapped weights
            torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


def clip_folder(folder, config=None, seed=0):
    return saved(random_model(transformers.CLIPModel, config or clip_config(), seed), folder, CLIP_PREPROCESSOR)


def siglip_folder(folder):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={**VOCABULARY, **sizes, "max_position_embeddings": 24, "projection_size": 32},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    preprocessor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
    return saved(random_model(transformers.SiglipModel, config), folder, preprocessor)


def dino_folder(folder, kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
    square = {"size": {"height": 32, "width": 32}, **IMAGENET}
    if kind == "dinov3_vit":
        config = transformers.DINOv3ViTConfig(**sizes, intermediate_size=64, num_register_tokens=2)
        model = random_model(transformers.DINOv3ViTModel, config)
        return saved(model, folder, {"image_processor_type": "DINOv3ViTImageProcessorFast", **square}, text=False)
    if kind == "vit":
        config = transformers.ViTConfig(**sizes, intermediate_size=64)
        model = random_model(lambda c: transformers.ViTModel(c, add_pooling_layer=False), config)
        return saved(model, folder, {"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, text=False)
    names = {
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "dinov2_with_registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    }
    config, model = names[kind]
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        **IMAGENET,
    }
    return saved(random_model(model, config(**sizes, mlp_ratio=2)), folder, preprocessor, text=False)


def saved(model, folder, preprocessor, text=True):
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if text:
        for file in TOKENIZER.iterdir():
            shutil.copy(file, folder)
    return folder


def pictures(count, seed=0, width=50, height=40):
    """Smooth random pictures, each of its own size."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        colours = generator.integers(0, 256, size=(5, 6, 3), dtype=np.uint8)
        size = (width + 3 * (number % 4), height + 5 * (number % 3))
        made.append(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
    return made


def picture_files(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, picture in enumerate(pictures(count, seed)):
        paths.append(folder / f"{number:03}.png")
        picture.save(paths[-1])
    return paths
