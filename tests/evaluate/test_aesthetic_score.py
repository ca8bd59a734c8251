import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_encoders import clip_config, clip_folder, dino_folder, pictures

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.clip import load_clip
from flowgrain.evaluate.encoders.dino import DinoEncoder
from flowgrain.evaluate.scores.aesthetic import AestheticScore

WIDTHS = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}


def published(path, seed=0):
    """A file with the names and shapes of sac+logos+ava1-l14-linearMSE.pth."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for number, (before, after) in WIDTHS.items():
        state[f"layers.{number}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        state[f"layers.{number}.bias"] = torch.randn(after, generator=generator)
    torch.save(state, path)
    return path, state


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(str(clip_folder(tmp_path_factory.mktemp("models") / "clip", clip_config(projection=768))))


def test_the_score_is_the_linear_chain_on_unit_features(clip, tmp_path):
    path, state = published(tmp_path / "head.pth")
    x = clip(pictures(5)).astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for number in WIDTHS:
        x = x @ state[f"layers.{number}.weight"].double().numpy().T + state[f"layers.{number}.bias"].double().numpy()
    score = AestheticScore(clip, path)
    np.testing.assert_allclose(score(pictures(5), [""] * 5), x[:, 0], rtol=1e-4, atol=1e-5)
    assert "head.pth sha256" in score.version and clip.name in score.version
    save_file(state, tmp_path / "head.safetensors")
    np.testing.assert_array_equal(
        AestheticScore(clip, tmp_path / "head.safetensors")(pictures(2), [""] * 2), score(pictures(2), [""] * 2)
    )


def test_other_heads_and_encoders_are_refused(clip, tmp_path):
    path, state = published(tmp_path / "head.pth")
    torch.save({**state, "layers.0.weight": torch.zeros(1024, 512)}, path)
    with pytest.raises(ModelError, match=r"layers\.0\.weight has shape \(1024, 512\), expected \(1024, 768\)"):
        AestheticScore(clip, path)
    torch.save({name: tensor for name, tensor in state.items() if "7" not in name}, path)
    with pytest.raises(ModelError, match=r"2 are missing, for example layers\.7\.bias"):
        AestheticScore(clip, path)
    small = load_clip(str(clip_folder(tmp_path / "small")))
    with pytest.raises(ModelError, match=r"takes the 768 numbers of CLIP ViT-L/14, not the 16 of CLIP small"):
        AestheticScore(small, path)
    with pytest.raises(ModelError, match="not the 32 of DINOv2"):
        AestheticScore(DinoEncoder(str(dino_folder(tmp_path / "dino", "dinov2"))), path)
