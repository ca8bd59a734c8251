"""Variance-preserving diffusion with a table of noise levels (DDPM, Stable Diffusion): epsilon, v or x0 is predicted.

    x_t = sqrt(abar_k) x0 + sqrt(1 - abar_k) noise,   k = floor(t T), t in [0, 1), k in 0 .. T - 1

t = 1 is noise here as everywhere; between two table entries the level is that of the lower one, so that a uniform t
draws each of the T trained steps equally often.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain.flow.paths import Coefficients, Path, PathSample

PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The table abar_0 .. abar_{T-1}, as diffusers' schedulers make it from the same four values.

    ``zero_terminal_snr`` shifts and scales sqrt(abar) so that its last entry is 0 and its first is kept
    (Lin et al. 2024, arXiv 2305.08891, Algorithm 1).
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: BetaSchedule = "scaled_linear"
    zero_terminal_snr: bool = False

    def betas(self) -> Float[Tensor, " T"]:
        """beta_k, float64."""
        if self.kind == "linear":
            betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        else:
            betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64).square()
        if not self.zero_terminal_snr:
            return betas
        root = torch.cumprod(1 - betas, 0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        abar = ((root - last) * first / (first - last)).square()
        return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])

    def alphas_cumprod(self) -> Float[Tensor, " T"]:
        """abar_k = prod_{j <= k} (1 - beta_j), float64."""
        return torch.cumprod(1 - self.betas(), 0)


class VariancePreserving(Path):
    """alpha = sqrt(abar), sigma = sqrt(1 - abar), one latent group, with what the model predicts.

    The target is the noise, v = alpha noise - sigma x0 (Salimans and Ho 2022), or x0. Derivatives in t are those of the
    continuous equation with beta(t) = T beta_k: alpha' = -beta alpha / 2, sigma' = beta alpha^2 / (2 sigma).
    """

    def __init__(self, schedule: NoiseSchedule, prediction: PredictionType = "epsilon"):
        self.schedule = schedule
        self.prediction: PredictionType = prediction
        self._abar = schedule.alphas_cumprod()
        self._beta = schedule.betas()

    def steps(self, t: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
        """The table entries of noise levels: floor(t T), at most T - 1."""
        last = self.schedule.steps - 1
        return (t.double() * self.schedule.steps).floor().long().clamp(0, last)

    def coefficients(self, t: Float[Tensor, " b"]) -> Coefficients:
        """See :meth:`Path.coefficients`; float64."""
        k = self.steps(t)
        shape, device = (-1, 1, 1, 1), t.device
        abar = self._abar.to(device)[k].view(shape)
        rate = self.schedule.steps * self._beta.to(device)[k].view(shape) / 2
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return Coefficients(alpha, sigma, -rate * alpha, rate * abar / sigma)

    def snr(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """abar / (1 - abar), float64; 0 at the end of a schedule with zero terminal SNR."""
        abar = self._abar.to(t.device)[self.steps(t)]
        return abar / (1 - abar)

    def __call__(
        self, x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> PathSample:
        """See :meth:`Path.__call__`; ``times`` are the middles of the table's steps, (k + 1/2) / T."""
        c = self.coefficients(t)
        alpha, sigma = c.alpha.to(x0.dtype), c.sigma.to(x0.dtype)
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: alpha * noise - sigma * x0,
            "sample": lambda: x0,
        }[self.prediction]()
        # the middle survives any rounding on its way to the model, which takes the floor again
        times = (self.steps(t).double() + 0.5) / self.schedule.steps
        return PathSample(
            x_t=alpha * x0 + sigma * noise,
            target=target,
            times=times.view(-1, 1),
            group_weight=torch.ones_like(times).view(-1, 1),
            group_channels=(x0.shape[1],),
        )

    def prediction_to_x0(
        self, prediction: Float[Tensor, "b c h w"], x_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """x0 from what the model predicts; of epsilon undefined where abar = 0."""
        c = self.coefficients(t)
        if self.prediction == "sample":
            return prediction
        if self.prediction == "v_prediction":
            return c.alpha * x_t - c.sigma * prediction
        return (x_t - c.sigma * prediction) / c.alpha
