"""Loss weights omega(t, granularity)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain.flow.variance_preserving import VariancePreserving

LARGEST_SNR = 1000.0
"""Where debiased estimation cuts the ratio, as kohya's trainer does."""


class Weighting(ABC):
    """A non-negative weight of a sample's squared error."""

    @abstractmethod
    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """omega, float32."""


class Uniform(Weighting):
    """omega = 1: the weighting of flow-matching models, whose granularity acts through the time law."""

    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Ones."""
        return torch.ones_like(t, dtype=torch.float32)


@dataclass(frozen=True)
class MinSnr(Weighting):
    """Granularity-adaptive Min-SNR (Semantic Granularity Alignment, Eqs. 32-33; Hang et al. 2023, arXiv 2303.09556).

        omega = min(SNR, gamma) / SNR        noise predicted
        omega = min(SNR, gamma) / (SNR + 1)  v predicted
        omega = min(SNR, gamma)              x0 predicted

    with gamma = ``gammas[granularity]``: the paper's (4, 5, 7) for macro, meso, micro; Hang et al. have 5 for all.
    At SNR = 0 the first is its limit 1.
    """

    path: VariancePreserving
    gammas: tuple[float, float, float] = (4.0, 5.0, 7.0)

    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """See the class."""
        snr = self.path.snr(t)
        gamma = torch.tensor(self.gammas, dtype=snr.dtype, device=snr.device)[granularity.to(snr.device)]
        if self.path.prediction == "epsilon":
            weight = (gamma / snr).clamp(max=1.0)
        elif self.path.prediction == "v_prediction":
            weight = torch.minimum(snr, gamma) / (snr + 1)
        else:
            weight = torch.minimum(snr, gamma)
        return weight.float()


@dataclass(frozen=True)
class Debiased(Weighting):
    """Debiased estimation (Yu et al. 2023, arXiv 2310.08442): 1 / sqrt(SNR), or 1 / (SNR + 1) for v, as kohya has it.

    Weighs noisy steps up (14.6 at the last one of SDXL), the opposite of Min-SNR's reach. SNR is cut at 1000.
    """

    path: VariancePreserving

    def __call__(self, t: Float[Tensor, " b"], granularity: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """See the class."""
        snr = self.path.snr(t).clamp(max=LARGEST_SNR)
        weight = 1 / (snr + 1) if self.path.prediction == "v_prediction" else snr.rsqrt()
        return weight.float()
