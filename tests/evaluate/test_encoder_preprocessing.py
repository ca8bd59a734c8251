import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_encoders import CLIP_PREPROCESSOR, IMAGENET
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.preprocessing import Preprocessing, read_preprocessing

DINOV2 = {
    "image_processor_type": "BitImageProcessor",
    "crop_size": {"height": 56, "width": 56},
    "do_center_crop": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    **IMAGENET,
}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 48}, "resample": 2}
DINO = {"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "resample": 3, **IMAGENET}
DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 48, "width": 48}, **IMAGENET}
PROCESSORS = [
    (CLIP_PREPROCESSOR, CLIPImageProcessorPil),
    ({"image_processor_type": "CLIPImageProcessor"}, CLIPImageProcessorPil),  # nothing but defaults
    (DINOV2, BitImageProcessorPil),
    (SIGLIP, SiglipImageProcessorPil),
    ({"image_processor_type": "SiglipImageProcessor"}, SiglipImageProcessorPil),
    (DINO, ViTImageProcessorPil),
    ({"image_processor_type": "ViTImageProcessor"}, ViTImageProcessorPil),
]


def written(tmp_path, config, name="preprocessor_config.json"):
    (tmp_path / name).write_text(json.dumps(config))
    return tmp_path


def noise(width, height, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("config", "processor"), PROCESSORS)
@settings(max_examples=15)
@given(width=st.integers(20, 150), height=st.integers(20, 150))
def test_pixels_are_those_of_transformers_without_torchvision(tmp_path, config, processor, width, height):
    rule = read_preprocessing(written(tmp_path, config))
    picture = noise(width, height)
    ours = rule.normalised([rule.pixels(picture)])
    theirs = processor(**config)(picture, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, rule.size, rule.size)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=2e-6)


def test_dinov3_pixels_are_those_of_transformers_with_torchvision(tmp_path):
    pytest.importorskip("torchvision", reason="transformers has DINOv3's image processor for torchvision only")
    from transformers.models.dinov3_vit.image_processing_dinov3_vit import DINOv3ViTImageProcessor

    rule = read_preprocessing(written(tmp_path, DINOV3))
    for size in ((100, 60), (30, 31), (48, 48)):
        ours = rule.normalised([rule.pixels(noise(*size))])
        theirs = DINOv3ViTImageProcessor(**DINOV3)(noise(*size), return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=2e-6)


def test_hpsv2_pixels_are_those_of_its_own_transforms(tmp_path):
    functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="HPSv2's own code needs it")
    rule = Preprocessing(48, 48, "longest edge", Image.Resampling.BICUBIC, floats=True)
    for width, height in ((100, 61), (31, 90), (48, 48), (20, 30)):
        pixels = functional.to_dtype(functional.pil_to_tensor(noise(width, height)), scale=True)
        scale = 48 / max(width, height)
        resized = functional.resize(
            pixels,
            [round(height * scale), round(width * scale)],
            functional.InterpolationMode.BICUBIC,
            antialias=True,
        )
        across, down = 48 - resized.shape[2], 48 - resized.shape[1]
        padded = functional.pad(resized, [across // 2, down // 2, across - across // 2, down - down // 2])
        theirs = functional.normalize(padded, list(rule.mean), list(rule.std))
        ours = rule.normalised([rule.pixels(noise(width, height))])[0]
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=2e-6)


def test_floating_point_pixels_are_the_eight_bit_ones_but_for_rounding():
    # Pillow rounds after each of its two passes: half a level each
    for fit in ("stretch", "shortest edge", "longest edge"):
        exact, rounded = (
            Preprocessing(40, 40, fit, Image.Resampling.BILINEAR, floats=floats).pixels(noise(90, 70))
            for floats in (True, False)
        )
        assert exact.dtype == np.float32 and rounded.dtype == np.uint8
        assert np.abs(exact * 255 - rounded).max() < 1.5


def test_longest_edge_has_black_borders_and_loses_nothing():
    rule = Preprocessing(40, 40, "longest edge", Image.Resampling.BICUBIC)
    pixels = rule.pixels(Image.new("RGB", (80, 20), "white"))
    assert (pixels[15:25] == 255).all()
    assert pixels[:15].max() == pixels[25:].max() == 0


def test_rules_are_told_in_words(tmp_path):
    told = [read_preprocessing(written(tmp_path, config)).describe() for config in (DINOV2, SIGLIP, DINOV3)]
    assert told == [
        "Pillow bicubic, shortest edge to 64, centre 56 x 56",
        "Pillow bilinear, stretched to 48",
        "float bilinear, stretched to 48",
    ]


def test_transformers_5_writes_it_inside_another_file(tmp_path):
    folder = written(tmp_path, {"image_processor": DINOV2, "processor_class": "X"}, "processor_config.json")
    assert read_preprocessing(folder).size == 56


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "'SamImageProcessor' is not known; known: CLIPImageProcessor"),
        ({"size": 224}, "image processor '' is not known"),
        ({**DINOV2, "do_normalize": False}, "do_normalize is False"),
        ({**DINOV2, "rescale_factor": 1.0}, "rescale_factor 1.0; only 1/255"),
        ({**DINOV2, "crop_size": {"height": 56, "width": 40}}, "crop_size .*only square sizes"),
        ({**DINOV2, "crop_size": 80}, "no square of 80 pixels comes out"),
        ({**DINOV2, "do_center_crop": False}, "no square"),
        ({**DINOV2, "size": {"shortest_edge": 64, "longest_edge": 90}}, "size .*only square sizes"),
        ({**DINOV2, "size": "large"}, "size 'large'"),
        ({**DINOV2, "image_mean": 0.5}, "image_mean 0.5; three numbers"),
        ({**DINOV3, "resample": 1}, r"resample 1; known here: 2 \(bilinear\), 3 \(bicubic\)"),
        ({**DINOV2, "resample": 77}, "resample 77"),
        ({**DINOV2, "image_mean": ["a", "b", "c"]}, "image_mean"),
    ],
)
def test_rules_that_are_not_carried_out_here_are_refused(tmp_path, config, message):
    with pytest.raises(ModelError, match=message):
        read_preprocessing(written(tmp_path, config))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        read_preprocessing(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        read_preprocessing(tmp_path)
