"""How hard an alignment term pulls: its gradient in adapter space over that of the squared error.

Weights of terms of different kinds mean different things: a Gram loss is a tenth of a cosine loss and less. So arms are
also compared at equal pull. Measured on the same pictures and noise levels for all arms: at the start, where the heads
are untrained and the adapter is the identity, and at the end of the run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowgrain.data.records import Update
from flowgrain.train.objective import HEADS, FineTuning
from flowgrain.train.recipe import Recipe
from flowgrain.train.resume import load_parameters
from flowgrain.train.setup import Session, prepare
from flowgrain.train.state import read_tensors
from flowgrain.train.step import accumulate

PROBE_EPOCH = 10_000
"""Of the plan whose updates are measured: noise that no run has seen."""
UPDATES = 4


def measure_pull(recipe: Recipe, checkpoint: Path) -> dict[str, dict[str, float]]:
    """``start`` and ``end``: :func:`pull` of the recipe's terms at their weights."""
    session = prepare(recipe.model_copy(update={"validation": None}), lambda _what, _done, _total: None)
    updates = session.plan(PROBE_EPOCH)[:UPDATES]
    found = {"start": pull(session, updates)}
    load_parameters(session.objective.parameters(), checkpoint, read_tensors(checkpoint)[0])
    return {**found, "end": pull(session, updates)}


def pull(session: Session, updates: Sequence[Update]) -> dict[str, float]:
    """``ratio`` |g term| / |g error| and ``cosine``, of gradients with respect to the adapter, means over updates."""
    ratios, cosines = [], []
    for update in updates:
        plain = _gradient(session, replace(session.objective, terms=()), update)
        term = _gradient(session, session.objective, update) - plain
        ratios.append(float(term.norm() / plain.norm()))
        cosines.append(float(term @ plain / (term.norm() * plain.norm()).clamp(min=1e-30)))
    return {"ratio": sum(ratios) / len(ratios), "cosine": sum(cosines) / len(cosines)}


def _gradient(session: Session, objective: FineTuning, update: Update) -> Tensor:
    """Of one update, of the adapter's parameters alone, float64."""
    parameters = session.objective.parameters()
    for _, parameter in parameters:
        parameter.grad = None
    accumulate(objective, (session.builder.build(m, PROBE_EPOCH) for m in update.micro_batches), session.autocast)
    own = [p for name, p in parameters if not name.startswith(HEADS)]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    gradient = torch.cat([part.detach().double().flatten() for part in parts])
    for _, parameter in parameters:
        parameter.grad = None
    return gradient
