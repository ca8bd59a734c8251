"""Pixel error of the autoencoder's output: L_rec of Spatial Gram Alignment (arXiv 2605.20808), Eq. 7.

The paper does not say which norm. Its authors' earlier SC-VAE (Diffusion-4K, arXiv 2503.18352) takes the squared error
of the output clamped to [-1, 1], latent diffusion (arXiv 2112.10752) and VA-VAE (arXiv 2501.01423) the absolute one.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Norm = Literal["l1", "l2"]


def reconstruction_error(
    output: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"], norm: Norm = "l2", clamp: bool = False
) -> Float[Tensor, " b"]:
    """Mean absolute (``l1``) or squared (``l2``) error over channels and pixels, by sample, at least in float32.

    Images in [-1, 1]. ``clamp`` cuts the output to that range first, as the released SC-VAE code does: what lies
    outside has no gradient then.
    """
    predicted, wanted = (one if one.dtype.itemsize > 4 else one.float() for one in (output, images))
    difference = (predicted.clamp(-1, 1) if clamp else predicted) - wanted
    return (difference.abs() if norm == "l1" else difference.square()).mean(dim=(1, 2, 3))
