"""What Stable Diffusion 1 and 2 have beyond the other U-Nets; test_unet.py holds what all of them promise."""

import json
import pickle

import torch
from diffusers import EulerDiscreteScheduler
from family_contract import Bomb, conditioned, draw, latent_noise, noise
from random_unet import NOISE, random_sd15, random_sd15_pipeline, random_sd21
from torch import nn

from flowgrain.families.base import Posterior
from flowgrain.families.registry import load_family, read_capabilities
from flowgrain.families.stable_diffusion import StableDiffusion

CPU = torch.device("cpu")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_safety_checker_is_left_out_and_its_pickle_never_opened(tmp_path):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    random_sd15_pipeline().save_pretrained(folder)
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    family = load_family(str(folder), None, torch.float32, CPU)
    assert isinstance(family, StableDiffusion)
    assert family.pipeline().safety_checker is None
    assert not trace.exists()
    pictures = draw(family, latent_noise(family, 16, 16), output_type="pt")[1]
    assert pictures.shape == (2, 3, 16, 16)


def test_text_is_the_last_layer_after_its_norm():
    family = random_sd15()
    pipe = family.pipeline()
    ids = pipe.tokenizer("a red fox", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(family.embed_text(["a red fox"]).tensors["prompt_embeds"], pipe.text_encoder(ids)[0])


def test_the_generations_differ_in_projections_and_in_what_is_predicted():
    first, second = random_sd15(), random_sd21()
    projections = [family.backbone.down_blocks[0].attentions[0].proj_in for family in (first, second)]
    assert [type(layer) for layer in projections] == [nn.Conv2d, nn.Linear]
    assert [family.default_path().prediction for family in (first, second)] == ["epsilon", "v_prediction"]


def test_v_prediction_and_its_path_give_back_the_picture():
    """Where the U-Net's v is exact, one step of the scheduler from any level ends at the data."""
    family = random_sd21()
    path = family.default_path()
    x0, drawn = noise(3, 4, 8, 8), noise(3, 4, 8, 8, seed=1)
    sample = path(x0, drawn, torch.tensor([0.1, 0.5, 0.95]))
    torch.testing.assert_close(path.prediction_to_x0(sample.target, sample.x_t, sample.times[:, 0]).float(), x0)


def test_zero_terminal_snr_starts_at_noise_alone():
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    path = random_sd15(EulerDiscreteScheduler(**NOISE, **zero)).default_path()
    x0, drawn = noise(1, 4, 4, 4), noise(1, 4, 4, 4, seed=1)
    sample = path(x0, drawn, torch.tensor([0.9999]))
    assert torch.equal(sample.x_t, drawn)
    assert torch.equal(sample.target, -x0)


def test_old_configurations_fall_back_to_the_librarys_values(tmp_path):
    random_sd15_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "scaling_factor"}))
    edit(tmp_path / "unet" / "config.json", sample_size=[8, 12])
    family = load_family(str(tmp_path), None, torch.float32, CPU)
    ones = torch.ones(1, 4, 2, 2)
    assert torch.equal(family.latents(Posterior(ones, -60 * ones), 0 * ones), 0.18215 * ones)
    assert family.capabilities.native_size == read_capabilities(str(tmp_path)).native_size == 24


def test_conditioning_is_the_text_alone():
    assert conditioned(random_sd15()).tensors.keys() == {"prompt_embeds"}
