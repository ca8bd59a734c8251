"""Data latents that are read in pieces, and query points drawn from their law p_t (Eqs. 10 and 26)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain import rng
from flowgrain.errors import DataError
from flowgrain.flow.paths import Path


class LatentSource(ABC):
    """N data latents of one shape that can be read in pieces, more than once."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Float[Tensor, "n *shape"]:
        """Latents ``start`` to ``stop`` - 1, any float type."""


class ArrayLatents(LatentSource):
    """Latents in one tensor or array; an ``np.memmap`` is read piece by piece."""

    def __init__(self, array: Tensor | np.ndarray):
        if array.ndim < 2 or len(array) == 0:
            raise DataError(f"latents of shape {tuple(array.shape)}: give an array with a row for each latent")
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """See :attr:`LatentSource.shape`."""
        return tuple(self._array.shape[1:])

    def __len__(self) -> int:
        return len(self._array)

    def read(self, start: int, stop: int) -> Float[Tensor, "n *shape"]:
        """See :meth:`LatentSource.read`."""
        piece = self._array[start:stop]
        # a copy: a piece of a read-only map cannot back a tensor
        return piece if isinstance(piece, Tensor) else torch.from_numpy(np.array(piece))


@dataclass(frozen=True, eq=False)
class DrawnQueries:
    """Points drawn from p_t: noised latents of the data themselves."""

    x: Float[Tensor, "m *shape"]
    t: Float[Tensor, " m"]
    index: Int[Tensor, " m"]
    """Which latent each comes from: the cluster of a bootstrap, since levels share their latents."""


def draw_queries(
    latents: LatentSource,
    path: Path,
    levels: list[float],
    per_level: int,
    seed: int,
    weights: Float[Tensor, " n"] | None = None,
) -> DrawnQueries:
    """``per_level`` points of p_t at each noise level, of the same latents at all levels, distinct while they last."""
    generator = rng.numpy_generator(seed, "query latents")
    if weights is None:
        rounds = -(-per_level // len(latents))
        chosen = np.concatenate([generator.permutation(len(latents)) for _ in range(rounds)])[:per_level]
    else:
        share = log_sample_weights(weights, len(latents)).exp().cpu().numpy()
        chosen = generator.choice(len(latents), per_level, p=share / share.sum())
    index = torch.from_numpy(chosen).repeat(len(levels))
    t = torch.tensor(levels, dtype=torch.float64).repeat_interleave(per_level)
    clean = torch.cat([latents.read(int(i), int(i) + 1) for i in chosen]).double().cpu()
    noise = torch.stack(
        [rng.normal(latents.shape, seed, k, j, "query noise") for k in range(len(levels)) for j in range(per_level)]
    )
    alpha, sigma, _, _ = coefficients_at(path, t)
    spread = (-1, *[1] * len(latents.shape))
    x = alpha.view(spread) * clean.repeat(len(levels), *[1] * len(latents.shape)) + sigma.view(spread) * noise.double()
    return DrawnQueries(x, t, index)


def read_rows(latents: LatentSource, start: int, stop: int, device: torch.device) -> Float[Tensor, "c d"]:
    """Latents ``start`` to ``stop`` - 1 as float64 rows. Raises :class:`DataError` unless all are there and finite."""
    rows = latents.read(start, stop).to(device=device, dtype=torch.float64).flatten(1)
    if len(rows) != stop - start or not bool(rows.isfinite().all()):
        raise DataError(f"latents {start} to {stop - 1}: {len(rows)} rows were read, all must be there and finite")
    return rows


def coefficients_at(path: Path, t: Float[Tensor, " m"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma and their derivatives at each query, float64."""
    c = path.coefficients(t)
    values = tuple(part.double().flatten() for part in (c.alpha, c.sigma, c.d_alpha, c.d_sigma))
    if any(len(part) != len(t) for part in values):
        raise DataError("this path has several noise levels a sample: group fields need one level for all channels")
    return values[0], values[1], values[2], values[3]


def log_sample_weights(weights: Float[Tensor, " n"], samples: int) -> Float[Tensor, " n"]:
    """log of what each sample counts. Raises :class:`DataError` unless all are positive and finite."""
    if len(weights) != samples or not bool(((weights > 0) & weights.isfinite()).all()):
        raise DataError(f"{len(weights)} sample weights for {samples} latents: give each a positive finite one")
    return weights.double().log()
