"""The training latents of a run in pieces, by shape: densities of Eq. 8 live in one space each.

One posterior draw a slice, from its identity, and one more of its mirror image where the run mirrors: what training
sees, but for the draw that it makes anew each epoch. The latents are read once and kept in memory where they fit, else
in a temporary file: every estimate passes over all of them several times, and a cache is slower to read.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.data.cache import PosteriorSource
from flowgrain.data.dataset import SliceDataset
from flowgrain.families.base import Family
from flowgrain.geometry.queries import LatentSource


class KeptLatents(LatentSource):
    """Float32 latents in one temporary file, or in memory where they are small; filled once from ``make``."""

    def __init__(
        self,
        shape: tuple[int, ...],
        samples: int,
        make: Callable[[int], Tensor],
        memory_bytes: int,
        tick: Callable[[int], None],
    ):
        self._shape, self._samples = shape, samples
        self._row = int(np.prod(shape))
        self._file = None if 4 * samples * self._row <= memory_bytes else tempfile.TemporaryFile(prefix="flowgrain-")
        self._array = np.empty((samples, self._row), np.float32) if self._file is None else None
        for index in range(samples):
            row = make(index).detach().cpu().float().flatten().numpy()
            if self._array is not None:
                self._array[index] = row
            elif self._file is not None:
                self._file.write(row.tobytes())
            tick(index + 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """See :attr:`LatentSource.shape`."""
        return self._shape

    def __len__(self) -> int:
        return self._samples

    def read(self, start: int, stop: int) -> Float[Tensor, "n *shape"]:
        """See :meth:`LatentSource.read`."""
        if self._array is not None:
            rows = self._array[start:stop]
        else:
            assert self._file is not None
            self._file.seek(4 * start * self._row)
            rows = np.frombuffer(self._file.read(4 * (stop - start) * self._row), np.float32).copy()
        return torch.from_numpy(rows).view(-1, *self._shape)


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """All training latents of one shape."""

    shape: tuple[int, ...]
    index: tuple[int, ...]
    """Slice of the data set behind each latent."""
    mirrored: tuple[bool, ...]
    """Whether it is of the mirror image."""
    latents: LatentSource

    def __len__(self) -> int:
        return len(self.index)


class LatentReader:
    """Draws the latents of a data set's slices."""

    def __init__(
        self, dataset: SliceDataset, posteriors: PosteriorSource, family: Family, seed: int, memory_bytes: int
    ):
        self._dataset, self._posteriors, self._family = dataset, posteriors, family
        self._seed, self._memory = seed, memory_bytes

    def latent(self, index: int, mirrored: bool) -> Float[Tensor, "c h w"]:
        """One draw of a slice's posterior, from its identity, in the model's scale, float32 on the CPU."""
        posterior = self._posteriors.get(index, mirrored)
        name = self._dataset.slices[index].slice_id
        side = "mirrored" if mirrored else "as is"
        noise = rng.normal(tuple(posterior.mean.shape[1:]), self._seed, name, side, "diagnose posterior")
        return self._family.latents(posterior, noise[None])[0].float().cpu()

    def spaces(self, tick: Callable[[int, int], None]) -> tuple[LatentSpace, ...]:
        """The latents by shape, most first; each space keeps its share of the memory or goes to a temporary file."""
        by_bucket: dict[tuple[int, int], list[tuple[int, bool]]] = defaultdict(list)
        for index, item in enumerate(self._dataset.slices):
            by_bucket[item.bucket] += [(index, mirrored) for mirrored in self._dataset.flips]
        ordered = sorted(by_bucket.items(), key=lambda entry: (-len(entry[1]), entry[0]))
        total, before, spaces = sum(len(rows) for _, rows in ordered), 0, []
        for _, rows in ordered:
            spaces.append(self._space(rows, self._memory // len(ordered), lambda n, at=before: tick(at + n, total)))
            before += len(rows)
        return tuple(spaces)

    def _space(self, rows: Sequence[tuple[int, bool]], memory: int, tick: Callable[[int], None]) -> LatentSpace:
        shape = tuple(self.latent(*rows[0]).shape)
        kept = KeptLatents(shape, len(rows), lambda place: self.latent(*rows[place]), memory, tick)
        return LatentSpace(shape, tuple(i for i, _ in rows), tuple(m for _, m in rows), kept)
