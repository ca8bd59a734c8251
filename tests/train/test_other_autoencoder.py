"""``model.vae``: a model over another autoencoder than its own, in training, forecasts and sampling."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from flowgrain.errors import ModelError
from flowgrain.families.registry import load_family, load_skeleton, read_capabilities
from flowgrain.sample.generate import SampleConfig, generate
from flowgrain.sample.run_folder import choose_checkpoint, read_run
from flowgrain.sample.session import load_model
from flowgrain.train.forecast import forecast
from flowgrain.train.loop import Observer, train
from flowgrain.vae.deeper import deepen
from flowgrain.vae.deeper_files import save_vae

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deep_vae(small_flux, tmp_path_factory):
    """The model's own autoencoder with compression doubled, in diffusers' form."""
    folder = tmp_path_factory.mktemp("deep") / "vae"
    save_vae(deepen(AutoencoderKL.from_pretrained(small_flux / "vae"), 1), folder)
    return folder


def load(model, vae=None):
    return load_family(str(model), None, torch.float32, CPU, vae=None if vae is None else str(vae))


def test_the_models_own_autoencoder_changes_nothing(small_flux):
    own, named = load(small_flux), load(small_flux, small_flux)
    assert named.capabilities == own.capabilities and named.fingerprint() == own.fingerprint()
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(named.encode_pixels(pixels).mean, own.encode_pixels(pixels).mean)


def test_the_other_autoencoder_is_the_one_that_encodes_and_decodes(small_flux, deep_vae):
    family, vae = load(small_flux, deep_vae), AutoencoderKL.from_pretrained(deep_vae).eval()
    own = load(small_flux)
    assert family.capabilities.latent_scale == 2 * own.capabilities.latent_scale
    assert family.capabilities.pixel_multiple == 2 * own.capabilities.pixel_multiple
    assert family.fingerprint() != own.fingerprint()
    pixels = torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean
    found = family.encode_pixels(pixels).mean
    assert torch.allclose(found, expected, atol=1e-5)
    picture = next(generate(family, None, ["a fox"], [0], SampleConfig(steps=1, height=64, width=32), lambda *_: None))
    assert picture[2].size == (32, 64)


def test_configurations_alone_say_the_same(small_flux, deep_vae):
    expected = load(small_flux, deep_vae).capabilities
    assert read_capabilities(str(small_flux), None, str(deep_vae)) == expected
    skeleton = load_skeleton(str(small_flux), None, torch.float32, None, str(deep_vae))
    assert skeleton.capabilities == expected
    assert all(part.is_meta for part in skeleton.encoders()["vae"].parameters())


def test_a_run_trains_and_draws_with_it(recipe, small_flux, deep_vae, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for shade in (0, 90, 180):
        Image.new("RGB", (64, 64), (shade, 255 - shade, 40)).save(photos / f"{shade}.png")
        (photos / f"{shade}.txt").write_text("a colour")
    model = {"path": str(small_flux), "vae": str(deep_vae.parent)}
    config = recipe(model=model, data={"path": str(photos), "resolution": 64}, time={})
    text = forecast(config)
    assert "64x64" in text and "flux" in text
    assert not train(config, False, Observer()).interrupted
    choice = read_run(config.output)[1]
    family = load_model(choice, CPU)
    assert family.fingerprint() == load(small_flux, deep_vae).fingerprint()
    adapter = choose_checkpoint(config.output, None).adapter
    drawn = next(generate(family, adapter, ["a fox"], [0], SampleConfig(steps=1, height=32, width=32), lambda *_: None))
    assert drawn[2].size == (32, 32)


def test_the_identity_knows_the_weights_not_the_place(recipe, small_flux, deep_vae, tmp_path):
    def identity(folder):
        return recipe(model={"path": str(small_flux), "vae": str(folder)}).identity()

    copy = tmp_path / "copy"
    save_vae(deepen(AutoencoderKL.from_pretrained(small_flux / "vae"), 1), copy)
    assert identity(copy) == identity(deep_vae)
    vae = AutoencoderKL.from_pretrained(copy)
    vae.decoder.conv_out.bias.data += 1
    vae.save_pretrained(copy)
    assert identity(copy) != identity(deep_vae)


def test_what_does_not_fit_is_one_clear_error(small_flux, tmp_path):
    with pytest.raises(ModelError, match=r"model\.vae .*nowhere: no autoencoder here"):
        load(small_flux, tmp_path / "nowhere")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=5).save_pretrained(tmp_path / "five")
    with pytest.raises(ModelError, match=r"takes \d+ channels, the autoencoder gives 5 times 4"):
        load(small_flux, tmp_path / "five")
    (tmp_path / "five" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(ModelError, match="five"):
        load(small_flux, tmp_path / "five")
