"""What SDXL has beyond the other U-Nets; test_unet.py holds what all of them promise."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from family_contract import CAPTIONS, backbone_calls, conditioned, draw, latent_noise, noise
from random_unet import NOISE, TEXT_WIDTH, TEXT_WIDTH_2, random_sd15_pipeline, random_sdxl, random_sdxl_pipeline
from unet_contract import check_two_steps

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs, Posterior, SizeGeometry
from flowgrain.families.registry import load_family
from flowgrain.families.sdxl import StableDiffusionXL

CPU = torch.device("cpu")
GEOMETRY = SizeGeometry(
    original=torch.tensor([[900.0, 1300.0], [257.0, 123.0]]),
    crop=torch.tensor([[0.0, 35.0], [71.0, 0.0]]),
    target=torch.tensor([[16.0, 24.0], [16.0, 24.0]]),
)
"""Two slices of other sizes, cut elsewhere, in one bucket."""


@pytest.fixture(scope="module")
def sdxl():
    return random_sdxl()


def size_numbers(family, run):
    """The size conditioning of the U-Net's first call."""
    return backbone_calls(family, run)[0][1]["added_cond_kwargs"]["time_ids"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_conditioning_is_what_the_pipeline_computes_for_its_arguments(dtype):
    family = StableDiffusionXL(random_sdxl_pipeline().to(dtype), "random")
    x, level = latent_noise(family, 16, 24), torch.full((2, 1), 0.5)
    conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, geometry=GEOMETRY))
    ours = size_numbers(family, lambda: family.predict(x, level, conditioning))
    for row in range(2):
        sizes = {
            "original_size": tuple(GEOMETRY.original[row].int().tolist()),
            "crops_coords_top_left": tuple(GEOMETRY.crop[row].int().tolist()),
            "target_size": tuple(GEOMETRY.target[row].int().tolist()),
        }
        theirs = size_numbers(family, lambda row=row, s=sizes: draw(family, x[row : row + 1], guidance_scale=1, **s))
        assert theirs.dtype == ours.dtype == dtype
        assert torch.equal(ours[row : row + 1], theirs)
    rows = {tuple(row.tolist()) for row in ours.float()}
    assert len(rows) == 2
    if dtype == torch.float32:
        assert (900, 1300, 0, 35, 16, 24) in rows


def test_without_geometry_the_sizes_are_those_of_the_picture(sdxl):
    x = latent_noise(sdxl, 16, 24)
    theirs = size_numbers(sdxl, lambda: draw(sdxl, x, guidance_scale=1))
    ours = size_numbers(sdxl, lambda: sdxl.predict(x, torch.full((2, 1), 0.5), conditioned(sdxl)))
    assert torch.equal(ours, theirs)
    assert ours[0].tolist() == [16, 24, 0, 0, 16, 24]


def test_sizes_change_the_prediction(sdxl):
    x, level = latent_noise(sdxl, 16, 24), torch.full((2, 1), 0.5)
    with_sizes = sdxl.condition(ConditionInputs(CAPTIONS, None, 1.0, geometry=GEOMETRY))
    plain = sdxl.predict(x, level, conditioned(sdxl)).prediction
    assert (sdxl.predict(x, level, with_sizes).prediction - plain).abs().max() > 1e-5


def test_text_is_the_layer_before_the_last_of_both_encoders_and_the_seconds_projection(sdxl):
    pipe, caption = sdxl.pipeline(), CAPTIONS[1]
    states, pooled = [], None
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
        output = encoder(ids, output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled = output[0]
    embedding = sdxl.embed_text([caption]).tensors
    assert torch.equal(embedding["prompt_embeds"], torch.cat(states, dim=-1))
    assert embedding["prompt_embeds"].shape[-1] == TEXT_WIDTH + TEXT_WIDTH_2
    assert torch.equal(embedding["pooled_prompt_embeds"], pooled)
    drawn_with, _ = draw(sdxl, latent_noise(sdxl, 16, 16))
    assert drawn_with.clip_skip is None


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_two_steps_are_the_pipelines_with_noobais_scheduler(guidance):
    """It predicts v and its first step starts at noise alone."""
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    family = random_sdxl(EulerDiscreteScheduler(**NOISE, **zero))
    check_two_steps(family, guidance, None)
    assert family._pipeline.scheduler.timesteps[0] == 999
    assert family.default_path().snr(torch.ones(1)) == 0


@pytest.mark.parametrize("zeros", [True, False])
def test_the_models_own_unconditional_caption_is_kept(tmp_path, zeros):
    source = random_sdxl_pipeline()
    source.register_to_config(force_zeros_for_empty_prompt=zeros)
    source.save_pretrained(tmp_path / "model")
    family = load_family(str(tmp_path / "model"), None, torch.float32, CPU)
    pipe = family.pipeline()
    assert pipe.config.force_zeros_for_empty_prompt == zeros
    assert pipe.watermark is None
    _, negative, _, pooled = pipe.encode_prompt(CAPTIONS[0])
    assert (not negative.any() and not pooled.any()) == zeros
    if not zeros:
        empty = family.embed_text([""]).tensors
        torch.testing.assert_close(negative, empty["prompt_embeds"])
        torch.testing.assert_close(pooled, empty["pooled_prompt_embeds"])


def test_channel_statistics_are_undone_as_the_pipeline_does():
    pipe = random_sdxl_pipeline()
    mean, std = [0.3, -0.2, 0.1, 1.0], [2.0, 1.5, 0.5, 1.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    family = StableDiffusionXL(pipe, "random")
    raw = noise(2, 4, 4, 4)
    flat = Posterior(mean=raw, logvar=torch.full_like(raw, -60.0))
    latents = family.latents(flat, torch.zeros_like(raw))
    first = (raw - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(std).view(1, 4, 1, 1) * 0.13025
    torch.testing.assert_close(latents, first)
    _, drawn = draw(family, latent_noise(family, 16, 24))
    _, pictures = draw(family, latent_noise(family, 16, 24), output_type="pt")
    ours = (family.decode(drawn) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, pictures, rtol=1e-4, atol=1e-5)


def test_refiners_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"reads 32 numbers beside the text .*no refiner"):
        random_sdxl(projection_class_embeddings_input_dim=TEXT_WIDTH_2 + 5 * 4)
    pipe = random_sdxl_pipeline()
    parts = {**pipe.components, "text_encoder": None, "tokenizer": None}
    with pytest.raises(ModelError, match="the sdxl model has no text_encoder, tokenizer"):
        StableDiffusionXL(type(pipe)(**parts, add_watermarker=False), "refiner")


def test_another_family_named_in_the_recipe_is_refused(tmp_path):
    random_sd15_pipeline().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="is a stable-diffusion model, the configuration says 'sdxl'"):
        load_family(str(tmp_path / "model"), "sdxl", torch.float32, CPU)


def test_capabilities(sdxl):
    found = sdxl.capabilities
    assert (found.guidance, found.pixel_multiple, found.latent_scale) == ("classifier_free", 8, 2)
    assert (found.latent_channels, found.native_size) == (4, 16)
