"""Token relation distillation of VideoREPA (arXiv 2505.23656), for single pictures: similarities with a margin.

Defaults are those of the released code: margin 0.1, weight 0.5, an MLP as head. There a convolution of stride 3 follows
the MLP; here the head pools to the grid.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from flowgrain.align.heads import HeadConfig, MlpHeadConfig
from flowgrain.align.relations import gram_margin
from flowgrain.align.terms.base import AlignmentConfig


class TrdConfig(AlignmentConfig):
    """Mean of relu(|difference of similarities| - margin)."""

    compares_channels: ClassVar = False

    kind: Literal["trd"] = "trd"
    head: HeadConfig = Field(default_factory=MlpHeadConfig, description="projection of the model's features")
    margin: float = Field(default=0.1, ge=0, description="difference of similarities that costs nothing")

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.relations.gram_margin`."""
        return gram_margin(tokens, features, self.margin, mask)
