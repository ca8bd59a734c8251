"""How much the last updates undo one another, from sketches that fit in a checkpoint.

:class:`flowgrain.geometry.oscillation.Oscillation` keeps vectors as long as the parameters, which a run that resumes
exactly would have to save. So each step is kept as a count sketch (Charikar et al. 2002): every coordinate is added
with a random sign to one of ``BUCKETS`` numbers. Inner products of sketches are unbiased, with a standard deviation of
about |a| |b| / sqrt(BUCKETS), 3 per cent; only the sign-flip rate is lost.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowgrain import rng
from flowgrain.geometry.oscillation import Oscillation, high_frequency_share

WINDOW = 16
"""Updates that a measurement looks back on: straightness depends on their number, so it is the same everywhere."""

BUCKETS = 1024

_PREFIX = "interference.step."


class StepSketches:
    """Sketches of the parameter differences of the updates that the next measurement will look back on."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], every: int):
        self._parameters = parameters
        self._every = every
        self._sketches: dict[int, Tensor] = {}
        self._before: list[Tensor] | None = None
        self._targets: list[Tensor] = []

    @torch.no_grad()
    def before(self, number: int) -> None:
        """Remember the parameters that update ``number`` starts from, where a measurement will look back on it."""
        needed = -number % self._every < WINDOW
        self._before = [parameter.detach().clone() for _, parameter in self._parameters] if needed else None

    @torch.no_grad()
    def after(self, number: int) -> None:
        """Sketch what update ``number`` changed."""
        if self._before is None:
            return
        if not self._targets:
            self._targets = [self._target(name, parameter) for name, parameter in self._parameters]
        sums = torch.zeros(2 * BUCKETS, device=self._targets[0].device)
        for (_, parameter), before, target in zip(self._parameters, self._before, self._targets, strict=True):
            sums.index_add_(0, target, (parameter.float() - before.float()).flatten())
        self._before = None
        self._sketches[number] = (sums[:BUCKETS] - sums[BUCKETS:]).cpu()
        self._sketches = {key: value for key, value in self._sketches.items() if key > number - WINDOW}

    @staticmethod
    def _target(name: str, parameter: nn.Parameter) -> Tensor:
        """Of each coordinate the bucket, plus ``BUCKETS`` for the sign -1."""
        generator = rng.generator("interference sketch", name)
        target = torch.randint(0, 2 * BUCKETS, (parameter.numel(),), generator=generator, dtype=torch.int32)
        return target.to(parameter.device)

    def measures(self, number: int) -> dict[str, Any]:
        """Of the updates up to ``number`` without a gap, ``WINDOW`` at most; NaN where there are too few."""
        first = number
        while first - 1 in self._sketches:
            first -= 1
        steps = torch.stack([self._sketches[key] for key in range(first, number + 1)]).double()
        stream = Oscillation(rng.generator("interference oscillation"), window=WINDOW)
        for step in steps:
            stream.add(step)
        found = stream.measures()
        return {
            "updates": found.updates,
            "mean_cosine": found.mean_cosine,
            "straightness": found.straightness,
            "random_straightness": found.random_straightness,
            "variance_ratio": found.variance_ratio,
            "high_frequency_share": _high_frequency_share(steps.numpy()),
        }

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: 4 KiB an update."""
        return {f"{_PREFIX}{number}": value for number, value in self._sketches.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what a checkpoint kept; one without sketches leaves the first window short."""
        found = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self._sketches = {int(number): found[number] for number in sorted(found, key=int)}


def _high_frequency_share(steps: np.ndarray) -> float:
    return high_frequency_share(steps) if len(steps) > 1 else math.nan
