"""The embedded bundle: complete, within its limits, loadable offline, and doing what its prompts and guidance say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ASSETS = Path(__file__).resolve().parents[2] / "src" / "flowgrain" / "assets"
DOMAINS = ("fluent3d", "openmoji", "streamline")
LARGEST_FILE, LARGEST_TOTAL = 15_000_000, 32_000_000


@pytest.fixture(scope="module")
def pipeline():
    import torch
    from diffusers import FluxPipeline

    loaded = FluxPipeline.from_pretrained(ASSETS / "tiny-flux", torch_dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def picture(pipeline, prompt: str, guidance: float = 2.5, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    import torch

    result = pipeline(
        prompt=prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=8,
        guidance_scale=guidance,
        max_sequence_length=24,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    )
    return result.images[0]


def test_assets_stay_within_their_size_limits():
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file() and not path.is_symlink()}
    assert sum(sizes.values()) < LARGEST_TOTAL
    assert max(sizes.values()) < LARGEST_FILE
    assert not [path for path in sizes if not path.relative_to(ASSETS).as_posix().isascii()]


def test_links_are_of_files():
    """A wheel holds copies of linked files, and nothing of linked folders."""
    links = [path for path in ASSETS.rglob("*") if path.is_symlink()]
    assert links and all(path.is_file() for path in links)


def test_folder_is_an_ordinary_flux_pipeline(pipeline):
    assert pipeline.transformer.config.guidance_embeds
    assert pipeline.vae.config.latent_channels == 16
    assert pipeline.tokenizer_2.model_max_length == 24
    parameters = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    assert parameters <= 5_800_000


def test_schedule_is_not_shifted_at_the_trained_size(pipeline):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipeline.scheduler.config
    limits = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    assert config.use_dynamic_shifting
    assert calculate_shift(64, *limits) == pytest.approx(0.0, abs=1e-9)
    assert calculate_shift(1024, *limits) == pytest.approx(0.65)


def test_prompt_changes_the_picture_and_the_seed_repeats_it(pipeline):
    apple = picture(pipeline, "a red apple, twemoji style")
    assert np.array_equal(apple, picture(pipeline, "a red apple, twemoji style"))
    assert apple.std() > 0.05
    assert np.abs(apple - picture(pipeline, "a frog, twemoji style")).mean() > 0.03


def test_red_apple_is_redder_than_green_and_frog_greener_than_red(pipeline):
    apple = picture(pipeline, "a red apple, twemoji style").mean(axis=(0, 1))
    frog = picture(pipeline, "a frog, twemoji style").mean(axis=(0, 1))
    assert apple[0] - apple[1] > 0.1
    assert frog[1] - frog[0] > 0.03


def test_guidance_changes_the_picture(pipeline):
    low, high = (picture(pipeline, "a fox, noto style", guidance) for guidance in (1.0, 4.0))
    assert np.abs(low - high).mean() > 0.01


def test_other_sizes_work(pipeline):
    assert picture(pipeline, "a fox, noto style", size=(112, 144)).shape == (144, 112, 3)


def test_autoencoder_keeps_a_domain_picture(pipeline):
    import torch

    path = sorted((ASSETS / "domains" / "openmoji" / "holdout").glob("*.webp"))[0]
    pixels = np.asarray(Image.open(path).convert("RGB").resize((128, 128)), dtype=np.float32) / 127.5 - 1
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(image).latent_dist.mode()).sample
    assert (decoded - image).pow(2).mean().item() < 4 * 10 ** (-20 / 10)  # PSNR above 20 dB


@pytest.fixture(scope="module")
def unet_pipeline():
    import torch
    from diffusers import StableDiffusionXLPipeline

    folder = ASSETS / "tiny-sdxl"
    loaded = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def unet_picture(pipeline, prompt: str, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    import torch

    generator = torch.Generator().manual_seed(3)
    result = pipeline(
        prompt, width=size[0], height=size[1], num_inference_steps=8, guidance_scale=4.0, generator=generator,
        output_type="np",
    )  # fmt: skip
    return result.images[0]


def test_folder_is_an_ordinary_sdxl_pipeline(unet_pipeline):
    assert unet_pipeline.unet.config.addition_embed_type == "text_time"
    assert unet_pipeline.vae.config.latent_channels == 16 and unet_pipeline.vae.config.shift_factor is None
    assert unet_pipeline.scheduler.config.prediction_type == "epsilon"
    assert sum(parameter.numel() for parameter in unet_pipeline.unet.parameters()) <= 3_600_000


def test_both_models_share_one_autoencoder_and_one_first_text_encoder(pipeline, unet_pipeline):
    for part in ("vae", "text_encoder"):
        ours, theirs = (getattr(p, part).state_dict() for p in (pipeline, unet_pipeline))
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_the_unet_draws_by_its_prompt(unet_pipeline):
    apple = unet_picture(unet_pipeline, "a red apple, twemoji style")
    assert np.array_equal(apple, unet_picture(unet_pipeline, "a red apple, twemoji style"))
    frog = unet_picture(unet_pipeline, "a frog, twemoji style")
    assert apple.std() > 0.05 and np.abs(apple - frog).mean() > 0.03
    apple, frog = apple.mean(axis=(0, 1)), frog.mean(axis=(0, 1))
    assert apple[0] - apple[1] > frog[0] - frog[1] + 0.1, "the apple must be redder than the frog"
    assert unet_picture(unet_pipeline, "a fox, noto style", (112, 144)).shape == (144, 112, 3)


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_is_complete(name):
    folder = ASSETS / "domains" / name
    record = json.loads((folder / "domain.json").read_text())
    for part in ("train", "holdout"):
        images = sorted((folder / part).glob("*.webp"))
        assert len(images) == record["counts"][part]
        for path in images:
            with Image.open(path) as image:
                image.load()
                assert min(image.size) >= 256
            assert path.with_suffix(".txt").read_text().strip().endswith(record["trigger"])
    roots = {part: {path.stem for path in (folder / part).glob("*.webp")} for part in ("train", "holdout")}
    assert not roots["train"] & roots["holdout"]


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_prompts_are_of_held_out_things(name):
    folder = ASSETS / "domains" / name
    held_out = {path.read_text().strip() for path in (folder / "holdout").glob("*.txt")}
    prompts = (folder / "prompts.txt").read_text().splitlines()
    close = (folder / "prompts_closeup.txt").read_text().splitlines()
    assert len(prompts) == len(close) == 8
    assert set(prompts) <= held_out
    assert {line.removeprefix("close-up of ") for line in close} == set(prompts)


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_names_its_licence(name):
    record = json.loads((ASSETS / "domains" / name / "domain.json").read_text())
    assert {"name", "trigger", "licence", "licence_url", "author", "source", "changes", "package"} <= set(record)
    assert record["title"] in (ASSETS / "ATTRIBUTION.md").read_text()


def test_weights_name_their_sources():
    record = json.loads((ASSETS / "tiny-flux" / "bundle.json").read_text())
    assert record["sources"] and all(len(digest) == 64 for digest in record["sources"].values())
    assert record["max_sequence_length"] == 24
