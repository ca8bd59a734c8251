"""Losses that pull features to those of a reference token by token: REPA, iREPA, and the VF loss of VA-VAE.

The baselines of Spatial Gram Alignment (Table 3, section 2.2). REPA: Yu et al. 2024, arXiv 2410.06940. iREPA: Singh et
al. 2025, arXiv 2512.10794. VA-VAE: Yao et al. 2025, arXiv 2501.01423.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowgrain.align.gram import unit_rows

STD_EPSILON = 1e-6


def cosine_alignment(
    tokens: Float[Tensor, "b n c"], features: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, " b"]:
    """REPA: minus the mean cosine of matching tokens, in [-1, 1], by sample.

    Spatial Gram Alignment writes it |Z - F|^2 / N = 2 + 2 times this (its Proposition 3).
    """
    cosines = (unit_rows(tokens, mask) * unit_rows(features, mask)).sum(dim=-1)
    return -_mean(cosines, mask)


def spatial_z_score(
    features: Float[Tensor, "b n c"], gamma: float = 1.0, mask: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, "b n c"]:
    """iREPA's normalisation of the reference: (f - gamma mean) / (std + 1e-6), over tokens, unbiased std, float32.

    The text says gamma = 1; the released configurations .6 (latent models) and .8 (pixel models). One token gives NaN:
    it has no spread. Masked ones are zero, and where fewer than two are left the spread counts as zero.
    """
    rows = features if features.dtype == torch.float64 else features.float()
    if mask is None:
        mean, std = rows.mean(dim=1, keepdim=True), rows.std(dim=1, keepdim=True)
        return (rows - gamma * mean) / (std + STD_EPSILON)
    weights = mask.to(rows.dtype).unsqueeze(-1)
    count = weights.sum(dim=1, keepdim=True)
    mean = (rows * weights).sum(dim=1, keepdim=True) / count.clamp(min=1)
    variance = ((rows - mean).square() * weights).sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
    return (rows - gamma * mean) / (variance.sqrt() + STD_EPSILON) * weights


def cosine_margin(
    tokens: Float[Tensor, "b n c"],
    features: Float[Tensor, "b n c"],
    margin: float = 0.5,
    mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, " b"]:
    """VA-VAE's marginal cosine similarity: mean of relu(1 - margin - cosine) over matching tokens, by sample."""
    cosines = (unit_rows(tokens, mask) * unit_rows(features, mask)).sum(dim=-1)
    return _mean(torch.relu(1 - margin - cosines), mask)


def _mean(values: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"] | None) -> Float[Tensor, " b"]:
    if mask is None:
        return values.mean(dim=1)
    weights = mask.to(values.dtype)
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
