"""REPA (Yu et al. 2024, arXiv 2410.06940): minus the mean cosine of matching tokens.

Defaults are those of the released code: weight 0.5, a projector of three layers, 2048 wide.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from flowgrain.align.heads import HeadConfig, MlpHeadConfig
from flowgrain.align.patches import cosine_alignment
from flowgrain.align.terms.base import AlignmentConfig


class RepaConfig(AlignmentConfig):
    """Minus the mean cosine, in [-1, 1]."""

    compares_channels: ClassVar = True

    kind: Literal["repa"] = "repa"
    head: HeadConfig = Field(default_factory=MlpHeadConfig, description="projection of the model's features")

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.patches.cosine_alignment`."""
        return cosine_alignment(tokens, features, mask)
