"""Draw the pictures of docs/bundle.md from the packed folder, through the ordinary pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw

from . import autoencoder, domains, vocabulary
from .pack import NAME, _domain_pixels
from .render import BaseImages, shrink

SUBJECTS = (
    *("fox", "cat-face", "frog", "octopus", "penguin", "sunflower", "cactus", "red-apple"),
    *("watermelon", "pizza", "hamburger", "doughnut", "guitar", "rocket", "automobile", "umbrella"),
)
GUIDANCES = (1.0, 2.0, 3.5, 5.0)
CELL, LABEL = 128, 14
STEPS, GUIDANCE = 28, 2.5


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


def sample(pipeline: FluxPipeline, prompts: list[str], guidance: float, seed: int = 0) -> list[Image.Image]:
    """One picture a prompt from the same starting noise."""
    generators = [torch.Generator().manual_seed(seed) for _ in prompts]
    with torch.autocast("cpu", torch.bfloat16):
        return pipeline(
            prompt=prompts,
            height=CELL,
            width=CELL,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            max_sequence_length=24,
            generator=generators,
        ).images


def draw(work: Path, out: Path) -> None:
    """Write bundle-grid.png, bundle-guidance.png and bundle-vae.png next to the docs."""
    pictures = out.parents[2] / "docs" / "images"
    pipeline = FluxPipeline.from_pretrained(out / NAME, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    _prompt_grid(pipeline, pictures / "bundle-grid.png")
    _guidance_grid(pipeline, pictures / "bundle-guidance.png")
    _autoencoder_grid(work, out, pictures / "bundle-vae.png")


def _prompt_grid(pipeline: FluxPipeline, path: Path) -> None:
    half = len(SUBJECTS) // 2
    wanted = [(style, "") for style in vocabulary.STYLES.values()] + [("noto style", "close-up")]
    sheet = _Sheet(half, 2 * len(wanted))
    for line, (style, closeness) in enumerate(wanted):
        prompts = [vocabulary.caption(subject, style, closeness) for subject in SUBJECTS]
        for index, picture in enumerate(sample(pipeline, prompts, GUIDANCE)):
            sheet.put(index % half, line + len(wanted) * (index // half), picture, prompts[index])
    sheet.save(path)


def _guidance_grid(pipeline: FluxPipeline, path: Path) -> None:
    subjects = SUBJECTS[:8]
    sheet = _Sheet(len(subjects), len(GUIDANCES))
    prompts = [vocabulary.caption(subject, "twemoji style") for subject in subjects]
    for row, guidance in enumerate(GUIDANCES):
        for column, picture in enumerate(sample(pipeline, prompts, guidance)):
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
