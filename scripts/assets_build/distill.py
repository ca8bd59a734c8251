"""Teach the guidance input its meaning: one pass at guidance g gives what two passes of the pre-trained model give.

The teacher is the pre-trained average itself at guidance 1. Its two-pass answer for strength g is
``empty + g * (caption - empty)``; at g = 1 that is its plain answer, so guidance 1 stays the conditional model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from . import workers
from .flow import Batch, FluxObjective, build, velocity
from .training import cosine
from .workers import BATCH

SEED = 59
LEARNING_RATE = 4e-4
MAXIMUM_GUIDANCE = 5.0
PLAIN_PART = 0.25  # of the batch: guidance exactly 1


@dataclass(frozen=True)
class _GuidanceDistillation(FluxObjective):
    name = "distill"
    seed = SEED
    learning_rate = LEARNING_RATE

    def start(self) -> FluxTransformer2DModel:
        model = build()
        model.load_state_dict(torch.load(self.work / "flow" / "final.pt", weights_only=True)["weights"])
        return model

    @cached_property
    def teacher(self) -> FluxTransformer2DModel:
        return self.start().requires_grad_(False)

    def solvers(self, model: FluxTransformer2DModel) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)]

    def rate(self, progress: float, step: int) -> float:
        return min(1.0, (step + 1) / 30) * cosine(progress)

    def loss(self, model: FluxTransformer2DModel, number: int) -> Tensor:
        """Mean squared distance to the teacher, lighter for strong guidance, whose velocities are larger."""
        batch, guidance = self.batches.draw(number, BATCH), _strengths(number)
        wanted = self._teach(batch, guidance)
        text = self.batches.text(batch.captions)
        with torch.autocast("cpu", torch.bfloat16):
            out = velocity(model, batch.noised, batch.grid, batch.times, text, guidance)
        return ((out.float() - wanted).pow(2).mean(dim=(1, 2)) / guidance).mean()

    def _teach(self, batch: Batch, guidance: Tensor) -> Tensor:
        captions = torch.cat([batch.captions, torch.zeros_like(batch.captions)])
        text, ones = self.batches.text(captions), torch.ones(2 * len(guidance))
        noised, times = batch.noised.repeat(2, 1, 1), batch.times.repeat(2)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            out = velocity(self.teacher, noised, batch.grid, times, text, ones).float()
        worded, empty = out.split(len(guidance))
        return empty + guidance.view(-1, 1, 1) * (worded - empty)


def _strengths(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + number)
    strengths = 1 + (MAXIMUM_GUIDANCE - 1) * torch.rand(BATCH, generator=generator)
    strengths[: int(BATCH * PLAIN_PART)] = 1.0
    return strengths


def train(work: Path, seconds: float) -> None:
    workers.train(_GuidanceDistillation(work), seconds)
