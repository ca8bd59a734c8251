"""The image processor of RF-DETR without torchvision, which transformers' own needs.

By its ``preprocessor_config.json``: scale to [0, 1], resize (bilinear on floats, without antialiasing) to a fixed size,
subtract the mean and divide by the standard deviation.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import DeformableDetrImageProcessorPil

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import read_json

MODEL_TYPE = "rf_detr"
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class RfDetrProcessor:
    """What :class:`transformers.RfDetrImageProcessor` does to one picture and to a network's outputs."""

    def __init__(self, height: int, width: int, mean: list[float], std: list[float], factor: float = 1 / 255):
        self._size = height, width
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        self._factor = factor

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Tensor]:
        """``pixel_values`` (1, 3, h, w) of an RGB picture."""
        pixels = torch.from_numpy(np.array(images)).permute(2, 0, 1)[None].float() * self._factor
        resized = torch.nn.functional.interpolate(pixels, self._size, mode="bilinear", align_corners=False)
        return {"pixel_values": (resized - self._mean) / self._std}

    def post_process_object_detection(
        self, outputs: Any, threshold: float, target_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """As Deformable DETR's, but for the number of candidates: as many as there are queries."""
        return DeformableDetrImageProcessorPil().post_process_object_detection(
            outputs, threshold=threshold, target_sizes=target_sizes, top_k=outputs.logits.shape[1]
        )


def read_rf_detr(folder: Path) -> RfDetrProcessor:
    """The processor that a folder's preprocessor_config.json describes.

    Raises :class:`ModelError` where there is none or it asks for anything else.
    """
    path = folder / "preprocessor_config.json"
    try:
        rule = {key: value for key, value in read_json(path).items() if value is not None}
        size = rule["size"]
        height, width = int(size["height"]), int(size["width"])
        mean, std = rule.get("image_mean", _MEAN), rule.get("image_std", _STD)
        factor = float(rule.get("rescale_factor", 1 / 255))
        steps = [rule.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")]
        if steps != [True] * 3 or rule.get("resample", 2) != Image.Resampling.BILINEAR:
            raise ValueError("another order of steps or another filter")
        return RfDetrProcessor(height, width, mean, std, factor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: no rule for RF-DETR that can be carried out ({type(error).__name__}: {error}); it needs a size "
            "of height and width, bilinear resampling, rescaling and normalisation"
        ) from None
