"""The tiny FLUX: its architecture, its batches, its flow-matching loss and its validation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import workers
from .latents import Cache

CAPTION_DROP = 0.1
OBLONG_PART = 0.1
KIND_WEIGHTS = {"whole": 0.72, "close-up": 0.08, "extreme close-up": 0.06}  # two crops of each close kind
TIME_MEAN, TIME_STD = 0.3, 1.1  # logit-normal, leaning to noise: shapes are decided there
VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def build() -> FluxTransformer2DModel:
    """The transformer with adaLN-zero initialisation: every block starts as the identity, the output at zero."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    modulations: list[nn.Module] = [model.norm_out.linear, model.proj_out]
    for block in model.transformer_blocks:
        modulations += [block.norm1.linear, block.norm1_context.linear]
    modulations += [block.norm.linear for block in model.single_transformer_blocks]
    for layer in modulations:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def pack(latents: Tensor) -> Tensor:
    count, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, count, channels, height, width)


def velocity(
    model: FluxTransformer2DModel,
    packed: Tensor,
    grid: tuple[int, int],
    times: Tensor,
    text: tuple[Tensor, Tensor],
    guidance: Tensor,
) -> Tensor:
    """The model's velocity for packed latents on a grid of (height, width) tokens; text is (pooled, sequence)."""
    pooled, sequence = text
    image_ids = FluxPipeline._prepare_latent_image_ids(len(packed), *grid, packed.device, torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        return model(
            hidden_states=packed,
            timestep=times,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(sequence.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
        )[0]


@dataclass(frozen=True)
class Batch:
    """Clean and noised packed latents with their times, caption numbers and token grid."""

    clean: Tensor
    noise: Tensor
    times: Tensor
    captions: Tensor
    grid: tuple[int, int]

    @property
    def noised(self) -> Tensor:
        level = self.times.view(-1, 1, 1)
        return (1 - level) * self.clean + level * self.noise

    @property
    def target(self) -> Tensor:
        return self.noise - self.clean


class Batches:
    """Batch number ``step``, the same for every optimizer and every restart: concepts and styles equally often."""

    def __init__(self, cache: Cache, seed: int) -> None:
        self.cache, self.seed = cache, seed
        self.packed = {name: pack(part) for name, part in cache.latents.items()}
        self.grids = {name: (part.shape[2] // 2, part.shape[3] // 2) for name, part in cache.latents.items()}
        taught = set(cache.taught)
        self.weights = {name: torch.tensor([float(c in taught) for c in cache.concepts[name]]) for name in self.packed}
        self.weights["square"] *= torch.tensor([KIND_WEIGHTS[kind] for kind in cache.kinds["square"]])

    def draw(self, step: int, size: int) -> Batch:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        pick = torch.rand((), generator=generator).item()
        name = "square" if pick >= OBLONG_PART else ("portrait" if pick < OBLONG_PART / 2 else "landscape")
        rows = torch.multinomial(self.weights[name], size, generator=generator)
        times = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(size, generator=generator))
        captions = self.cache.caption[name][rows].clone()
        captions[torch.rand(size, generator=generator) < CAPTION_DROP] = 0
        clean = self.packed[name][rows]
        noise = torch.randn(clean.shape, generator=generator)
        return Batch(clean, noise, times, captions, self.grids[name])

    def text(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        return self.cache.pooled[captions], self.cache.sequence[captions]


def matching_loss(model: FluxTransformer2DModel, batches: Batches, batch: Batch) -> Tensor:
    """Mean squared velocity error at guidance 1."""
    guidance = torch.ones(len(batch.times))
    with torch.autocast("cpu", torch.bfloat16):
        out = velocity(model, batch.noised, batch.grid, batch.times, batches.text(batch.captions), guidance)
    return (out.float() - batch.target).pow(2).mean()


@dataclass(frozen=True)
class FluxObjective(workers.Objective):
    """What pre-training and distillation of the tiny FLUX share."""

    @cached_property
    def batches(self) -> Batches:
        return Batches(Cache.load(self.work), self.seed)

    def build(self) -> FluxTransformer2DModel:
        return build()

    def validate(self, model: nn.Module) -> dict[str, float]:
        return validate(model, self.batches)


@torch.no_grad()
def validate(model: FluxTransformer2DModel, batches: Batches) -> dict[str, float]:
    """Loss on whole pictures of held-out concepts and of taught ones, at fixed times and noise."""
    kinds, weights = batches.cache.kinds["square"], batches.weights["square"]
    whole = [index for index, kind in enumerate(kinds) if kind == "whole" and weights[index] > 0][::5]
    held_out = list(range(len(batches.packed["held_out"])))
    result = {}
    for name, part, rows in (("held_out", "held_out", held_out), ("taught", "square", whole)):
        clean = batches.packed[part][rows]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
        losses = []
        for time in VALIDATION_TIMES:
            times = torch.full((len(rows),), time)
            captions = batches.cache.caption[part][rows]
            losses.append(
                matching_loss(model, batches, Batch(clean, noise, times, captions, batches.grids[part])).item()
            )
        result[name] = round(sum(losses) / len(losses), 4)
    return result
