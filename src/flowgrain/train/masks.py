"""Masked loss: which latent cells of a slice count, and how much the others do.

A cell of mask value m in [0, 1] (the mean over its pixels) weighs u + (1 - u) m, where u is the weight of unmasked
cells. Normalised, a slice's weights are divided by their mean, so that its loss is the weighted *mean* error: a small
subject then counts as much as a large one; a slice without a masked cell keeps the weight u, there is no subject to
make up for. Not normalised, a slice counts by its masked area, as in kohya's trainer.
"""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from flowgrain.config import Config


class MaskConfig(Config):
    """How masks (``data.mask``) enter the loss."""

    unmasked: float = Field(default=0.1, ge=0, lt=1, description="weight of cells outside the mask; 1 = no mask")
    normalise: bool = Field(default=True, description="divide by the mean weight of the slice, so that size is neutral")


def cell_weights(mask: Float[Tensor, "height width"], latent_scale: int, config: MaskConfig) -> Float[Tensor, "1 h w"]:
    """Weights of the latent cells of one slice; ``mask`` in [0, 1] at the slice's pixel size, white trains.

    An empty mask gives the weight ``unmasked`` everywhere: with 0 the slice teaches nothing.
    """
    pooled = F.avg_pool2d(mask[None, None].float(), latent_scale)[0]
    weights = config.unmasked + (1 - config.unmasked) * pooled
    if config.normalise and pooled.any():
        weights = weights / weights.mean()
    return weights
