"""Draw pictures with the ordinary diffusers pipeline, each a function of (prompt, seed).

The initial noise of a picture comes from a CPU generator seeded by its prompt and seed, not from its place in a
batch. Batched matrix products may still round differently: across batch sizes pictures agree to 2/255.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import Field

from flowgrain import rng
from flowgrain.config import Config
from flowgrain.errors import ConfigError
from flowgrain.families.base import Family
from flowgrain.families.loading import unload_adapter


class SampleConfig(Config):
    """How pictures are drawn."""

    steps: int = Field(default=28, gt=0, description="steps of the sampler")
    guidance: float = Field(default=3.5, ge=0, description="guidance scale; not read by models without guidance")
    height: int | None = Field(default=None, gt=0, description="pixels, None for the model's native size")
    width: int | None = Field(default=None, gt=0, description="pixels, None for the model's native size")
    batch_size: int = Field(default=4, gt=0, description="pictures drawn at once: a matter of memory and speed alone")
    sampler: Literal["pipeline"] = Field(default="pipeline", description="pipeline: the model's own scheduler")


ProgressCallback = Callable[[int, int], None]
"""(pictures done, pictures in all)"""


def picture_size(family: Family, config: SampleConfig) -> tuple[int, int]:
    """(height, width) in pixels; raises ConfigError for sides that the model cannot draw."""
    capabilities = family.capabilities
    size = (config.height or capabilities.native_size, config.width or capabilities.native_size)
    for side in size:
        if side % capabilities.pixel_multiple:
            raise ConfigError(
                f"size {size[1]}x{size[0]}: {side} is not a multiple of {capabilities.pixel_multiple} pixels, which "
                f"{family.name} needs; use {side - side % capabilities.pixel_multiple or capabilities.pixel_multiple}"
            )
    return size


def generate(
    family: Family,
    adapter: Path | None,
    prompts: list[str],
    seeds: list[int],
    config: SampleConfig,
    on_progress: ProgressCallback,
) -> Iterator[tuple[int, int, Image.Image]]:
    """(prompt index, seed, picture) of every prompt with every seed, prompt by prompt.

    ``adapter`` is a saved adapter's folder; None draws with the family as it is, a live adapter included.
    """
    pairs = [(index, seed) for index in range(len(prompts)) for seed in seeds]
    yield from generate_pairs(family, adapter, prompts, pairs, config, on_progress)


def generate_pairs(
    family: Family,
    adapter: Path | None,
    prompts: list[str],
    pairs: list[tuple[int, int]],
    config: SampleConfig,
    on_progress: ProgressCallback,
) -> Iterator[tuple[int, int, Image.Image]]:
    """:func:`generate` for the given (prompt index, seed) pairs alone."""
    height, width = picture_size(family, config)
    pipeline = family.pipeline(adapter)
    options = family.pipeline_options()
    try:
        for start in range(0, len(pairs), config.batch_size):
            batch = pairs[start : start + config.batch_size]
            images = pipeline(
                prompt=[prompts[index] for index, _ in batch],
                latents=_initial_latents(family, [(prompts[index], seed) for index, seed in batch], height, width),
                num_inference_steps=config.steps,
                height=height,
                width=width,
                **family.guidance_options(config.guidance, len(batch)),
                **options,
            ).images
            on_progress(start + len(batch), len(pairs))
            for (index, seed), image in zip(batch, images, strict=True):
                yield index, seed, image
    finally:
        if adapter is not None:
            unload_adapter(pipeline)


def _initial_latents(family: Family, pictures: list[tuple[str, int]], height: int, width: int) -> torch.Tensor:
    scale = family.capabilities.latent_scale
    shape = (1, family.capabilities.latent_channels, height // scale, width // scale)
    noise = [rng.normal(shape, "sample", prompt, seed) for prompt, seed in pictures]
    return family.pipeline_latents(torch.cat(noise))
