"""Other losses on self-similarities: relatives of the Gram loss, with margins or without negatives.

VA-VAE's marginal distance matrix similarity (arXiv 2501.01423), VideoREPA's token relation distillation (arXiv
2505.23656) and DINOv3's Gram anchoring (arXiv 2508.10104). Plain N x N forms: they are baselines.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowgrain.align.gram import unit_rows


def gram_margin(
    tokens: Float[Tensor, "b n c"],
    features: Float[Tensor, "b n d"],
    margin: float,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """Mean of relu(|difference of similarities| - margin) over pairs of tokens, by sample.

    Margin .25 is VA-VAE's, .1 VideoREPA's; both means are over all pairs, the diagonal included.
    """
    error = (_gram(tokens, mask) - _gram(features, mask)).abs()
    return _pair_mean(torch.relu(error - margin), mask)


def gram_anchor(
    tokens: Float[Tensor, "b n c"], features: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, " b"]:
    """DINOv3's Gram anchoring: mean squared difference of similarities, negative ones set to zero in both."""
    error = _gram(tokens, mask).clamp(min=0) - _gram(features, mask).clamp(min=0)
    return _pair_mean(error.square(), mask)


def _gram(tokens: Tensor, mask: Tensor | None) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        rows = unit_rows(tokens, mask)
        return rows @ rows.mT


def _pair_mean(values: Float[Tensor, "b n n"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, " b"]:
    if mask is None:
        return values.mean(dim=(1, 2))
    weights = mask.to(values.dtype)
    pairs = weights.unsqueeze(1) * weights.unsqueeze(2)
    return (values * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
