"""Query points of a diagnosis: noised training latents, the same for every checkpoint and partition."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.diagnose.config import FLOW_LEVELS, DiagnoseConfig
from flowgrain.diagnose.latents import LatentSpace
from flowgrain.flow.paths import Path
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.geometry.queries import coefficients_at


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """Points of p_t in one space."""

    space: LatentSpace
    row: tuple[int, ...]
    """Latent of the space that each point is of."""
    x: Float[Tensor, "m c h w"]
    """float32: what the model is given and the fields are taken at."""
    t: Float[Tensor, " m"]

    @property
    def slices(self) -> list[int]:
        """Slice of the data set behind each point."""
        return [self.space.index[row] for row in self.row]

    @property
    def mirrored(self) -> list[bool]:
        """Whether each point is of the slice's mirror image."""
        return [self.space.mirrored[row] for row in self.row]


def default_levels(path: Path) -> tuple[float, ...]:
    """Noise levels where the groups' weights are soft.

    A table of noise levels is asked at the ratios of noise to signal of :data:`FLOW_LEVELS`, up to its own largest:
    its clock says little about the noise.
    """
    if not isinstance(path, VariancePreserving):
        return FLOW_LEVELS
    middles = (torch.arange(path.schedule.steps, dtype=torch.float64) + 0.5) / path.schedule.steps
    noisiness = path.snr(middles).rsqrt()
    places = [int(torch.searchsorted(noisiness, level / (1 - level))) for level in FLOW_LEVELS]
    usable = sorted({min(place, path.schedule.steps - 1) for place in places})
    # at the end of a schedule with zero terminal SNR there is no signal left, hence no field to compare
    return tuple(round(middles[place].item(), 4) for place in usable if math.isfinite(noisiness[place].item()))


def share_queries(spaces: Sequence[LatentSpace], queries: int) -> list[int]:
    """Queries of each space in proportion to its latents, by largest remainder; they sum to ``queries``."""
    total = sum(map(len, spaces))
    exact = [queries * len(space) / total for space in spaces]
    counts = [int(value) for value in exact]
    rest = sorted(range(len(spaces)), key=lambda place: (counts[place] - exact[place], place))
    for place in rest[: queries - sum(counts)]:
        counts[place] += 1
    return counts


def batch_points(dimension: int, groups: int, states: int, config: DiagnoseConfig) -> int:
    """Query points that fit in half of ``config.memory_mib`` with their fields, residuals and predictions."""
    each = 8 * dimension * (2 * groups + 4) + 4 * dimension * states
    return max(1, config.memory_mib * 2**20 // 2 // each)


def chunk_latents(dimension: int, points: int, config: DiagnoseConfig) -> int:
    """Latents of a pass that fit in a quarter of ``config.memory_mib``, at most 512."""
    return min(512, max(8, config.memory_mib * 2**20 // 4 // (8 * 4 * (dimension + points))))


def draw_points(
    space: LatentSpace, path: Path, levels: Sequence[float], count: int, most: int, config: DiagnoseConfig
) -> Iterator[QueryBatch]:
    """``count`` latents of a space noised to each of the levels, in batches of at most ``most`` points.

    Latents are distinct while they last, and every level has the same ones.
    """
    generator = rng.numpy_generator(config.seed, "diagnose queries", *space.shape)
    rounds = -(-count // len(space))
    chosen = [int(row) for _ in range(rounds) for row in generator.permutation(len(space))][:count]
    points = [(place, row, level) for place, row in enumerate(chosen) for level in range(len(levels))]
    for start in range(0, len(points), most):
        part = points[start : start + most]
        clean = torch.cat([space.latents.read(row, row + 1) for _, row, _ in part])
        noise = torch.stack(
            [rng.normal(space.shape, config.seed, place, row, level, "query noise") for place, row, level in part]
        )
        t = torch.tensor([levels[level] for _, _, level in part], dtype=torch.float64)
        alpha, sigma, _, _ = (value.float().view(-1, 1, 1, 1) for value in coefficients_at(path, t))
        yield QueryBatch(space, tuple(row for _, row, _ in part), alpha * clean + sigma * noise, t)
