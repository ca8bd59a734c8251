import numpy as np
import pytest
from tiny_encoders import clip_folder, dino_folder, pictures, siglip_folder

from flowgrain.errors import ConfigError, ModelError
from flowgrain.evaluate.encoders import registry
from flowgrain.evaluate.encoders.registry import open_encoder


def test_each_kind_opens_its_encoder(tmp_path):
    folders = {
        f"clip:{clip_folder(tmp_path / 'clip')}": ("CLIP", 16),
        f"siglip:{siglip_folder(tmp_path / 'siglip')}": ("SigLIP", 32),
        f"dino:{dino_folder(tmp_path / 'dino', 'dinov3_vit')}": ("DINOv3", 32),
    }
    for spec, (family, dimension) in folders.items():
        encoder = open_encoder(spec, batch_size=3, dtype="float32")
        assert (encoder.family, encoder.dimension, encoder.batch_size) == (family, dimension, 3)
        assert encoder(pictures(2)).shape == (2, dimension)
    with pytest.raises(ModelError, match="model_type 'dinov3_vit' cannot be used for picture and text features"):
        open_encoder(f"clip:{tmp_path / 'dino'}")


def test_precision_reaches_the_network(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    full, half = (open_encoder(f"clip:{folder}", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert not np.array_equal(full(pictures(2)), half(pictures(2)))
    assert half(pictures(2)).dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clp:x", r"unknown encoder 'clp:x'; did you mean 'clip:FOLDER'\? known: mobilenet .*inception-spatial:FILE"),
        ("", r"unknown encoder ''; known: mobilenet"),
        ("resnet", "unknown encoder 'resnet'"),
        ("clip", "encoder 'clip' does not say where its weights are; write clip:FOLDER"),
        ("dino:", "write dino:FOLDER"),
        ("inception", "write inception:FILE"),
        ("mobilenet:256", "at 128 or 224 pixels"),
    ],
)
def test_other_specifications_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_encoder(spec)
    with pytest.raises(ConfigError, match="batch size 0"):
        open_encoder("mobilenet", batch_size=0)


def test_every_kind_says_how_it_is_written():
    assert all(kind.usage.startswith(name) for name, kind in registry._KINDS.items())
