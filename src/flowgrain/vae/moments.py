"""Moment alignment: keep mean and log-variance of the posterior where the pre-trained encoder has them.

Spatial Gram Alignment (arXiv 2605.20808), L_MA of Eq. 6: it "anchors the latent mean and log-variance to the
pre-trained latent space". The norm is not printed; two forms fit, with q = N(mu, sigma^2) of what trains and q_0 of the
frozen encoder:

    mse:  mean((mu - mu_0)^2) + mean((log sigma^2 - log sigma_0^2)^2)
    kl:   KL(q || q_0), the mean over latent elements of
          ((mu - mu_0)^2 / sigma_0^2 + sigma^2 / sigma_0^2 - 1 - log sigma^2 + log sigma_0^2) / 2

diffusers sums ``kl`` over elements; the mean does not depend on the picture's size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

LOGVAR_LIMITS = (-30.0, 20.0)
"""Of diffusers' DiagonalGaussianDistribution; beyond them a log-variance has no gradient."""

MomentForm = Literal["mse", "kl"]


@dataclass(frozen=True)
class Moments:
    """A diagonal Gaussian posterior."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]
    """Clamped to [-30, 20]."""

    @classmethod
    def of(cls, parameters: Float[Tensor, "b d h w"]) -> "Moments":
        """From an encoder's output, mean and log-variance stacked in channels, at least in float32."""
        mean, logvar = (parameters if parameters.dtype == torch.float64 else parameters.float()).chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_LIMITS))

    def sample(self, noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """mu + sigma * noise."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


def moment_alignment(own: Moments, reference: Moments, form: MomentForm = "mse") -> Float[Tensor, " b"]:
    """L_MA, by sample, at least 0 and 0 for equal moments. Raises ValueError for grids that differ."""
    if own.mean.shape != reference.mean.shape:
        raise ValueError(f"moments of {tuple(own.mean.shape)} against {tuple(reference.mean.shape)}")
    distance = (own.mean - reference.mean).square()
    if form == "mse":
        return (distance + (own.logvar - reference.logvar).square()).mean(dim=(1, 2, 3))
    return _divergence(distance / reference.logvar.exp(), own.logvar - reference.logvar)


def kl_to_standard_normal(own: Moments) -> Float[Tensor, " b"]:
    """KL(q || N(0, 1)), the mean over latent elements, by sample."""
    return _divergence(own.mean.square(), own.logvar)


def _divergence(distance: Float[Tensor, "b c h w"], log_ratio: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    # expm1: exp(x) - 1 - x of small x would be rounding alone
    return 0.5 * (distance + torch.expm1(log_ratio) - log_ratio).mean(dim=(1, 2, 3))
