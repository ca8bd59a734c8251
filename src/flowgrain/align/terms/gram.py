"""Spatial Gram Alignment (arXiv 2605.20808, Eqs. 3, 4 and 8): the self-similarities of the model's features.

Defaults: head of one 3 x 3 convolution; weight 0.5, our choice, since the paper's lambda of the diffusion stage is not
known to us. See :mod:`flowgrain.align.gram`.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from flowgrain.align.gram import GramTarget, gram_loss
from flowgrain.align.terms.base import AlignmentConfig


class GramConfig(AlignmentConfig):
    """Mean squared difference of the two Gram matrices, in [0, 2]."""

    compares_channels: ClassVar = False

    kind: Literal["gram"] = "gram"
    centred: bool = Field(
        default=False, description="subtract each picture's mean token from both sides first; the paper does not"
    )
    form: Literal["auto", "direct", "factored"] = Field(
        default="auto", description="N x N or C x C matrices: equal to rounding; auto takes the cheaper one"
    )

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.gram.gram_loss`."""
        target = GramTarget.of(features, tokens.shape[-1], mask, self.centred, self.form)
        return gram_loss(tokens, target, mask, self.centred)
