"""Progress through the budget, the learning-rate factor and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowgrain.train.recipe import BudgetConfig, ScheduleConfig


@dataclass(frozen=True)
class Progress:
    """How far a run is: counters that go on over a resume."""

    epoch: int = 0
    window: int = 0
    """Updates done within the epoch."""
    updates: int = 0
    slices: int = 0
    roots: int = 0
    seconds: float = 0.0
    """Training time alone: no caching, validation or saving."""

    def after_update(self, slices: int, roots: int, seconds: float) -> "Progress":
        """Counters after one more update."""
        return replace(
            self,
            window=self.window + 1,
            updates=self.updates + 1,
            slices=self.slices + slices,
            roots=self.roots + roots,
            seconds=self.seconds + seconds,
        )

    def next_epoch(self) -> "Progress":
        """Counters at the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, window=0)


def spent(progress: Progress, budget: BudgetConfig) -> float:
    """Part of N1 that is spent; 1.0 = N1."""
    return float(getattr(progress, budget.unit)) / budget.amount


def milestones_reached(before: Progress, after: Progress, budget: BudgetConfig) -> tuple[float, ...]:
    """Multiples of N1 that the update between ``before`` and ``after`` has reached."""
    old, new = spent(before, budget), spent(after, budget)
    # a last update of 0.9999... (seconds, slices) never counts twice: reached means crossed
    return tuple(multiple for multiple in budget.checkpoints if old < multiple <= new)


def finished(progress: Progress, budget: BudgetConfig) -> bool:
    """True when the largest multiple of N1 is spent."""
    return spent(progress, budget) >= budget.checkpoints[-1]


def learning_rate_factor(config: ScheduleConfig, progress: Progress, budget: BudgetConfig) -> float:
    """Factor on the peak rate for the update that follows ``progress``, in [0, 1]."""
    warm = 1.0 if config.warmup == 0 else min(1.0, (progress.updates + 1) / config.warmup)
    done = min(1.0, spent(progress, budget) / budget.checkpoints[-1])
    if config.kind == "constant":
        decay = 1.0
    elif config.kind == "linear":
        decay = config.final + (1 - config.final) * (1 - done)
    else:
        decay = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
    return warm * decay


class Ema:
    """Exponential moving average of parameters, in their own dtype."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], decay: float):
        self._parameters = parameters
        self._decay = decay
        self.values: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters}

    def update(self) -> None:
        """values <- decay * values + (1 - decay) * parameters."""
        for name, parameter in self._parameters:
            self.values[name].lerp_(parameter.detach(), 1 - self._decay)

    def load(self, values: dict[str, Tensor]) -> None:
        """Take over saved averages."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Run a block with the averages in the model, then put the parameters back."""
        with torch.no_grad():
            kept = {name: parameter.detach().clone() for name, parameter in self._parameters}
            for name, parameter in self._parameters:
                parameter.copy_(self.values[name])
            try:
                yield
            finally:
                for name, parameter in self._parameters:
                    parameter.copy_(kept[name])
