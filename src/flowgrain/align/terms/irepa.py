"""iREPA (Singh et al. 2025, arXiv 2512.10794): REPA with a convolution as head, and a z-scored reference.

Defaults: a 3 x 3 convolution (the README's; the latent models' script has kernel 1), weight 1.0 and gamma 1 (the text;
the released configurations have gamma 0.6 for latent models and 0.8, with weight 0.5, for pixel models).
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from flowgrain.align.patches import cosine_alignment, spatial_z_score
from flowgrain.align.terms.base import AlignmentConfig


class IrepaConfig(AlignmentConfig):
    """Minus the mean cosine with the reference's spatial z-scores, in [-1, 1]."""

    compares_channels: ClassVar = True

    kind: Literal["irepa"] = "irepa"
    weight: float = Field(default=1.0, ge=0, description="lambda of the term; 0 removes it with all that it needs")
    gamma: float = Field(default=1.0, ge=0, le=1, description="share of the mean over tokens that is subtracted")

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.patches.spatial_z_score` and ``cosine_alignment``."""
        return cosine_alignment(tokens, spatial_z_score(features, self.gamma, mask), mask)
