"""What the Gram loss does and does not say: Appendix A of Spatial Gram Alignment, as quantities to compute.

Rows Z and F have length 1; L is the Gram loss, R = |Z - F|^2 / N the patch-wise one, c the mean cosine (R = 2 - 2c).
Also diagnostics of spatial structure. Everything in the dtype that comes in; float64 for exact statements.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def patch_distance(rows: Float[Tensor, "n c"], reference: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """R = |Z - F|_F^2 / N, in [0, 4] (Proposition 3)."""
    return (rows - reference).square().sum() / len(rows)


def containment_bound(patch: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The largest Gram loss that a patch-wise loss R allows: 2 (1 - c^2) = 2R - R^2 / 2.

    The paper proves 4R; this is tight (two orthogonal clusters tilted towards each other approach 2R).
    """
    return 2 * patch - patch.square() / 2


def gauge_bound(rows: Float[Tensor, "n c"], reference: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The same bound at the best rotation: 2 (1 - (|F' Z|_* / N)^2), invariant as the Gram loss is."""
    overlap = torch.linalg.matrix_norm(reference.mT @ rows, ord="nuc") / len(rows)
    return 2 * (1 - overlap.square())


def procrustes_distance(rows: Float[Tensor, "n c"], reference: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Least |Z - F Q|_F^2 over (semi-)orthogonal Q: 2N - 2 |F' Z|_*, the way to the nearest zero of the Gram loss."""
    return 2 * len(rows) - 2 * torch.linalg.matrix_norm(reference.mT @ rows, ord="nuc")


def spectral_distance(rows: Float[Tensor, "n c"], reference: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Sum of (sigma_i(Z)^2 - sigma_i(F)^2)^2, both falling; at most N^2 L (Proposition 2 i, Hoffman and Wielandt)."""
    count = max(min(rows.shape), min(reference.shape))
    return (_spectrum(rows, count) - _spectrum(reference, count)).square().sum()


@dataclass(frozen=True)
class SubspaceAngle:
    """How far the k leading spatial modes of two Gram matrices are apart."""

    sine: Float[Tensor, ""]
    """|sin Theta|_F."""
    gap: Float[Tensor, ""]
    """lambda_k - lambda_(k+1) of the reference's Gram matrix."""
    bound: Float[Tensor, ""]
    """2 |G_z - G_f|_F / gap (Proposition 2 ii; Yu, Wang and Samworth 2015); infinite without a gap."""


def subspace_angle(rows: Float[Tensor, "n c"], reference: Float[Tensor, "n d"], k: int) -> SubspaceAngle:
    """Of the ``k`` leading eigenvectors, 1 <= k < N."""
    own, other = rows @ rows.mT, reference @ reference.mT
    _, own_vectors = torch.linalg.eigh(own)
    values, vectors = torch.linalg.eigh(other)
    cosines = torch.linalg.svdvals(own_vectors[:, -k:].mT @ vectors[:, -k:]).clamp(max=1)
    sine = (1 - cosines.square()).sum().sqrt()
    gap = values[-k] - values[-k - 1]
    return SubspaceAngle(sine, gap, 2 * torch.linalg.matrix_norm(own - other) / gap)


def orbit_dimension(channels: int, rank: int) -> int:
    """Dimension of the set of features whose Gram loss is zero: the orbit F O(C), C (C-1)/2 - (C-r) (C-r-1)/2."""
    rest = channels - rank
    return channels * (channels - 1) // 2 - rest * (rest - 1) // 2


def similarity_correlation(
    rows: Float[Tensor, "b n c"], reference: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None
) -> Float[Tensor, " b"]:
    """Correlation of the off-diagonal similarities, by sample: what to watch, for the loss itself starts small.

    Independent isotropic unit rows of C channels have an expected loss of 2 (1 - 1/N) / C already. ``mask`` False where
    a token does not count. NaN where one side's similarities are all equal, or there are too few.
    """
    count = rows.shape[1]
    pairs = ~torch.eye(count, dtype=torch.bool, device=rows.device).expand(len(rows), -1, -1)
    if mask is not None:
        pairs = pairs & mask.unsqueeze(1) & mask.unsqueeze(2)
    size = pairs.sum(dim=(1, 2), keepdim=True)
    sides = []
    for one in (rows, reference):
        values = (one @ one.mT) * pairs
        sides.append((values - values.sum(dim=(1, 2), keepdim=True) / size) * pairs)
    own, other = sides
    squares = own.square().sum(dim=(1, 2)) * other.square().sum(dim=(1, 2))
    return (own * other).sum(dim=(1, 2)) / squares.sqrt()


def _spectrum(rows: Tensor, count: int) -> Tensor:
    values = torch.linalg.svdvals(rows).square()
    return torch.nn.functional.pad(values, (0, count - len(values)))
