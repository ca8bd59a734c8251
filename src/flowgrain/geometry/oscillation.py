"""How much successive updates undo one another, measured over a stream of updates that is never stored.

Semantic Granularity Alignment, Fig. 6 and sections 3.4 and E.5, speaks of "oscillating gradient directions" and of
their "amplitude and frequency" without defining either. The measures here are ours. An update d_i is a parameter
difference or a gradient; for each measure the value of n independent random steps in many dimensions is given, since
that and not 0 is what "no oscillation" looks like.

    measure                      straight line   independent steps   +d, -d, +d, ...
    mean cosine of successors    1               0                   -1
    straightness |sum| / path    1               1 / sqrt(n)         0
    variance ratio               n               1                   0
    sign-flip rate               0               1/2                 1
    high-frequency share         0               1/2                 1

Read with care: an optimizer with momentum smooths parameter differences, which makes their successors alike whatever
the gradients do, so measure gradients too where arms with different optimizers meet; straightness depends on n, so
compare arms over windows of one length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ConfigError

_CHUNK = 1 << 20
"""Elements that are promoted to float64 at a time."""


def _dot(a: Float[Tensor, " p"], b: Float[Tensor, " p"]) -> float:
    pairs = zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)
    return sum((x.double() @ y.double()).item() for x, y in pairs)


@dataclass(frozen=True)
class OscillationMeasures:
    """Measures of a stream of updates; NaN where there are too few."""

    updates: int
    mean_cosine: float
    """Of each update with the one before, zero updates left out; negative: they undo one another."""
    straightness: float
    """Net displacement over path length, in [0, 1]."""
    random_straightness: float
    """sqrt(sum |d|^2) / sum |d|: what uncorrelated updates of these lengths have; 1 / sqrt(n) for equal lengths."""
    variance_ratio: float
    """|sum d|^2 / sum |d|^2: 1 for uncorrelated updates, more where they persist, less where they undo one another."""
    window_straightness: float
    """Mean straightness of the full windows of ``window`` updates."""
    windows: int
    sign_flip_rate: float
    """Share of coordinates that change sign from one update to the next, of those that are non-zero in both."""
    high_frequency_share: float
    """Energy of the updates at periods shorter than four updates, over all energy (zero frequency included)."""


class Oscillation:
    """Accumulates updates of one length; keeps four vectors and a sketch of each update.

    The spectrum is that of a count sketch (Charikar et al. 2002): each coordinate is added with a random sign to one of
    ``sketch`` buckets. Sketched inner products, hence the energy at each frequency, are unbiased; the relative standard
    deviation is at most sqrt(2 / sketch), reached for a single direction spread over many coordinates.
    Raises :class:`ConfigError` for a window below 2.
    """

    def __init__(self, generator: torch.Generator, *, window: int = 16, sketch: int = 256):
        if window < 2:
            raise ConfigError(f"window {window}: must be at least 2 updates")
        self._generator, self._window, self._buckets = generator, window, sketch
        self._count = 0
        self._path = self._square = 0.0
        self._cosines: list[float] = []
        self._straight: list[float] = []
        self._flips = self._signed = 0
        self._sketches: list[np.ndarray] = []
        self._window_path = 0.0

    def _start(self, step: Float[Tensor, " p"]) -> None:
        self._net, self._window_net = torch.zeros_like(step), torch.zeros_like(step)
        bucket = torch.randint(0, self._buckets, (len(step),), generator=self._generator)
        self._bucket = bucket.to(step.device)
        self._sign = (torch.randint(0, 2, (len(step),), generator=self._generator, dtype=torch.int8) * 2 - 1).to(step)

    def add(self, step: Tensor | Sequence[Tensor]) -> None:
        """Take in one update, flat or one tensor a parameter. Raises ValueError when its length differs."""
        tensors = [step] if isinstance(step, Tensor) else list(step)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        if self._count == 0:
            self._start(flat)
            norm = math.sqrt(_dot(flat, flat))
        else:
            if len(flat) != len(self._net):
                raise ValueError(f"an update of {len(flat)} numbers after updates of {len(self._net)}")
            norm = math.sqrt(_dot(flat, flat))
            if norm > 0 and self._norm > 0:
                self._cosines.append(_dot(flat, self._previous) / (norm * self._norm))
            signs = torch.sign(flat) * torch.sign(self._previous)
            self._flips += int((signs < 0).sum())
            self._signed += int((signs != 0).sum())
        self._net += flat
        self._path += norm
        self._square += norm * norm
        self._count += 1
        self._add_to_window(flat, norm)
        sketch = torch.zeros(self._buckets, dtype=torch.float64, device=flat.device)
        self._sketches.append(sketch.index_add_(0, self._bucket, (flat * self._sign).double()).cpu().numpy())
        self._previous, self._norm = flat, norm

    def _add_to_window(self, flat: Float[Tensor, " p"], norm: float) -> None:
        self._window_net += flat
        self._window_path += norm
        if self._count % self._window == 0:
            if self._window_path > 0:
                self._straight.append(math.sqrt(_dot(self._window_net, self._window_net)) / self._window_path)
            self._window_net.zero_()
            self._window_path = 0.0

    def measures(self) -> OscillationMeasures:
        """What the updates so far show."""
        net = _dot(self._net, self._net) if self._count else 0.0
        moved = self._path > 0
        return OscillationMeasures(
            updates=self._count,
            mean_cosine=float(np.mean(self._cosines)) if self._cosines else math.nan,
            straightness=math.sqrt(net) / self._path if moved else math.nan,
            random_straightness=math.sqrt(self._square) / self._path if moved else math.nan,
            variance_ratio=net / self._square if moved else math.nan,
            window_straightness=float(np.mean(self._straight)) if self._straight else math.nan,
            windows=len(self._straight),
            sign_flip_rate=self._flips / self._signed if self._signed else math.nan,
            high_frequency_share=high_frequency_share(np.stack(self._sketches)) if self._count > 1 else math.nan,
        )

    def energy_by_frequency(self) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
        """Frequencies in cycles an update, 0 to 1/2, and the share of the updates' energy at each."""
        return step_spectrum(np.stack(self._sketches))


def step_spectrum(steps: Float[np.ndarray, "n k"]) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Energy shares of a sequence of (projected) updates by frequency; sums to 1, NaN for zero updates.

    Of the updates and not of the positions, whose energy is nearly all drift; the mean is not taken out, so that steady
    progress counts at frequency 0.
    """
    power = np.square(np.abs(np.fft.rfft(steps, axis=0))).sum(axis=1)
    twice = np.full(len(power), 2.0)
    twice[0] = 1.0
    if len(steps) % 2 == 0:
        twice[-1] = 1.0
    energy = power * twice
    total = energy.sum()
    return np.fft.rfftfreq(len(steps)), energy / total if total > 0 else np.full(len(energy), np.nan)


def high_frequency_share(steps: Float[np.ndarray, "n k"], cutoff: float = 0.25) -> float:
    """Share of the energy of :func:`step_spectrum` above ``cutoff`` cycles an update; energy at it counts half.

    At the default independent steps have 1/2 in expectation for n divisible by 4, and nearly so otherwise.
    """
    frequency, share = step_spectrum(steps)
    return float(share[frequency > cutoff].sum() + share[frequency == cutoff].sum() / 2)
