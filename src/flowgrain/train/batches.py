"""From a planned micro-batch to tensors, every random draw from the slice's own identity."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.align.references import References
from flowgrain.data.cache import EmbeddingSource, PosteriorSource
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import MicroBatch
from flowgrain.families.base import ConditionInputs, Family, Posterior, SizeGeometry, TextEmbedding
from flowgrain.train.masks import MaskConfig, cell_weights
from flowgrain.train.objective import Batch
from flowgrain.train.path_config import NoiseConfig


class BatchBuilder:
    """Builds the micro-batches of one run.

    Noise, u, posterior noise, flip and caption of a slice depend on (seed, epoch, slice id) alone, so the partition
    into micro-batches, the process and a resume change nothing. ``embeddings`` None leaves the captions to the
    model, which encodes them with gradient: its text encoders train. ``references`` are the tokens that alignment terms
    compare with, None where there are no terms.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        family: Family,
        posteriors: PosteriorSource,
        embeddings: EmbeddingSource | None,
        seed: int,
        guidance: float,
        noise: NoiseConfig,
        mask: MaskConfig,
        device: torch.device,
        references: References | None = None,
    ):
        self._dataset = dataset
        self._family = family
        self._posteriors = posteriors
        self._embeddings = embeddings
        self._seed = seed
        self._guidance = guidance
        self._noise_config = noise
        self._mask = mask
        self._device = device
        self._references = references

    def build(self, micro: MicroBatch, epoch: int) -> Batch:
        """Tensors of one micro-batch on the training device."""
        indices = [int(i) for i in micro.slices]
        slices = [self._dataset.slices[i] for i in indices]
        mirrored = [self._dataset.flipped(i, self._seed, epoch) for i in indices]
        posteriors = [self._posteriors.get(i, flip) for i, flip in zip(indices, mirrored, strict=True)]
        posterior = Posterior(torch.cat([p.mean for p in posteriors]), torch.cat([p.logvar for p in posteriors]))
        shape = tuple(posterior.mean.shape[1:])
        names = [s.slice_id for s in slices]
        x0 = self._family.latents(posterior, self._draw(shape, epoch, names, "posterior")).float()
        captions = [self._dataset.caption(i, self._seed, epoch) for i in indices]
        masks = self._masks(indices, mirrored)
        return Batch(
            x0=x0.to(self._device),
            noise=self._noise(x0, epoch, names).to(self._device),
            u=torch.tensor([rng.uniform(self._seed, epoch, name, "u") for name in names], dtype=torch.float64),
            granularity=torch.tensor([s.granularity for s in slices], device=self._device),
            tokens=torch.tensor([self._family.tokens(s.bucket[1], s.bucket[0]) for s in slices]),
            inputs=self.inputs(indices, captions, mirrored),
            weight=torch.tensor(micro.weights, dtype=torch.float64, device=self._device),
            names=names,
            cell_weight=None if masks is None else self._cell_weights(masks),
            features=self._features(indices, mirrored),
            token_masks=self._token_masks(indices, masks),
            watch=self._watch(epoch, names),
        )

    def inputs(self, indices: Sequence[int], captions: list[str], mirrored: Sequence[bool]) -> ConditionInputs:
        """Conditioning inputs of slices with the given captions and mirror states."""
        geometry = self._geometry(indices, mirrored)
        if self._embeddings is None:
            return ConditionInputs(captions, None, self._guidance, geometry, grad=True)
        embedding = TextEmbedding.stack([self._embeddings.get(caption) for caption in captions])
        return ConditionInputs(None, embedding, self._guidance, geometry)

    def _noise(self, x0: Float[Tensor, "b c h w"], epoch: int, names: list[str]) -> Float[Tensor, "b c h w"]:
        """Standard normal noise, with the recipe's offset noise added: it is part of what the model predicts."""
        noise, config = self._draw(tuple(x0.shape[1:]), epoch, names, "noise"), self._noise_config
        if not config.offset:
            return noise
        strength = config.offset + config.adaptive * x0.mean(dim=(2, 3), keepdim=True).abs().to(noise)
        return noise + strength.clamp(min=0) * self._draw((x0.shape[1], 1, 1), epoch, names, "noise offset")

    def _masks(self, indices: list[int], mirrored: list[bool]) -> list[Tensor] | None:
        """Masks of the slices, white for one that has none; None where no slice of the micro-batch has one."""
        masks = [self._dataset.mask(i, flip) for i, flip in zip(indices, mirrored, strict=True)]
        if all(mask is None for mask in masks):
            return None
        width, height = self._dataset.slices[indices[0]].bucket
        return [torch.ones(height, width) if mask is None else mask for mask in masks]

    def _cell_weights(self, masks: list[Tensor]) -> Tensor:
        """Weights of the latent cells."""
        scale = self._family.capabilities.latent_scale
        return torch.stack([cell_weights(mask, scale, self._mask) for mask in masks]).to(self._device)

    def _features(self, indices: list[int], mirrored: list[bool]) -> dict[str, Tensor]:
        """Tokens of the reference encoders."""
        if self._references is None:
            return {}
        return {name: value.to(self._device) for name, value in self._references.tokens(indices, mirrored).items()}

    def _token_masks(self, indices: list[int], masks: list[Tensor] | None) -> dict[str, Tensor]:
        """Which of these tokens count."""
        if self._references is None or masks is None:
            return {}
        return {name: value.to(self._device) for name, value in self._references.token_masks(indices, masks).items()}

    def _watch(self, epoch: int, names: list[str]) -> Tensor | None:
        """A number a slice where there are terms to watch."""
        if self._references is None:
            return None
        return torch.tensor([rng.uniform(self._seed, epoch, name, "watch") for name in names], dtype=torch.float64)

    def _draw(self, shape: tuple[int, ...], epoch: int, names: list[str], purpose: str) -> Tensor:
        """A row for each slice, drawn from its identity, on the CPU."""
        return torch.stack([rng.normal(shape, self._seed, epoch, name, purpose) for name in names])

    def _geometry(self, indices: Sequence[int], mirrored: Sequence[bool]) -> SizeGeometry:
        slices = [self._dataset.slices[i] for i in indices]
        lefts = [s.offset_mirrored if flip else s.offset[0] for s, flip in zip(slices, mirrored, strict=True)]
        return SizeGeometry(
            original=torch.tensor([[s.native[1], s.native[0]] for s in slices], dtype=torch.float32),
            crop=torch.tensor(
                [[s.offset[1], left] for s, left in zip(slices, lefts, strict=True)], dtype=torch.float32
            ),
            target=torch.tensor([[s.bucket[1], s.bucket[0]] for s in slices], dtype=torch.float32),
        )
