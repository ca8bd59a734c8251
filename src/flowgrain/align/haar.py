"""One level of the orthonormal Haar transform, and the wavelet loss of Diffusion-4K (arXiv 2503.18352).

    L_WLF = mean over coefficients of band_weight (f(x0_hat) - f(x0))^2,   x0_hat = x_t - sigma v

f keeps norms, so with equal band weights, as released, this **is** sigma^2 times the flow-matching error, an x0 error,
with no emphasis on high frequencies (``tests/align/test_haar.py`` shows it to rounding). Band weights that differ are
what makes it a wavelet loss; those are ours.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BandWeights:
    """Weights of the four bands: averages, and details across rows (LH), across columns (HL) and in both (HH)."""

    ll: float = 1.0
    lh: float = 1.0
    hl: float = 1.0
    hh: float = 1.0


def haar(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "4 b c k l"]:
    """The bands LL, LH, HL, HH of 2 x 2 cells; sides that are odd are padded with zeros, which keeps the norm.

    Of a cell [[a, b], [c, d]] they are (a + b + c + d), (a + b - c - d), (a - b + c - d) and (a - b - c + d) over 2.
    """
    height, width = latents.shape[-2:]
    padded = F.pad(latents, (0, width % 2, 0, height % 2))
    a, b = padded[..., 0::2, 0::2], padded[..., 0::2, 1::2]
    c, d = padded[..., 1::2, 0::2], padded[..., 1::2, 1::2]
    return torch.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]) / 2


def inverse_haar(bands: Float[Tensor, "4 b c k l"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """The latents of these bands, cut to ``height`` and ``width``."""
    ll, lh, hl, hh = bands
    top = torch.stack([ll + lh + hl + hh, ll + lh - hl - hh], dim=-1)
    bottom = torch.stack([ll - lh + hl - hh, ll - lh - hl + hh], dim=-1)
    cells = torch.stack([top, bottom], dim=-3) / 2
    return cells.flatten(-2).flatten(-3, -2)[..., :height, :width]


def band_errors(
    error: Float[Tensor, "b c h w"], cell_weight: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, "4 b"]:
    """Squared error by band, each divided by the number of latent values; their sum is the mean squared error.

    ``cell_weight`` (a mask, values >= 0) weighs the coefficients of a 2 x 2 cell by its mean there: where that is equal
    over the cell the sum is the weighted mean squared error.
    """
    values = error[0].numel()
    squares = haar(error).square()
    if cell_weight is not None:
        height, width = cell_weight.shape[-2:]
        # at odd sides the last row and column weigh as they are
        squares = squares * F.avg_pool2d(
            F.pad(cell_weight, (0, width % 2, 0, height % 2), mode="replicate").to(squares.dtype), 2
        )
    return squares.sum(dim=(2, 3, 4)) / values


def wavelet_error(
    error: Float[Tensor, "b c h w"], weights: BandWeights, cell_weight: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Mean squared error with weighted bands, by sample; the transform is linear, so that of the error will do."""
    bands = band_errors(error, cell_weight)
    return torch.stack(
        [bands[0] * weights.ll, bands[1] * weights.lh, bands[2] * weights.hl, bands[3] * weights.hh]
    ).sum(0)
