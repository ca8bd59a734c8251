"""Spatial structure of pictures by two vision models: does a picture's Gram matrix correlate with that of the real one?

Two kinds of pictures are held against real held-out ones. *Denoised*: the real picture is noised to a level and
predicted in one step; noise depends on the picture and the level alone, so all arms see the same. *Drawn*: from noise
and a prompt that names the real picture; nothing ties its layout to it but the style. The number is the correlation of
the off-diagonal similarities of 8 x 8 places (:func:`flowgrain.align.structure.similarity_correlation`), which no arm
minimises, and for an arm that trained with one of the encoders the other one is meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.gram import unit_rows
from flowgrain.align.grids import Grid
from flowgrain.align.structure import similarity_correlation
from flowgrain.data.config import DataConfig
from flowgrain.data.dataset import open_dataset
from flowgrain.data.images import open_image, to_tensor
from flowgrain.demo.domains import Domain
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.granularity import GRANULARITIES

from .gram_design import OTHER
from .measuring import Drawn
from .running import GUIDANCE, held_out

PLACES = Grid(8, 8)
LEVELS = (0.5, 0.8)
"""Noise levels of denoised pictures: half of the amplitude is noise; the layout alone is left."""
WHOLE = GRANULARITIES.index("macro")
DIGITS = 4


@dataclass(frozen=True)
class HeldOut:
    """Real held-out whole pictures in [-1, 1]."""

    names: list[str]
    captions: list[str]
    pixels: Float[Tensor, "n 3 h w"]


def held_out_pictures(domain: Domain, work: Path, multiple: int) -> HeldOut:
    """The whole pictures of the decomposed held-out set, by name."""
    dataset = open_dataset(DataConfig(path=held_out(domain, work)), multiple)
    rows = [index for index, item in enumerate(dataset.slices) if item.granularity == WHOLE]
    rows.sort(key=lambda index: dataset.slices[index].root)
    return HeldOut(
        [dataset.slices[index].root for index in rows],
        [dataset.slices[index].caption for index in rows],
        torch.stack([dataset.pixels(index) for index in rows]),
    )


class Structure:
    """Both encoders, and the real pictures' unit tokens in them."""

    def __init__(self, real: HeldOut):
        self.real = real
        self._encoders: dict[str, StructureEncoder] = {
            name: open_structure_encoder(EncoderConfig(model=name), "cpu") for name in OTHER
        }
        self._rows = {name: self._encoded(name, real.pixels) for name in self._encoders}

    def correlations(
        self, pixels: Float[Tensor, "n 3 h w"], against: Sequence[int] | None = None
    ) -> dict[str, list[float]]:
        """By encoder, one number a picture; ``against`` says of which real one, the same row where it is None."""
        rows = list(range(len(pixels))) if against is None else list(against)
        found = {}
        for name, real in self._rows.items():
            values = similarity_correlation(self._encoded(name, pixels), real[rows])
            # pictures of one colour have no similarities to correlate: they share nothing with the real one
            found[name] = [round(value, DIGITS) for value in values.nan_to_num(0.0).tolist()]
        return found

    def _encoded(self, name: str, pixels: Tensor) -> Tensor:
        parts = [self._encoders[name].tokens(part, PLACES) for part in pixels.split(16)]
        return unit_rows(torch.cat(parts))


@torch.no_grad()
def denoised(family: Family, real: HeldOut, level: float) -> Float[Tensor, "n 3 h w"]:
    """What ``family``, with whatever adapter is in it, makes of real pictures at a noise level, in one step."""
    path = family.default_path()
    posterior = family.encode_pixels(real.pixels)
    x0 = family.latents(posterior, torch.zeros_like(posterior.mean)).float()
    noise = torch.stack([rng.normal(tuple(x0.shape[1:]), "gram evidence", name, f"{level:g}") for name in real.names])
    t = torch.full((len(x0),), level, dtype=torch.float64)
    sample = path(x0, noise, t)
    conditioning = family.condition(ConditionInputs(real.captions, None, guidance=GUIDANCE["flux"]))
    velocity = family.predict(sample.x_t, sample.times, conditioning).prediction.float()
    return family.decode(path.velocity_to_x0(velocity, sample.x_t, t.float())).float().clamp(-1, 1)


def measure_structure(family: Family, drawn: Drawn, structure: Structure) -> dict[str, Any]:
    """``denoised`` by level: PSNR in dB and correlations; ``drawn``: correlations with the picture a prompt names."""
    found: dict[str, Any] = {"denoised": {}}
    for level in LEVELS:
        pictures = denoised(family, structure.real, level)
        error = (pictures - structure.real.pixels).square().mean(dim=(1, 2, 3)) / 4
        psnr = -10 * error.clamp(min=1e-10).log10()
        found["denoised"][f"{level:g}"] = {
            "psnr": [round(value, DIGITS) for value in psnr.tolist()], **structure.correlations(pictures)
        }  # fmt: skip
    pixels = torch.stack([to_tensor(open_image(file)) for file in drawn.files])
    own = [structure.real.captions.index(prompt) for prompt in drawn.prompts]
    found["drawn"] = {"prompts": len(set(drawn.prompts)), **structure.correlations(pixels, own)}
    return found
