"""Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004, IEEE TIP 13(4), Eq. 13).

    SSIM = (2 mu_x mu_y + C1)(2 s_xy + C2) / ((mu_x^2 + mu_y^2 + C1)(s_x^2 + s_y^2 + C2))

with local means and (population) variances under an 11 x 11 Gaussian window of 1.5 pixels, C1 = (0.01 L)^2 and
C2 = (0.03 L)^2 for pictures in [0, L]. The mean is taken over windows that lie wholly inside the picture, and over the
three colour channels. No automatic downsampling to 256 pixels is done (the authors' script suggests one).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.evaluate.reconstruction.base import PairScore, check_smallest

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
_BELL = [math.exp(-((shift - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for shift in range(WINDOW)]
WEIGHTS = [value / sum(_BELL) for value in _BELL]
"""The window along one axis; its outer product with itself is the paper's."""
_BAND = 64
"""Rows of the map computed at once: they stay in the cache, and float64 costs no memory at any picture size."""


def ssim(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], data_range: float = 1.0) -> Float[Tensor, " b"]:
    """Mean structural similarity of pictures in [0, ``data_range``], in [-1, 1], float64; 1 for equal ones.

    Equals scikit-image's ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)``; torchmetrics
    averages over windows at reflected borders as well. Raises :class:`DataError` for sides below 11 pixels.
    """
    check_smallest(x, WINDOW)
    rows = x.shape[-2] - WINDOW + 1
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for top in range(0, rows, _BAND):
        band = slice(top, min(top + _BAND, rows) + WINDOW - 1)
        total += _similarity_map(x[..., band, :].double(), y[..., band, :].double(), data_range).flatten(1).sum(dim=1)
    return total / (rows * (x.shape[-1] - WINDOW + 1) * x.shape[1])


def _similarity_map(
    x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"], data_range: float
) -> Float[Tensor, "b c i j"]:
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_x, mean_y, square_x, square_y, product = (_blur(z) for z in (x, y, x * x, y * y, x * y))
    variances = (square_x - mean_x**2) + (square_y - mean_y**2)
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def _blur(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c i j"]:
    """Gaussian-weighted local means, windows inside the picture only."""
    # sums of shifted slices: several times faster than conv2d, which has no fast path for float64
    for axis in (-1, -2):
        length = z.shape[axis] - WINDOW + 1
        smooth = z.narrow(axis, 0, length) * WEIGHTS[0]
        for shift in range(1, WINDOW):
            smooth.add_(z.narrow(axis, shift, length), alpha=WEIGHTS[shift])
        z = smooth
    return z


class Ssim(PairScore):
    """:func:`ssim`, averaged over pictures."""

    title = "SSIM"
    version = "Wang et al. 2004, Gaussian window of 11 px (1.5), mean over RGB channels in [0, 1]"
    higher_is_better = True

    def __call__(
        self, originals: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """See :meth:`PairScore.__call__`."""
        return ssim(originals, reconstructions)
