"""Preview pictures during a run: the same prompts and seeds at every interval, drawn as ``flowgrain sample`` draws.

A preview depends on the weights, the prompt and its seed alone: it draws nothing from the run's random numbers, so a
run with previews is bitwise the run without.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from flowgrain.adapters.base import Adapter
from flowgrain.config import Config
from flowgrain.families.base import Family
from flowgrain.files import atomic_directory, atomic_write_bytes
from flowgrain.sample.generate import SampleConfig, generate, picture_size
from flowgrain.sample.pictures import png_bytes
from flowgrain.train.log import RunLog

PREVIEWS = "previews"


class PreviewConfig(Config):
    """What is drawn during a run, and how often."""

    prompts: tuple[str, ...] = Field(min_length=1, description="prompts to draw, the same each time")
    every: int | None = Field(
        default=None, gt=0, description="updates between previews; they are drawn at the checkpoints of N1 as well"
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="each prompt is drawn with each seed")
    sampler: SampleConfig = Field(default_factory=SampleConfig, description="steps, guidance and size")


class Previewer:
    """Draws the previews of a run with its live adapter."""

    def __init__(
        self,
        family: Family,
        adapter: Adapter,
        config: PreviewConfig,
        folder: Path,
        autocast: Callable[[], torch.autocast],
        offload_encoders: bool,
    ):
        picture_size(family, config.sampler)  # a wrong size is an error before training, not at the first preview
        self._family = family
        self._adapter = adapter
        self._config = config
        self._folder = folder
        self._autocast = autocast
        self._offload_encoders = offload_encoders

    def folder(self, update: int) -> Path:
        """Where the pictures after ``update`` updates go."""
        return self._folder / PREVIEWS / f"update-{update:06d}"

    def draw(self, update: int, log: RunLog | None) -> None:
        """Draw all previews; where ``log`` is given they are written as PNG files, all or none, and logged."""
        config, folder = self._config, self.folder(update)
        self._adapter.train(False)
        try:
            with self._autocast():
                pictures = list(
                    generate(self._family, None, list(config.prompts), list(config.seeds), config.sampler, _silent)
                )
        finally:
            self._adapter.train(True)
            if self._offload_encoders:
                self._family.offload_encoders()
        if log is None:
            return
        with atomic_directory(folder) as temporary:
            for index, seed, image in pictures:
                atomic_write_bytes(temporary / f"{index:02d}-seed{seed}.png", png_bytes(image))
        for index, seed, image in pictures:
            log.picture(f"{index:02d} {config.prompts[index][:60]} (seed {seed})", np.asarray(image), update)


def _silent(_done: int, _total: int) -> None:
    """No progress: previews are few."""
