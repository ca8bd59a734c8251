import json

import numpy as np
import pytest
import torch
from tiny_encoders import CLIP_PREPROCESSOR, clip_config, clip_folder, picture_files, pictures, siglip_folder
from transformers import AutoModel, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.clip import load_clip

PROMPTS = ["a red cat", "two blue dogs on a green hill", "", "a red cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return siglip_folder(tmp_path_factory.mktemp("models") / "tiny-siglip")


def processed(folder, processor):
    config = json.loads((folder / "preprocessor_config.json").read_text())
    return processor(**config)(pictures(5), return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def test_clip_features_are_those_of_transformers(clip):
    model, encoder = AutoModel.from_pretrained(clip), load_clip(str(clip), batch_size=2)
    images = model.get_image_features(pixel_values=processed(clip, CLIPImageProcessorPil)).pooler_output
    tokens = AutoTokenizer.from_pretrained(clip)(PROMPTS, padding=True, return_tensors="pt")
    text = model.get_text_features(**tokens).pooler_output
    np.testing.assert_allclose(encoder(pictures(5)), images.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.text(PROMPTS).features, text.numpy(), rtol=1e-4, atol=1e-5)
    assert encoder(pictures(5)).dtype == np.float32
    assert encoder.logit_scale == pytest.approx(model.logit_scale.exp().item())


@torch.inference_mode()
def test_siglip_features_are_those_of_transformers(siglip):
    model, encoder = AutoModel.from_pretrained(siglip), load_clip(str(siglip), batch_size=2)
    images = model.get_image_features(pixel_values=processed(siglip, SiglipImageProcessorPil)).pooler_output
    tokens = AutoTokenizer.from_pretrained(siglip)(PROMPTS, padding="max_length", max_length=24, return_tensors="pt")
    text = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    assert encoder.family == "SigLIP"
    np.testing.assert_allclose(encoder(pictures(5)), images.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.text(PROMPTS).features, text.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rows_do_not_depend_on_the_batch_beyond_rounding(request, kind):
    folder = str(request.getfixturevalue(kind))
    together, alone = load_clip(folder, batch_size=5), load_clip(folder, batch_size=1)
    np.testing.assert_allclose(together(pictures(5)), alone(pictures(5)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(together(pictures(5)), together(pictures(5)))
    np.testing.assert_allclose(together.text(PROMPTS).features, alone.text(PROMPTS).features, rtol=1e-5, atol=1e-5)
    assert together([]).shape == (0, together.dimension)
    assert together.text([]).features.shape == (0, together.dimension)


def test_prompts_above_the_context_are_cut_and_flagged(clip):
    encoder = load_clip(str(clip))
    fits = " ".join(["cat"] * (encoder.context - 2))  # two special tokens
    long = fits + " dog dog dog"
    text = encoder.text([long, "a cat", fits, long])
    assert text.truncated == (0, 3)
    np.testing.assert_array_equal(text.features[0], text.features[2])  # cut off to the same tokens
    assert encoder.text(["a cat", fits]).truncated == ()


def test_files_and_pictures_give_the_same_features(clip, tmp_path):
    encoder = load_clip(str(clip))
    np.testing.assert_array_equal(encoder(picture_files(tmp_path, 3)), encoder(pictures(3)))


def test_the_name_says_what_changes_the_numbers(clip, tmp_path):
    encoder = load_clip(str(clip))
    other = load_clip(str(clip_folder(tmp_path / "tiny-clip", seed=1)))
    half = load_clip(str(clip), dtype="bfloat16")
    assert encoder.name.startswith("CLIP tiny-clip (sha256 ") and "16-d, 32 px, Pillow bicubic" in encoder.name
    assert len({encoder.name, other.name, half.name}) == 3
    assert encoder.version != other.version
    np.testing.assert_allclose(half(pictures(2)), encoder(pictures(2)), rtol=0.2, atol=0.5)


def edited(folder, file, **changes):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **changes}))
    return str(folder)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    # an offline hub id, a file, a typing error
    with pytest.raises(ModelError, match="neither a folder nor a hub model that can be reached"):
        load_clip("nobody/no-such-model")
    with pytest.raises(ModelError, match="no such folder"):
        load_clip(str(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="a file; give the folder"):
        load_clip(str(tmp_path / "file"))
    folder = clip_folder(tmp_path / "clip")
    with pytest.raises(ModelError, match=r"takes 32 pixels, its preprocessor_config\.json gives 48"):
        load_clip(edited(folder, "preprocessor_config.json", size=64, crop_size=48))
    edited(folder, "preprocessor_config.json", **CLIP_PREPROCESSOR)
    with pytest.raises(ModelError, match="model_type 'bert' cannot be used for picture and text features; known: clip"):
        load_clip(edited(folder, "config.json", model_type="bert"))
    edited(folder, "config.json", model_type="clip")
    with pytest.raises(ModelError, match="knows 100 tokens, its tokenizer has 2420"):
        clip_folder(
            tmp_path / "small", clip_config(vocabulary={"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1})
        )
        load_clip(str(tmp_path / "small"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_clip(str(folder))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = clip_folder(tmp_path / "clip")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: t for name, t in tensors.items() if "fc1" not in name}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="8 weights are missing"):
        load_clip(str(folder))
    save_file({**tensors, "logit_scale": torch.zeros(3)}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded as a transformers model"):
        load_clip(str(folder))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a transformers model"):
        load_clip(str(folder))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded as a transformers model"):
        load_clip(str(folder))
