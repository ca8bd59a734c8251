"""Pre-train the tiny FLUX by flow matching on the cached latents, at guidance 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from . import workers
from .flow import FluxObjective, build, matching_loss
from .workers import BATCH

SEED = 47
LEARNING_RATE = 1e-3
DECAY_FROM = 0.67  # of the budget: then linear


@dataclass(frozen=True)
class _FlowMatching(FluxObjective):
    name = "flow"
    seed = SEED
    learning_rate = LEARNING_RATE

    def start(self) -> FluxTransformer2DModel:
        return build()

    def solvers(self, model: FluxTransformer2DModel) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the blocks, AdamW for the rest (embeddings, modulations, output, vectors)."""
        matrices = [
            p for name, p in model.named_parameters() if p.ndim == 2 and "blocks" in name and "norm" not in name
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        return [
            torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01),
            torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        ]

    def rate(self, progress: float, step: int) -> float:
        decay = 1.0 if progress < DECAY_FROM else max(0.05, (1 - progress) / (1 - DECAY_FROM))
        return min(1.0, (step + 1) / 100) * decay

    def loss(self, model: FluxTransformer2DModel, number: int) -> Tensor:
        return matching_loss(model, self.batches, self.batches.draw(number, BATCH))


def train(work: Path, seconds: float) -> None:
    workers.train(_FlowMatching(work), seconds)
