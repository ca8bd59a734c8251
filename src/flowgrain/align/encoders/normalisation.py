"""What a vision model subtracts from pixels and divides them by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import read_json

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of RGB in [0, 1]."""

    mean: Triple
    std: Triple

    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Pixels in [-1, 1], normalised."""
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((pixels + 1) / 2 - mean) / std

    def describe(self) -> str:
        """In words, for cache keys."""
        return f"mean {self.mean}, std {self.std}"


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Published for DINOv2, DINOv3 (web images) and SAM2."""
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""SigLIP's."""


def read_normalisation(folder: Path, published: Normalisation) -> Normalisation:
    """From a folder's preprocessor_config.json (or processor_config.json, as transformers 5 writes it).

    ``published`` stands for what no file says. Raises :class:`ModelError` for files that cannot be read, and for rules
    that are none of this kind.
    """
    path = next((p for name in _FILES if (p := folder / name).is_file()), None)
    if path is None:
        return published
    config = read_json(path)
    config = config.get("image_processor", config)
    if not isinstance(config, dict):
        raise ModelError(f"{path}: image_processor is no JSON object; restore the file")
    for step in ("do_rescale", "do_normalize"):
        if config.get(step) is False:
            raise ModelError(f"{path}: {step} is false; only models whose pixels are normalised are supported")
    factor = config.get("rescale_factor")
    if factor is not None and not (isinstance(factor, float) and abs(factor * 255 - 1) < 1e-6):
        raise ModelError(f"{path}: rescale_factor {factor!r}; only 1/255 is supported")
    return Normalisation(
        _triple(config, "image_mean", published.mean, path), _triple(config, "image_std", published.std, path)
    )


_FILES = ("preprocessor_config.json", "processor_config.json")


def _triple(config: dict[str, Any], key: str, published: Triple, path: Path) -> Triple:
    values = config.get(key)
    if values is None:
        return published
    if not (isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)):
        raise ModelError(f"{path}: {key} {values!r}; three numbers are needed")
    if key == "image_std" and min(values) <= 0:
        raise ModelError(f"{path}: {key} {values!r}; a standard deviation must be positive")
    return (float(values[0]), float(values[1]), float(values[2]))
