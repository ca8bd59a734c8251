"""What is seen of an autoencoder while it trains: numbers on held-out pictures, and pictures beside reconstructions.

Both decode the posterior's mean and draw nothing random, so they are the same for every run. ``flowgrain reconstruct``
measures more (SSIM, LPIPS, Frechet distances, intervals), on whole pictures.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from flowgrain.data.dataset import SliceDataset
from flowgrain.data.images import from_tensor
from flowgrain.files import atomic_directory, atomic_write_bytes
from flowgrain.granularity import GRANULARITIES
from flowgrain.sample.pictures import png_bytes
from flowgrain.train.log import RunLog
from flowgrain.train.previews import PREVIEWS
from flowgrain.train.runtime import Runtime
from flowgrain.vae.config import VaeLossConfig
from flowgrain.vae.perceptual import PerceptualLoss
from flowgrain.vae.reconstruction import reconstruction_error

SMALLEST_ERROR = 1e-10
"""Mean squared error of pictures in [0, 1] below which they are equal: 100 dB."""


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) in [-1, 1] encoded and decoded by the posterior's mean, float32, clipped."""
    model: Any = vae
    return model.decode(model.encode(pixels).latent_dist.mode()).sample.float().clamp(-1, 1)


class VaeValidator:
    """Measures an autoencoder on one held-out data set."""

    def __init__(
        self,
        dataset: SliceDataset,
        vae: AutoencoderKL,
        perceptual: PerceptualLoss | None,
        config: VaeLossConfig,
        batch_size: int,
        device: torch.device,
        runtime: Runtime,
    ):
        self._dataset = dataset
        self._vae = vae
        self._perceptual = perceptual
        self._config = config
        self._batch_size = batch_size
        self._device = device
        self._runtime = runtime

    def measure(self, autocast: Callable[[], torch.autocast]) -> dict[str, Any]:
        """``loss``: pixel error plus the weighted perceptual one, by level too; ``scores``: means over pictures.

        ``psnr`` in dB (100 for equal pictures), ``nmse`` and its root ``nrmse`` of pictures in [0, 1], ``perceptual``
        where there is one. Processes share the pictures and all return the same.
        """
        rows: dict[int, dict[str, float]] = {}
        for indices in self._groups()[self._runtime.rank :: self._runtime.world]:
            pixels = torch.stack([self._dataset.pixels(i) for i in indices]).to(self._device)
            with autocast():
                output = reconstructed(self._vae, pixels)
            columns = {name: values.double().tolist() for name, values in self._columns(pixels, output).items()}
            rows |= {i: {name: column[k] for name, column in columns.items()} for k, i in enumerate(indices)}
        whole = {index: row for part in self._runtime.gather(rows) for index, row in part.items()}
        ordered = [whole[index] for index in sorted(whole)]
        means = {name: sum(row[name] for row in ordered) / len(ordered) for name in ordered[0]}
        by_level: dict[str, list[float]] = defaultdict(list)
        for index in sorted(whole):
            by_level[GRANULARITIES[self._dataset.slices[index].granularity]].append(whole[index]["loss"])
        return {
            "loss": means.pop("loss"),
            "by_level": {level: [sum(values) / len(values)] for level, values in by_level.items()},
            "scores": means,
        }

    @torch.no_grad()
    def _columns(self, pixels: Tensor, output: Tensor) -> dict[str, Tensor]:
        wanted, found = (1 + pixels) / 2, (1 + output) / 2
        squares = (found - wanted).square().mean(dim=(1, 2, 3))
        relative = squares / wanted.square().mean(dim=(1, 2, 3)).clamp(min=SMALLEST_ERROR)
        loss = reconstruction_error(output, pixels, self._config.reconstruction.norm)
        columns = {
            "psnr": -10 * squares.clamp(min=SMALLEST_ERROR).log10(),
            "nmse": relative,
            "nrmse": relative.sqrt(),
        }
        if self._perceptual is not None:
            columns["perceptual"] = self._perceptual(output, pixels)
            loss = loss + self._config.perceptual.weight * columns["perceptual"]
        return {"loss": loss, **columns}

    def _groups(self) -> list[list[int]]:
        by_bucket: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, item in enumerate(self._dataset.slices):
            by_bucket[item.bucket].append(index)
        size = self._batch_size
        return [group[i : i + size] for group in by_bucket.values() for i in range(0, len(group), size)]


class PairPreviewer:
    """Draws originals beside their reconstructions."""

    def __init__(self, dataset: SliceDataset, vae: AutoencoderKL, count: int, output: Path, device: torch.device):
        self._dataset = dataset
        self._vae = vae
        self._count = min(count, len(dataset))
        self._output = output
        self._device = device

    def folder(self, updates: int) -> Path:
        """Where the pictures after ``updates`` updates go."""
        return self._output / PREVIEWS / f"update-{updates:06d}"

    def draw(self, updates: int, log: RunLog, autocast: Callable[[], torch.autocast]) -> None:
        """Write and log the first pictures, original on the left."""
        with atomic_directory(self.folder(updates)) as folder:
            for index in range(self._count):
                pixels = self._dataset.pixels(index)
                with autocast():
                    output = reconstructed(self._vae, pixels[None].to(self._device))[0].cpu()
                image = from_tensor(torch.cat([pixels, output], dim=2))
                name = f"{index:02d}"
                atomic_write_bytes(folder / f"{name}.png", png_bytes(image))
                log.picture(f"{name} {self._dataset.slices[index].slice_id[:60]}", np.asarray(image), updates)
