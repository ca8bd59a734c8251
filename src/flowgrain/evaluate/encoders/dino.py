"""DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023) and DINOv3 (Simeoni et al. 2025): self-supervised features.

The feature is the class token after the last layer norm, as in DINO-I of DreamBooth (Ruiz et al. 2023, section 4.2),
which takes DINO ViT-S/16, and in the Frechet distance on DINOv2 of Stein et al. (2023).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from flowgrain.errors import ModelError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.batches import decoded_batches
from flowgrain.evaluate.encoders.preprocessing import read_preprocessing
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_model, read_model_type
from flowgrain.pretrained.weights import fingerprint, model_folder, model_label, read_json, weight_files

FAMILIES = {
    "vit": "DINO",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
    "dinov3_vit": "DINOv3",
}
"""``model_type`` of config.json -> family. DINO's own models call themselves vit."""


class DinoEncoder(ImageEncoder):
    """Class tokens of a DINO, DINOv2 or DINOv3 vision transformer from a folder or hub id.

    Raises :class:`ModelError` for what cannot be found, read or matched.
    """

    def __init__(self, model: str, device: str = "cpu", batch_size: int = 16, dtype: Precision = "float32"):
        folder = model_folder(model)
        kind = read_model_type(folder, FAMILIES, "DINO features")
        if kind == "vit":
            _check_headless(folder)
        self._preprocessing = read_preprocessing(folder)
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        # the published DINO files have no weights for the pooling layer that transformers adds to a ViT
        self._network: Any = load_model(folder, {"add_pooling_layer": False} if kind == "vit" else None)
        self._network.to(self._device, self._dtype)
        self.family = FAMILIES[kind]
        self.dimension = self._network.config.hidden_size
        self.size = self._preprocessing.size
        self.resize = self._preprocessing.describe()
        self.batch_size = batch_size
        self.version = f"sha256 {fingerprint(weight_files(folder))}"
        self.name = (
            f"{self.family} {model_label(model)} ({self.version}), class token {self.dimension}-d, {self.size} px, "
            f"{self.resize}, {dtype}"
        )

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`."""
        rows = [torch.empty(0, self.dimension)]
        for batch in decoded_batches(images, self._preprocessing.pixels, self.batch_size):
            pixels = self._preprocessing.normalised(batch).to(self._device, self._dtype)
            rows.append(self._network(pixel_values=pixels).last_hidden_state[:, 0].float().cpu())
        return torch.cat(rows).numpy()


def _check_headless(folder: Path) -> None:
    """Tell DINO's vision transformers, published without a head, from classifiers, whose features are not DINO's."""
    architectures = read_json(folder / "config.json").get("architectures")
    if architectures != ["ViTModel"]:
        raise ModelError(
            f"{folder / 'config.json'}: architectures {architectures!r}, those of DINO say ['ViTModel']; features of a "
            "classifier would not be a DINO-I"
        )
