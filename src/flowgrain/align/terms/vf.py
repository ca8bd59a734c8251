"""The VF loss of VA-VAE (Yao et al. 2025, arXiv 2501.01423): similarities and cosines, each with a margin.

Made for an autoencoder's latents; here it is applied to the features of a block. Defaults are those of the released
code: margins 0.25 and 0.5, weight 0.1, a 1 x 1 convolution without bias. Its adaptive weight is not here.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from flowgrain.align.heads import ConvHeadConfig, HeadConfig
from flowgrain.align.patches import cosine_margin
from flowgrain.align.relations import gram_margin
from flowgrain.align.terms.base import AlignmentConfig


class VfConfig(AlignmentConfig):
    """Mean of relu(|difference of similarities| - margin), plus that of relu(1 - margin - cosine)."""

    compares_channels: ClassVar = True

    kind: Literal["vf"] = "vf"
    weight: float = Field(default=0.1, ge=0, description="lambda of the term; 0 removes it with all that it needs")
    head: HeadConfig = Field(
        default_factory=lambda: ConvHeadConfig(kernel=1, bias=False), description="projection of the model's features"
    )
    matrix_margin: float = Field(default=0.25, ge=0, description="difference of similarities that costs nothing")
    cosine_margin: float = Field(default=0.5, ge=0, description="distance 1 - cosine that costs nothing")

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.relations.gram_margin` and :func:`flowgrain.align.patches.cosine_margin`."""
        matrix = gram_margin(tokens, features, self.matrix_margin, mask)
        return matrix + cosine_margin(tokens, features, self.cosine_margin, mask)
