"""Errors of pixel values: PSNR, and the two quantities that papers call NMSE.

    MSE = mean (x - y)^2        PSNR = 10 log10(peak^2 / MSE)
    NMSE = ||x - y||_F^2 / ||x||_F^2        NRMSE = ||x - y||_F / ||x||_F = sqrt(NMSE)

UltraFlux prints the first of the second line. The NMSE of Diffusion-4K and of Spatial Gram Alignment fits the second
(scikit-image's ``normalized_root_mse``, 'euclidean'): of their PSNR and NMSE pairs, only the root form implies pictures
of ordinary brightness. So the two are never one name here.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.evaluate.reconstruction.base import PairScore

PSNR_CAP = 100.0
"""dB at which a mean over pictures counts one that came back exactly, as libvpx does: infinity has no mean."""


def mse(x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean squared error over channels and pixels, float64, in squared units of the pictures."""
    return (x.double() - y.double()).square().flatten(1).mean(dim=1)


def psnr(x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"], peak: float = 1.0) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, ``peak``]; infinite for equal ones."""
    return 10 * torch.log10(peak**2 / mse(x, y))


def nmse(original: Float[Tensor, "b 3 h w"], reconstruction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Squared error over the original's energy, pictures in [0, 1]; NaN for a black original."""
    energy = original.double().square().flatten(1).mean(dim=1)
    return torch.where(energy > 0, mse(original, reconstruction) / energy, torch.nan)


def nrmse(original: Float[Tensor, "b 3 h w"], reconstruction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Square root of :func:`nmse`, picture by picture."""
    return nmse(original, reconstruction).sqrt()


class Psnr(PairScore):
    """:func:`psnr`, averaged over pictures in dB."""

    title = "PSNR"
    version = "RGB in [0, 1], mean of dB over pictures"
    higher_is_better = True

    def __call__(
        self, originals: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """See :meth:`PairScore.__call__`."""
        return psnr(originals, reconstructions)

    def pooled(self, values: Float[np.ndarray, " k"]) -> float:
        """The mean, each picture at most ``PSNR_CAP``."""
        return float(np.minimum(values, PSNR_CAP).mean())

    def note(self, values: Float[np.ndarray, " n"]) -> str | None:
        """Whether the cap was reached."""
        capped = int((values > PSNR_CAP).sum())
        told = f"{capped} of {len(values)} pictures came back exactly, or nearly, and count as {PSNR_CAP:g} dB"
        return told if capped else None


class NormalisedError(PairScore):
    """:func:`nmse`, or :func:`nrmse` where ``root``, averaged over pictures that are not black."""

    higher_is_better = False

    def __init__(self, root: bool):
        self.root = root
        self.title = "NRMSE" if root else "NMSE"
        self.version = f"{'||x - y|| / ||x||' if root else '||x - y||^2 / ||x||^2'}, RGB in [0, 1], mean over pictures"

    def __call__(
        self, originals: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """See :meth:`PairScore.__call__`."""
        return (nrmse if self.root else nmse)(originals, reconstructions)
