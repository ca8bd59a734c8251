"""Fixed-noise validation: the loss at t = .05, .15, ... .95 on held-out roots and their slices.

Noise and posterior samples depend on the slice and the noise level alone, never on the run's seed, so every arm,
seed and checkpoint is measured on the same points and differences are paired. The loss is on the run's own path and
not weighted, the noise without an offset, captions are as they are.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.data.cache import PosteriorSource
from flowgrain.data.dataset import SliceDataset
from flowgrain.families.base import Family
from flowgrain.flow.paths import Path, grouped_mse
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.batches import BatchBuilder
from flowgrain.train.runtime import ALONE, Runtime

NOISE_LEVELS = tuple(round(0.05 + 0.1 * k, 2) for k in range(10))
_SEED = "validation"


class Validator:
    """Measures a family (with whatever adapter is in it) on one held-out data set."""

    def __init__(
        self,
        dataset: SliceDataset,
        family: Family,
        posteriors: PosteriorSource,
        builder: BatchBuilder,
        path: Path,
        batch_size: int,
        device: torch.device,
        runtime: Runtime = ALONE,
    ):
        self._dataset = dataset
        self._family = family
        self._posteriors = posteriors
        self._builder = builder
        self._path = path
        self._batch_size = batch_size
        self._device = device
        self._runtime = runtime

    def measure(self, autocast: Callable[[], torch.autocast]) -> dict[str, Any]:
        """Mean loss, by level and noise level, and by root: :meth:`summary` of :meth:`losses`."""
        return self.summary(self.losses(autocast))

    @torch.no_grad()
    def losses(self, autocast: Callable[[], torch.autocast]) -> Float[Tensor, "n t"]:
        """Unweighted squared error of the path's target of each held-out slice at each noise level, float64.

        Processes share the groups and exchange the losses, so all return the same, bit for bit that of one process.
        """
        losses = torch.zeros(len(self._dataset.slices), len(NOISE_LEVELS), dtype=torch.float64)
        groups = self._share(self._groups())
        self._measure_groups(groups, losses, autocast)
        own = [index for indices in groups for index in indices]
        for indices, values in self._runtime.gather((own, losses[own])):
            losses[indices] = values
        return losses

    def summary(self, losses: Float[Tensor, "n t"]) -> dict[str, Any]:
        """What the log says of the losses of one measurement."""
        slices = self._dataset.slices
        by_level, per_root = {}, {}
        for index, name in enumerate(GRANULARITIES):
            rows = [i for i, item in enumerate(slices) if item.granularity == index]
            if not rows:
                continue
            by_level[name] = losses[rows].mean(dim=0).tolist()
            roots: dict[str, list[float]] = defaultdict(list)
            for i in rows:
                roots[slices[i].root].append(losses[i].mean().item())
            per_root[name] = {root: sum(values) / len(values) for root, values in roots.items()}
        return {
            "t": list(NOISE_LEVELS),
            "loss": losses.mean().item(),
            "by_level": by_level,
            "per_root_by_level": per_root,
        }

    def _share(self, groups: list[list[int]]) -> list[list[int]]:
        """This process's groups; those short of one repeat the last, since sharded models run in step."""
        rank, world = self._runtime.rank, self._runtime.world
        padding = -len(groups) % world if self._runtime.sharded else 0
        return (groups + groups[-1:] * padding)[rank::world]

    def _measure_groups(
        self, groups: list[list[int]], losses: torch.Tensor, autocast: Callable[[], torch.autocast]
    ) -> None:
        for indices in groups:
            x0 = torch.cat([self._clean(i) for i in indices])
            captions = [self._dataset.slices[i].caption for i in indices]
            inputs = self._builder.inputs(indices, captions, [False] * len(indices))
            with autocast():  # text encoders that train are a part of the model
                conditioning = self._family.condition(inputs)
            for k, t in enumerate(NOISE_LEVELS):
                noise = torch.stack([self._noise(i, k, tuple(x0.shape[1:])) for i in indices]).to(self._device)
                sample = self._path(x0, noise, torch.full((len(indices),), t, device=self._device, dtype=torch.float64))
                with autocast():
                    output = self._family.predict(sample.x_t, sample.times, conditioning)
                losses[indices, k] = grouped_mse(output.prediction, sample).double().cpu()

    def _groups(self) -> list[list[int]]:
        by_bucket: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, item in enumerate(self._dataset.slices):
            by_bucket[item.bucket].append(index)
        size = self._batch_size
        return [group[i : i + size] for group in by_bucket.values() for i in range(0, len(group), size)]

    def _clean(self, index: int) -> torch.Tensor:
        posterior = self._posteriors.get(index, False)
        noise = rng.normal(tuple(posterior.mean.shape[1:]), _SEED, self._dataset.slices[index].slice_id, "posterior")
        return self._family.latents(posterior, noise[None]).float().to(self._device)

    def _noise(self, index: int, level: int, shape: tuple[int, ...]) -> torch.Tensor:
        return rng.normal(shape, _SEED, self._dataset.slices[index].slice_id, level, "noise")
