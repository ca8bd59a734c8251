"""The reference's tokens for the micro-batches of a run: several encoders, several grids, each encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from flowgrain.align.encoders.registry import EncoderConfig
from flowgrain.align.features import FeatureSource, GridRule, KeptPrecision
from flowgrain.align.grids import Grid
from flowgrain.align.terms.base import AlignmentTerm, feature_key
from flowgrain.data.dataset import SliceDataset


@dataclass(frozen=True)
class Wanted:
    """Tokens of one encoder by one rule: what terms that agree in both share."""

    encoder: EncoderConfig
    kept: KeptPrecision
    rule: GridRule


def wanted_references(terms: Sequence[AlignmentTerm], dataset: SliceDataset, latent_scale: int) -> list[Wanted]:
    """What the terms need of the slices of a data set, without doubles.

    Raises ConfigError for a slice from which a term gets no grid.
    """
    buckets = sorted({item.bucket for item in dataset.slices})
    found: dict[tuple[object, ...], Wanted] = {}
    for term in terms:
        rule = _rule(term, latent_scale)
        grids = tuple(rule(height, width) for width, height in buckets)
        found.setdefault((*term.config.source, grids), Wanted(*term.config.source, rule))
    return list(found.values())


def _rule(term: AlignmentTerm, latent_scale: int) -> GridRule:
    return lambda height, width: term.grid(height // latent_scale, width // latent_scale)


class References:
    """Tokens of the slices of one data set by :func:`feature_key`."""

    def __init__(self, sources: Sequence[tuple[Wanted, FeatureSource]]):
        self._sources = tuple(sources)

    def tokens(self, indices: Sequence[int], mirrored: Sequence[bool]) -> dict[str, Float[Tensor, "b n c"]]:
        """Of the slices of one micro-batch, in the kept precision, on the CPU.

        Slices of one shape have one grid; ValueError where they do not.
        """
        found = {}
        for wanted, source in self._sources:
            key = feature_key(wanted.encoder, wanted.kept, self._grid(source, indices))
            if key not in found:
                found[key] = torch.cat([source.get(i, flip) for i, flip in zip(indices, mirrored, strict=True)])
        return found

    def token_masks(
        self, indices: Sequence[int], masks: Sequence[Float[Tensor, "height width"]]
    ) -> dict[str, Bool[Tensor, "b n"]]:
        """Which tokens count: those whose part of the picture is masked in by half or more."""
        found = {}
        for wanted, source in self._sources:
            grid = self._grid(source, indices)
            pooled = F.adaptive_avg_pool2d(torch.stack(list(masks)).unsqueeze(1).float(), (grid.height, grid.width))
            found[feature_key(wanted.encoder, wanted.kept, grid)] = pooled.flatten(1) >= 0.5
        return found

    @staticmethod
    def _grid(source: FeatureSource, indices: Sequence[int]) -> Grid:
        grids = {source.grid(index) for index in indices}
        if len(grids) != 1:
            raise ValueError(f"slices of one micro-batch have grids {', '.join(map(str, sorted(grids)))}")
        return grids.pop()
