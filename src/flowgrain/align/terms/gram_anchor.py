"""DINOv3's Gram anchoring (arXiv 2508.10104): as the Gram loss, with negative similarities set to zero in both.

There the two sides are one network at two times and there is no head; here a head is needed, and its default is that
of Spatial Gram Alignment.
"""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from flowgrain.align.relations import gram_anchor
from flowgrain.align.terms.base import AlignmentConfig


class GramAnchorConfig(AlignmentConfig):
    """Mean squared difference of the similarities that are positive."""

    compares_channels: ClassVar = False

    kind: Literal["gram_anchor"] = "gram_anchor"

    def loss(
        self,
        tokens: Float[Tensor, "b n c"],
        features: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "b n"] | None,
    ) -> Float[Tensor, " b"]:
        """See :func:`flowgrain.align.relations.gram_anchor`."""
        return gram_anchor(tokens, features, mask)
