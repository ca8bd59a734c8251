"""Draw the pictures of docs/bundle.md from the packed folders, through the ordinary pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from . import autoencoder, domains, vocabulary
from .pack import NAME, SDXL_NAME, _domain_pixels
from .render import BaseImages, shrink

SUBJECTS = (
    *("fox", "cat-face", "frog", "octopus", "penguin", "sunflower", "cactus", "red-apple"),
    *("watermelon", "pizza", "hamburger", "doughnut", "guitar", "rocket", "automobile", "umbrella"),
)
GUIDANCES = (1.0, 2.0, 3.5, 5.0)
CELL, LABEL = 128, 14
STEPS, GUIDANCE, SDXL_GUIDANCE = 28, 2.5, 4.0
Sampler = Callable[[list[str], float], list[Image.Image]]


class _Sheet:
    """A grid of 128-px pictures with a line of text above each."""

    def __init__(self, columns: int, rows: int) -> None:
        self.image = Image.new("RGB", (columns * (CELL + 4), rows * (CELL + LABEL + 4)), "white")
        self.pen = ImageDraw.Draw(self.image)

    def put(self, column: int, row: int, picture: Image.Image, words: str) -> None:
        left, top = column * (CELL + 4) + 2, row * (CELL + LABEL + 4)
        self.pen.text((left, top + 1), words[:26], fill="black", font_size=9)
        self.image.paste(picture, (left, top + LABEL))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.image.quantize(255).save(path, optimize=True)
        print(f"drew {path.name}", flush=True)


def _flux(folder: Path) -> Sampler:
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return _sampler(pipeline, {"max_sequence_length": 24})


def _sdxl(folder: Path) -> Sampler:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    return _sampler(pipeline, {})


def _sampler(pipeline: DiffusionPipeline, options: dict[str, Any]) -> Sampler:
    """One picture a prompt at a guidance, all from the same starting noise."""
    pipeline.set_progress_bar_config(disable=True)

    def sample(prompts: list[str], guidance: float) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(0) for _ in prompts]
        with torch.autocast("cpu", torch.bfloat16):
            return pipeline(
                prompt=prompts,
                height=CELL,
                width=CELL,
                num_inference_steps=STEPS,
                guidance_scale=guidance,
                generator=generators,
                **options,
            ).images

    return sample


def draw(work: Path, out: Path) -> None:
    """Write the pictures of docs/bundle.md next to it."""
    pictures = out.parents[2] / "docs" / "images"
    flux, sdxl = _flux(out / NAME), _sdxl(out / SDXL_NAME)
    _prompt_grid(flux, GUIDANCE, pictures / "bundle-grid.png")
    _guidance_grid(flux, pictures / "bundle-guidance.png")
    _prompt_grid(sdxl, SDXL_GUIDANCE, pictures / "bundle-sdxl-grid.png")
    _autoencoder_grid(work, out, pictures / "bundle-vae.png")


def _prompt_grid(sample: Sampler, guidance: float, path: Path) -> None:
    half = len(SUBJECTS) // 2
    wanted = [(style, "") for style in vocabulary.STYLES.values()] + [("noto style", "close-up")]
    sheet = _Sheet(half, 2 * len(wanted))
    for line, (style, closeness) in enumerate(wanted):
        prompts = [vocabulary.caption(subject, style, closeness) for subject in SUBJECTS]
        for index, picture in enumerate(sample(prompts, guidance)):
            sheet.put(index % half, line + len(wanted) * (index // half), picture, prompts[index])
    sheet.save(path)


def _guidance_grid(sample: Sampler, path: Path) -> None:
    subjects = SUBJECTS[:8]
    sheet = _Sheet(len(subjects), len(GUIDANCES))
    prompts = [vocabulary.caption(subject, "twemoji style") for subject in subjects]
    for row, guidance in enumerate(GUIDANCES):
        for column, picture in enumerate(sample(prompts, guidance)):
            sheet.put(column, row, picture, f"g={guidance:g} {prompts[column]}")
    sheet.save(path)


def _autoencoder_grid(work: Path, out: Path, path: Path) -> None:
    """Originals above their reconstructions: held-out base pictures, then pictures of the domains."""
    images, model = BaseImages.load(work), autoencoder.load(work)
    rows = images.rows(held_out=True, known_only=True)
    groups = {
        style: shrink(images.pixels[[r for r in rows if images.styles[r] == style][:2]]) for style in vocabulary.STYLES
    }
    groups |= {domain.name: _domain_pixels(out, domain.name)[11:13] for domain in domains.ALL}
    sheet = _Sheet(2 * len(groups), 2)
    for index, (name, originals) in enumerate(groups.items()):
        for which, pixels in enumerate((originals, autoencoder.reconstruct(model, np.ascontiguousarray(originals)))):
            for column, picture in enumerate(pixels):
                sheet.put(
                    2 * index + column, which, Image.fromarray(picture), f"{name} {('original', 'decoded')[which]}"
                )
    sheet.save(path)
