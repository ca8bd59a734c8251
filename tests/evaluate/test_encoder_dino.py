import json

import numpy as np
import pytest
import torch
from tiny_encoders import clip_folder, dino_folder, pictures
from transformers import AutoModel

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.dino import DinoEncoder
from flowgrain.evaluate.encoders.preprocessing import read_preprocessing

KINDS = {"vit": "DINO", "dinov2": "DINOv2", "dinov2_with_registers": "DINOv2", "dinov3_vit": "DINOv3"}


@pytest.mark.parametrize(("kind", "family"), KINDS.items())
@torch.inference_mode()
def test_features_are_the_class_token_of_transformers(tmp_path, kind, family):
    folder = dino_folder(tmp_path / kind, kind)
    encoder = DinoEncoder(str(folder), batch_size=2)
    rule = read_preprocessing(folder)
    pixels = rule.normalised([rule.pixels(picture) for picture in pictures(5)])
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    output = AutoModel.from_pretrained(folder, **options)(pixel_values=pixels)
    assert encoder.family == family and family in encoder.name and "class token 32-d" in encoder.name
    np.testing.assert_allclose(encoder(pictures(5)), output.last_hidden_state[:, 0].numpy(), rtol=1e-4, atol=1e-5)
    if kind != "vit":  # what transformers calls pooled there
        np.testing.assert_allclose(encoder(pictures(5)), output.pooler_output.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        DinoEncoder(str(folder), batch_size=1)(pictures(5)), encoder(pictures(5)), rtol=1e-5, atol=1e-5
    )
    assert encoder([]).shape == (0, 32)
    assert encoder.text(["a cat"]) is None and encoder.logits(encoder(pictures(1))) is None


def test_a_model_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ModelError, match="model_type 'clip' cannot be used for DINO features; known: vit, dinov2"):
        DinoEncoder(str(clip_folder(tmp_path / "clip")))


def test_a_classifier_is_not_called_dino(tmp_path):
    folder = dino_folder(tmp_path / "vit", "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ModelError, match=r"architectures \['ViTForImageClassification'\], those of DINO say"):
        DinoEncoder(str(folder))


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        DinoEncoder(str(tmp_path))
