"""Probability paths between data and noise.

Noise level ``t`` in [0, 1], t = 1 is noise: ``x_t = alpha(t) x0 + sigma(t) noise`` with ``x0`` data.
The velocity is d x_t / dt. Rectified flow is alpha = 1 - t, sigma = t, velocity = noise - x0
(Eq. 1 of Spatial Gram Alignment and of Learning When to Denoise; Semantic Granularity Alignment's section 3.1 counts
t = 1 as data, its Algorithm 2 and FLUX count t = 1 as noise).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """alpha, sigma and their derivatives in t, each broadcastable to the latents."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


@dataclass(frozen=True)
class PathSample:
    """A noised latent and what the model shall predict there.

    ``times`` and ``group_weight`` hold a column for each latent group (one for ordinary models);
    ``group_channels`` says how the channel axis splits into the groups.
    """

    x_t: Float[Tensor, "b c h w"]
    target: Float[Tensor, "b c h w"]
    times: Float[Tensor, "b g"]
    group_weight: Float[Tensor, "b g"]
    group_channels: tuple[int, ...]


class Path(ABC):
    """A Gaussian path and its conversions among velocity, x0 and noise."""

    @abstractmethod
    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """alpha, sigma and derivatives at noise levels ``t``, shaped (b, 1, 1, 1)."""

    @abstractmethod
    def __call__(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> PathSample:
        """Noise ``x0`` to level ``t`` and give the training target."""

    def snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Signal-to-noise ratio alpha^2 / sigma^2; infinite at t = 0."""
        c = self.coefficients(t)
        return (c.alpha / c.sigma).square().flatten()

    def velocity_to_x0(
        self, velocity: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Solve x_t = alpha x0 + sigma noise, velocity = alpha' x0 + sigma' noise for x0."""
        c = self.coefficients(t)
        return (c.d_sigma * x_t - c.sigma * velocity) / (c.alpha * c.d_sigma - c.sigma * c.d_alpha)

    def velocity_to_noise(
        self, velocity: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Solve the same pair of equations for the noise."""
        c = self.coefficients(t)
        return (c.alpha * velocity - c.d_alpha * x_t) / (c.alpha * c.d_sigma - c.sigma * c.d_alpha)

    def x0_to_velocity(
        self, x0: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at x_t when the data point is x0; undefined where sigma = 0."""
        c = self.coefficients(t)
        return c.d_alpha * x0 + c.d_sigma * (x_t - c.alpha * x0) / c.sigma

    def noise_to_velocity(
        self, noise: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at x_t when the noise is known; undefined where alpha = 0."""
        c = self.coefficients(t)
        return c.d_alpha * (x_t - c.sigma * noise) / c.alpha + c.d_sigma * noise


class RectifiedFlow(Path):
    """alpha = 1 - t, sigma = t, velocity target noise - x0, one latent group."""

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """See :meth:`Path.coefficients`."""
        t = t.view(-1, 1, 1, 1)
        one = torch.ones_like(t)
        return Coefficients(alpha=1 - t, sigma=t, d_alpha=-one, d_sigma=one)

    def __call__(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> PathSample:
        """x_t = (1 - t) x0 + t noise, target noise - x0."""
        level = t.to(x0.dtype).view(-1, 1, 1, 1)
        return PathSample(
            x_t=(1 - level) * x0 + level * noise,
            target=noise - x0,
            times=t.view(-1, 1),
            group_weight=torch.ones_like(t).view(-1, 1),
            group_channels=(x0.shape[1],),
        )


def grouped_mse(
    prediction: Float[Tensor, "b c h w"], sample: PathSample, cell_weight: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, " b"]:
    """Squared error a sample, in float32 at least: mean over each group's elements, groups summed by weight.

    ``cell_weight`` (a mask, values >= 0) multiplies the error of each latent cell before the mean.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    squared = (prediction.to(dtype) - sample.target.to(dtype)).square()
    if cell_weight is not None:
        squared = squared * cell_weight.to(dtype)
    groups = torch.split(squared, list(sample.group_channels), dim=1)
    by_group = torch.stack([group.flatten(1).mean(dim=1) for group in groups], dim=1)
    return (by_group * sample.group_weight.to(by_group.dtype)).sum(dim=1)
