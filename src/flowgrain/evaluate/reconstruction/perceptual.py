"""Perceptual distance (LPIPS; Zhang et al. 2018, arXiv 1801.03924) and ST-LPIPS (arXiv 2207.13686) as scores of pairs.

The published weights of ST-LPIPS hold backbone and heads, and can be installed from the package index; LPIPS needs
ImageNet weights in torchvision's files, which the user names. The two are different numbers. Networks and weights:
``flowgrain.pretrained.perceptual`` and ``flowgrain.pretrained.perceptual_weights``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.evaluate.reconstruction.base import PairScore, check_smallest
from flowgrain.pretrained.perceptual import SMALLEST as SMALLEST
from flowgrain.pretrained.perceptual import PerceptualNetwork


class PerceptualDistance(PairScore):
    """A loaded :class:`PerceptualNetwork` as a score of pairs; made by the functions of ``perceptual_weights``."""

    higher_is_better = False

    def __init__(self, title: str, version: str, network: PerceptualNetwork, device: str = "cpu"):
        self.title = title
        self.version = version
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(
        self, originals: Float[Tensor, "b 3 h w"], reconstructions: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """See :meth:`PairScore.__call__`. Raises :class:`DataError` for sides below 32 pixels."""
        check_smallest(originals, SMALLEST)
        x, y = (pixels.to(self.device, torch.float32) for pixels in (originals, reconstructions))
        return self.network(x, y).double().cpu()
