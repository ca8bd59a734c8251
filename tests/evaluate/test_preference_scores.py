import re

import numpy as np
import pytest
import torch
import transformers
from tiny_encoders import CLIP_PREPROCESSOR, TOKENIZER, clip_config, clip_folder, pictures, random_model
from transformers import CLIPConfig, CLIPModel

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.open_clip import VIT_H_14, clip_from_open_clip
from flowgrain.evaluate.scores.preference import hpsv2_preprocessing, open_hpsv2, open_pick_score

PROMPTS = ["a red cat", "two blue dogs", "a green hill"]


def open_clip_names(model):
    """Weights of a transformers CLIP under the names that open_clip's modules give them, layers fused as there."""
    state, made = dict(model.state_dict()), {"logit_scale": model.logit_scale.detach()}
    for tower, prefix, ours in (("text_model", "", model.text_model), ("vision_model", "visual.", model.vision_model)):
        for number in range(len(ours.encoder.layers)):
            layer, block = f"{tower}.encoder.layers.{number}.", f"{prefix}transformer.resblocks.{number}."
            for kind in ("weight", "bias"):
                fused = [state[f"{layer}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                made[f"{block}attn.in_proj_{kind}"] = torch.cat(fused)
                made[f"{block}attn.out_proj.{kind}"] = state[f"{layer}self_attn.out_proj.{kind}"]
                made[f"{block}ln_1.{kind}"] = state[f"{layer}layer_norm1.{kind}"]
                made[f"{block}ln_2.{kind}"] = state[f"{layer}layer_norm2.{kind}"]
                made[f"{block}mlp.c_fc.{kind}"] = state[f"{layer}mlp.fc1.{kind}"]
                made[f"{block}mlp.c_proj.{kind}"] = state[f"{layer}mlp.fc2.{kind}"]
    text, vision = model.text_model, model.vision_model
    made["token_embedding.weight"] = text.embeddings.token_embedding.weight
    made["positional_embedding"] = text.embeddings.position_embedding.weight
    made["text_projection"] = model.text_projection.weight.T
    made["visual.class_embedding"] = vision.embeddings.class_embedding
    made["visual.positional_embedding"] = vision.embeddings.position_embedding.weight
    made["visual.conv1.weight"] = vision.embeddings.patch_embedding.weight
    made["visual.proj"] = model.visual_projection.weight.T
    for kind in ("weight", "bias"):
        made[f"ln_final.{kind}"] = getattr(text.final_layer_norm, kind)
        made[f"visual.ln_pre.{kind}"] = getattr(vision.pre_layrnorm, kind)
        made[f"visual.ln_post.{kind}"] = getattr(vision.post_layernorm, kind)
    return {name: tensor.detach().clone() for name, tensor in made.items()}


@pytest.fixture(scope="module")
def model():
    return random_model(CLIPModel, clip_config(act="gelu", layers=3))


@torch.inference_mode()
def test_open_clip_weights_give_the_same_outputs(model):
    loaded = clip_from_open_clip(open_clip_names(model), model.config, "file")
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32), "input_ids": torch.randint(0, 2420, (3, 24))}
    inputs["input_ids"][:, -1] = 2419
    first, second = model(**inputs), loaded(**inputs)
    torch.testing.assert_close(second.logits_per_image, first.logits_per_image, rtol=0, atol=0)
    torch.testing.assert_close(second.text_embeds, first.text_embeds, rtol=0, atol=0)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_every_name_of_the_published_architecture_is_mapped():
    # ViT-H/14 on the meta device: 32 + 24 layers, the names alone
    with torch.device("meta"):
        large = CLIPModel(CLIPConfig(**VIT_H_14))
    assert sum(parameter.numel() for parameter in large.parameters()) == 986_109_441  # as open_clip counts it
    from flowgrain.evaluate.encoders.open_clip import _renamed

    names = {new for name, tensor in open_clip_names(large).items() for new in _renamed(name, tensor, "file")}
    assert names == set(large.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_checkpoints_of_distributed_runs_and_half_precision_load(model, dtype):
    exported = {f"module.{name}": tensor.to(dtype) for name, tensor in open_clip_names(model).items()}
    exported["module.attn_mask"] = torch.zeros(24, 24)
    loaded = clip_from_open_clip(exported, model.config, "file")
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.logit_scale, model.logit_scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.trunk.blocks.0.norm1.weight": torch.ones(3)}, "unknown weight 'visual.trunk.blocks.0.norm1.weight'"),
        ({"transformer.resblocks.0.ls_1.gamma": torch.ones(3)}, "unknown weight 'transformer.resblocks.0.ls_1.gamma'"),
        ({"visual.proj": None}, "1 are missing, for example visual_projection.weight"),
        ({"visual.proj": torch.ones(48, 8)}, r"visual_projection.weight has shape (8, 48), expected (16, 48)"),
        ({"transformer.resblocks.7.ln_1.weight": torch.ones(32)}, "1 are unknown, for example text_model.encoder"),
        ({"visual.transformer.resblocks.1.attn.in_proj_weight": torch.ones(9, 48)}, "has shape (3, 48)"),
    ],
)
def test_other_architectures_are_refused(model, change, message):
    exported = {**open_clip_names(model), **change}
    exported = {name: tensor for name, tensor in exported.items() if tensor is not None}
    with pytest.raises(ModelError, match=re.escape(message)):
        clip_from_open_clip(exported, model.config, "file")


@torch.inference_mode()
def by_hand(model, pixels, prompts):
    tokens = transformers.AutoTokenizer.from_pretrained(TOKENIZER)(
        prompts, padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    )
    output = model(pixel_values=pixels, **tokens)
    return (output.image_embeds * output.text_embeds).sum(dim=1).double().numpy()


def test_hpsv2_is_the_cosine_of_its_checkpoint(model, tmp_path):
    checkpoint = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"epoch": 1, "state_dict": open_clip_names(model)}, checkpoint)
    score = open_hpsv2(checkpoint, str(TOKENIZER), config=model.config, cache=tmp_path / "cache")
    rule = hpsv2_preprocessing(32)
    pixels = rule.normalised([rule.pixels(picture) for picture in pictures(3)])
    expected = by_hand(model, pixels, PROMPTS)
    np.testing.assert_allclose(score(pictures(3), PROMPTS), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score(pictures(3), PROMPTS), expected, rtol=1e-4, atol=1e-5)  # out of the cache
    assert score.title == "HPSv2"
    assert "HPS_v2_compressed.pt (sha256 " in score.version and "longest edge to 32" in score.version


def test_a_checkpoint_of_another_size_is_refused(model, tmp_path):
    torch.save({"state_dict": open_clip_names(model)}, tmp_path / "small.pt")
    with pytest.raises(ModelError, match=r"small\.pt: not the weights of CLIPModel"):
        open_hpsv2(tmp_path / "small.pt", str(TOKENIZER))


def test_pick_score_is_the_scaled_cosine(tmp_path):
    folder = clip_folder(tmp_path / "pick")
    score = open_pick_score(str(folder))
    model = CLIPModel.from_pretrained(folder)
    rule = score.encoder._preprocessing
    pixels = rule.normalised([rule.pixels(picture) for picture in pictures(3)])
    expected = model.logit_scale.exp().item() * by_hand(model, pixels, PROMPTS)
    np.testing.assert_allclose(score(pictures(3), PROMPTS), expected, rtol=1e-4, atol=1e-4)
    assert score.title == "PickScore" and score.scale == pytest.approx(model.logit_scale.exp().item())


def test_the_processor_may_lie_in_another_folder(tmp_path):
    # the published PickScore folder has no preprocessor of its own
    folder, other = clip_folder(tmp_path / "pick"), clip_folder(tmp_path / "other", seed=1)
    expected = open_pick_score(str(folder))(pictures(2), PROMPTS[:2])
    for file in (*TOKENIZER.iterdir(), folder / "preprocessor_config.json"):
        (folder / file.name).unlink()
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        open_pick_score(str(folder))
    found = open_pick_score(str(folder), processor=str(other))(pictures(2), PROMPTS[:2])
    np.testing.assert_array_equal(found, expected)
    assert CLIP_PREPROCESSOR["size"] == 32
