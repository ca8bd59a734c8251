"""What all training stages share: a clock that survives restarts, averages, checkpoints, learning rates."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

SETTINGS = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=107374182400",
    "GOMP_SPINCOUNT": "20000",
}
CHECKPOINT_SECONDS = 120.0


def tune_process() -> None:
    """Restart this process once with settings that only count when they are there from the start.

    The allocator keeps freed blocks: training steps allocate and free the same large activations over and over, and
    unmapping them each time costs a third of the run. Threads soon sleep at barriers: endless spinning slows a
    machine shared with other work to a crawl.
    """
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if sys.platform == "linux" and missing:
        os.environ |= missing
        os.execv(sys.executable, [sys.executable, *sys.argv])


class Average:
    """Exponential moving average of a module's parameters and buffers, warmed up over the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)


def save_atomically(state: object, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, partial)
    partial.replace(path)


class Run:
    """A stage's budget in seconds of work, and its checkpoint: stopped at any time, it goes on where it was.

    Only seconds spent in this loop count, so an interrupted stage keeps its place in the learning-rate plan.
    """

    def __init__(self, path: Path, budget: float) -> None:
        self.path = path
        self.budget = budget
        self.state: dict = torch.load(path, weights_only=True) if path.exists() else {}
        self.spent: float = self.state.get("spent", 0.0)
        self._last = time.monotonic()
        self._saved = self._last

    @property
    def done(self) -> bool:
        return self.spent >= self.budget

    def tick(self) -> float:
        """Count the time since the last tick; returns the fraction of the budget used."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last = now
        return min(self.spent / self.budget, 1.0)

    @property
    def due(self) -> bool:
        return self.done or time.monotonic() - self._saved > CHECKPOINT_SECONDS

    def mark_saved(self) -> None:
        """Start the time to the next checkpoint anew (for a worker that has saved elsewhere)."""
        self._saved = time.monotonic()

    def save(self, **state: object) -> None:
        save_atomically({"spent": self.spent, **state}, self.path)
        self.mark_saved()


def cosine(progress: float, warm: float = 0.01, floor: float = 0.03) -> float:
    """Learning-rate factor at a fraction of the budget: linear warm-up, then a cosine down to ``floor``."""
    if progress < warm:
        return max(progress / warm, 0.01)
    position = torch.tensor((progress - warm) / (1 - warm) * torch.pi)
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(position)))


def to_unit(pixels: Tensor) -> Tensor:
    """Bytes ``[n, h, w, 3]`` to floats ``[n, 3, h, w]`` in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
