"""From a planned micro-batch to tensors, every random draw from the slice's own identity."""

import torch

from flowgrain import rng
from flowgrain.data.cache import EmbeddingSource, PosteriorSource
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import MicroBatch
from flowgrain.families.base import ConditionInputs, Family, Posterior, SizeGeometry, TextEmbedding
from flowgrain.train.masks import MaskConfig, cell_weights
from flowgrain.train.objective import Batch


class BatchBuilder:
    """Builds the micro-batches of one run.

    Noise, u, posterior noise, flip and caption dropout of a slice depend on (seed, epoch, slice id) alone, so the
    partition into micro-batches, the process and a resume change nothing.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        family: Family,
        posteriors: PosteriorSource,
        embeddings: EmbeddingSource,
        seed: int,
        guidance: float,
        mask: MaskConfig,
        device: torch.device,
    ):
        self._dataset = dataset
        self._family = family
        self._posteriors = posteriors
        self._embeddings = embeddings
        self._seed = seed
        self._guidance = guidance
        self._mask = mask
        self._device = device

    def build(self, micro: MicroBatch, epoch: int) -> Batch:
        """Tensors of one micro-batch on the training device."""
        indices = [int(i) for i in micro.slices]
        slices = [self._dataset.slices[i] for i in indices]
        posteriors = [self._posteriors.get(i, self._dataset.flipped(i, self._seed, epoch)) for i in indices]
        posterior = Posterior(torch.cat([p.mean for p in posteriors]), torch.cat([p.logvar for p in posteriors]))
        shape = tuple(posterior.mean.shape[1:])
        names = [s.slice_id for s in slices]
        x0 = self._family.latents(posterior, self._draw(shape, epoch, names, "posterior"))
        return Batch(
            x0=x0.float().to(self._device),
            noise=self._draw(shape, epoch, names, "noise").to(self._device),
            u=torch.tensor([rng.uniform(self._seed, epoch, name, "u") for name in names], dtype=torch.float64),
            granularity=torch.tensor([s.granularity for s in slices], device=self._device),
            tokens=torch.tensor([self._family.tokens(s.bucket[1], s.bucket[0]) for s in slices]),
            inputs=self.inputs(indices, [self._dataset.caption(i, self._seed, epoch) for i in indices]),
            weight=torch.tensor(micro.weights, dtype=torch.float64, device=self._device),
            names=names,
            cell_weight=self._cell_weights(indices, epoch),
        )

    def inputs(self, indices: list[int], captions: list[str]) -> ConditionInputs:
        """Conditioning inputs of slices with the given captions."""
        return ConditionInputs(
            captions=None,
            embedding=TextEmbedding.stack([self._embeddings.get(caption) for caption in captions]),
            guidance=self._guidance,
            geometry=self._geometry(indices),
        )

    def _cell_weights(self, indices: list[int], epoch: int) -> torch.Tensor | None:
        """Weights of the latent cells, None where no slice of the micro-batch has a mask."""
        masks = [self._dataset.mask(i, self._dataset.flipped(i, self._seed, epoch)) for i in indices]
        if all(mask is None for mask in masks):
            return None
        width, height = self._dataset.slices[indices[0]].bucket
        scale = self._family.capabilities.latent_scale
        whole = torch.ones(height, width)
        rows = [cell_weights(whole if mask is None else mask, scale, self._mask) for mask in masks]
        return torch.stack(rows).to(self._device)

    def _draw(self, shape: tuple[int, ...], epoch: int, names: list[str], purpose: str) -> torch.Tensor:
        rows = [rng.normal(shape, self._seed, epoch, name, purpose) for name in names]
        return torch.stack(rows)

    def _geometry(self, indices: list[int]) -> SizeGeometry:
        slices = [self._dataset.slices[i] for i in indices]
        return SizeGeometry(
            original=torch.tensor([[s.native[1], s.native[0]] for s in slices], dtype=torch.float32),
            crop=torch.tensor([[s.offset[1], s.offset[0]] for s in slices], dtype=torch.float32),
            target=torch.tensor([[s.bucket[1], s.bucket[0]] for s in slices], dtype=torch.float32),
        )
