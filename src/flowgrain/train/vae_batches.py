"""Micro-batches of an autoencoder: pictures, the noise of their latents, and features of the reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain import rng
from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.features import FeatureSource
from flowgrain.align.gram import GramTarget, gram_loss
from flowgrain.align.grids import Grid
from flowgrain.align.heads import Head
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import MicroBatch
from flowgrain.errors import DataError
from flowgrain.vae.losses import LatentTerm, StageBatch


@dataclass(frozen=True)
class VaeBatch:
    """Slices of one shape with everything random about them already drawn, on the CPU."""

    images: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b d i j"]
    weight: Float[Tensor, " b"]
    granularity: Int[Tensor, " b"]
    names: list[str]
    features: Float[Tensor, "b n e"] | None = None
    """Tokens of the reference, None without a Gram loss."""
    grid: Grid | None = None


@dataclass(frozen=True)
class GramTerm:
    """The head that trains, and how its tokens are compared."""

    head: Head
    centred: bool

    def of(self, features: Float[Tensor, "b n e"], grid: Grid) -> LatentTerm:
        """The Gram loss of latents against features of the same pictures on ``grid``."""
        target = GramTarget.of(features.float(), self.head.out_channels, centred=self.centred)

        def loss(latents: Tensor) -> Tensor:
            return gram_loss(self.head(latents, grid), target, centred=self.centred)

        return loss


@dataclass(frozen=True)
class Reference:
    """Where features come from: a source of whole slices, or the encoder itself for crops, by a rule of their grid."""

    encoder: StructureEncoder
    source: FeatureSource | None
    """None: crops are encoded as they come."""
    rule: Callable[[int, int], Grid]


class VaeBatchBuilder:
    """Builds micro-batches; noise, flip and crop of a slice depend on (seed, epoch, slice id) alone."""

    def __init__(
        self,
        dataset: SliceDataset,
        seed: int,
        crop: int | None,
        latent_channels: int,
        cell: int,
        reference: Reference | None,
    ):
        """``cell``: pixels a latent cell and side. Raises :class:`DataError` for a slice smaller than ``crop``."""
        self._dataset = dataset
        self._seed = seed
        self._crop = crop
        self._latent_channels = latent_channels
        self._cell = cell
        self._reference = reference
        small = next((s for s in dataset.slices if crop is not None and min(s.bucket) < crop), None)
        if small is not None:
            size = f"{small.bucket[0]}x{small.bucket[1]}"
            raise DataError(
                f"slice '{small.slice_id}' has {size} px, crop {crop} is larger: lower it or enlarge slices"
            )

    def build(self, micro: MicroBatch, epoch: int) -> VaeBatch:
        """Tensors of one micro-batch. Raises :class:`DataError` for a picture that cannot be read."""
        indices = [int(i) for i in micro.slices]
        mirrored = [self._dataset.flipped(i, self._seed, epoch) for i in indices]
        names = [self._dataset.slices[i].slice_id for i in indices]
        pictures = [self._dataset.pixels(i, flip) for i, flip in zip(indices, mirrored, strict=True)]
        images = torch.stack([self._cut(one, name, epoch) for one, name in zip(pictures, names, strict=True)])
        height, width = images.shape[-2:]
        shape = (self._latent_channels, height // self._cell, width // self._cell)
        features, grid = None, None
        if self._reference is not None:
            grid = self._reference.rule(height, width)
            features = self._features(self._reference, indices, mirrored, images, grid)
        return VaeBatch(
            images=images,
            noise=torch.stack([rng.normal(shape, self._seed, epoch, name, "posterior") for name in names]),
            weight=torch.tensor(micro.weights, dtype=torch.float32),
            granularity=torch.tensor([self._dataset.slices[i].granularity for i in indices]),
            names=names,
            features=features,
            grid=grid,
        )

    def _cut(self, picture: Tensor, name: str, epoch: int) -> Tensor:
        side = self._crop
        if side is None:
            return picture
        top, left = (
            int(rng.uniform(self._seed, epoch, name, f"crop {edge}") * (length - side + 1))
            for edge, length in zip(("top", "left"), picture.shape[-2:], strict=True)
        )
        return picture[:, top : top + side, left : left + side]

    @staticmethod
    def _features(
        reference: Reference, indices: list[int], mirrored: list[bool], images: Tensor, grid: Grid
    ) -> Float[Tensor, "b n e"]:
        if reference.source is None:  # one picture a call: features do not depend on the company
            return torch.cat([reference.encoder.tokens(image[None], grid).cpu() for image in images])
        source = reference.source
        return torch.cat([source.get(i, flip) for i, flip in zip(indices, mirrored, strict=True)])


def on_device(batch: VaeBatch, device: torch.device, gram: GramTerm | None) -> StageBatch:
    """What the losses take, on the training device."""
    term = None
    if gram is not None and batch.features is not None and batch.grid is not None:
        term = gram.of(batch.features.to(device), batch.grid)
    return StageBatch(batch.images.to(device), batch.noise.to(device), batch.weight.to(device), term)
