"""The wavelet loss of Diffusion-4K (arXiv 2503.18352) as what is minimised in place of the squared error.

    L = sum over bands of band weight * mean over the band's coefficients of f(x0_hat - x0)^2,   f one Haar level

x0_hat - x0 is the prediction's error times a factor of the noise level:

    rectified flow, v predicted   - sigma (v_hat - v)          so that with equal weights L is sigma^2 times the loss
    noise predicted               - sigma / alpha (eps_hat - eps)
    x0 predicted                  x0_hat - x0

See :mod:`flowgrain.align.haar` for why equal weights, the released ones, emphasise no frequency.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.align.haar import BandWeights, wavelet_error
from flowgrain.flow.paths import Path, PathSample
from flowgrain.flow.variance_preserving import VariancePreserving


@dataclass(frozen=True)
class WaveletLoss:
    """The weighted error of the bands on one path."""

    path: Path
    bands: BandWeights

    def __call__(
        self,
        prediction: Float[Tensor, "b c h w"],
        sample: PathSample,
        t: Float[Tensor, " b"],
        cell_weight: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, " b"]:
        """By sample, in float32 at least. ValueError for a path of several latent groups: their levels differ."""
        if len(sample.group_channels) != 1:
            raise ValueError(f"the wavelet loss is of one latent group, this path has {len(sample.group_channels)}")
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        error = prediction.to(dtype) - sample.target.to(dtype)
        return wavelet_error(self.x0_factor(t).to(dtype) * error, self.bands, cell_weight)

    def x0_factor(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """|x0_hat - x0| over |prediction's error| at noise levels ``t``."""
        c = self.path.coefficients(t)
        if not isinstance(self.path, VariancePreserving):
            return c.sigma / (c.alpha * c.d_sigma - c.sigma * c.d_alpha)
        if self.path.prediction == "sample":
            return torch.ones_like(c.sigma)
        return c.sigma if self.path.prediction == "v_prediction" else c.sigma / c.alpha
