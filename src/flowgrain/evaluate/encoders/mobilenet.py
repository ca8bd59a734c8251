"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): pooled ImageNet features.

The encoder that can be installed everywhere from the package index. It is not Inception: a Frechet distance in its
features is a "MobileNetV2 Frechet distance", never an FID. The network is in ``pretrained.mobilenet``.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.batches import decoded_batches
from flowgrain.pretrained.mobilenet import MEAN, STD, WEIGHTS_SHA256, load_mobilenet_v2


class MobileNetV2Encoder(ImageEncoder):
    """Globally pooled last features (1280) of ImageNet MobileNetV2.

    Raises :class:`ModelError` where the weights are missing or are not the published file.
    """

    family = "MobileNetV2"
    version = f"torchvision IMAGENET1K_V1, sha256 {WEIGHTS_SHA256}"
    resize = "Pillow bicubic, antialiased"
    dimension = 1280

    def __init__(self, size: Literal[128, 224] = 128, batch_size: int = 16, device: str = "cpu"):
        self.size = size
        self.name = f"MobileNetV2 (ImageNet), pooled 1280-d, {size} px"
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.network = load_mobilenet_v2().to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`."""
        batches = decoded_batches(images, self._resized, self.batch_size)
        rows = [self.network.pooled(_normalised(batch).to(self.device)).float().cpu() for batch in batches]
        return torch.cat([torch.empty(0, self.dimension), *rows]).numpy()

    def _resized(self, image: Image.Image) -> np.ndarray:
        return np.array(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


def _normalised(batch: list[np.ndarray]) -> Float[Tensor, "b 3 s s"]:
    pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
