"""From a picture to what a vision model was trained on: its ``preprocessor_config.json``, carried out with Pillow.

transformers has two implementations of most image processors, one with torchvision and one with Pillow, whose numbers
differ, and only the first of DINOv3's. Here each rule has one implementation that needs no torchvision; tests compare
it with those of transformers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.pretrained.weights import read_json

Fit = Literal["stretch", "shortest edge", "longest edge"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)

_INTERPOLATION = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes ``size`` x ``size`` normalised pixels."""

    size: int
    """Side of the square that the network sees."""
    edge: int
    """What the edge that ``fit`` names is resized to; above ``size``, the centre is cut out."""
    fit: Fit = "shortest edge"
    """Which edge is resized to ``edge``: both (the aspect ratio is lost), the shortest, or the longest, with black
    borders."""
    resample: Image.Resampling = Image.Resampling.BICUBIC
    floats: bool = False
    """Resize floating-point pixels (torch, antialiased) instead of 8-bit ones (Pillow)."""
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD

    def describe(self) -> str:
        """The rule in words, for example ``Pillow bicubic, shortest edge to 256, centre 224 x 224``."""
        how = "float" if self.floats else "Pillow"
        what = "stretched" if self.fit == "stretch" else self.fit
        crop = "" if self.fit == "longest edge" or self.edge == self.size else f", centre {self.size} x {self.size}"
        return f"{how} {self.resample.name.lower()}, {what} to {self.edge}{crop}"

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An RGB picture resized and cut: (size, size, 3), uint8, or float32 in about [0, 1] where ``floats``."""
        width, height = self._resized(*image.size)
        if self.floats:
            resized = self._float_resize(image, width, height)
        else:
            resized = np.asarray(image.resize((width, height), self.resample))
        if self.fit == "longest edge":
            return _bordered(resized, self.size)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]

    def normalised(self, batch: list[np.ndarray]) -> Float[Tensor, "b 3 s s"]:
        """Pixels of several pictures less the mean, divided by the standard deviation, float32."""
        stacked = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()
        scaled = stacked if self.floats else stacked.float() / 255
        return (scaled - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.fit == "stretch":
            return self.edge, self.edge
        if self.fit == "longest edge":
            scale = self.edge / max(width, height)
            return max(round(width * scale), 1), max(round(height * scale), 1)
        # int() as in transformers: the longer edge is rounded down
        if width <= height:
            return self.edge, int(self.edge * height / width)
        return int(self.edge * width / height), self.edge

    def _float_resize(self, image: Image.Image, width: int, height: int) -> np.ndarray:
        scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(
            scaled, size=(height, width), mode=_INTERPOLATION[self.resample], antialias=True, align_corners=False
        )
        return resized[0].permute(1, 2, 0).contiguous().numpy()


def _bordered(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    canvas = np.zeros((size, size, 3), dtype=pixels.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


@dataclass(frozen=True)
class _Processor:
    """What an image processor of transformers does where its configuration does not say."""

    square: bool
    """Whether a size given as one number means a square."""
    crop: bool
    resample: Image.Resampling
    mean: Triple
    std: Triple
    floats: bool = False


_PROCESSORS = {
    "CLIP": _Processor(False, True, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD),
    "Bit": _Processor(False, True, Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD),
    "Siglip": _Processor(True, False, Image.Resampling.BICUBIC, HALF, HALF),
    "ViT": _Processor(True, False, Image.Resampling.BILINEAR, HALF, HALF),
    "DINOv3ViT": _Processor(True, False, Image.Resampling.BILINEAR, IMAGENET_MEAN, IMAGENET_STD, floats=True),
}
"""By the name of their class, less its endings."""


def read_preprocessing(folder: Path) -> Preprocessing:
    """The rule in a folder's preprocessor_config.json (or processor_config.json, as transformers 5 writes it).

    Raises :class:`ModelError` for a missing or unknown processor, and for rules that are not carried out here.
    """
    path = folder / "preprocessor_config.json"
    config = read_json(path) if path.exists() else {}
    if not config:
        path = folder / "processor_config.json"
        config = read_json(path).get("image_processor") if path.exists() else None
    if not isinstance(config, dict):
        raise ModelError(
            f"{folder}: no preprocessor_config.json: how pictures are resized for this model is not known; copy that "
            "file from where the model comes from"
        )
    return _parsed({key: value for key, value in config.items() if value is not None}, path)


def _parsed(config: dict[str, Any], path: Path) -> Preprocessing:
    named = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    kind = named
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind not in _PROCESSORS:
        raise ModelError(
            f"{path}: image processor '{named}' is not known; known: "
            f"{', '.join(f'{name}ImageProcessor' for name in _PROCESSORS)}"
        )
    processor = _PROCESSORS[kind]
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step, True) is not True:
            raise ModelError(f"{path}: {step} is {config[step]!r}; only processors that do it are supported")
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise ModelError(f"{path}: rescale_factor {factor!r}; only 1/255 is supported")
    fit, edge = _resize_rule(config.get("size", 224), processor.square, path)
    cropped = config.get("do_center_crop", processor.crop)
    size = _square(config.get("crop_size", 224), "crop_size", path) if cropped else edge
    if size > edge or (fit == "shortest edge" and not cropped):
        raise ModelError(f"{path}: no square of {size} pixels comes out of size {config.get('size')}; check the file")
    resample = config.get("resample", processor.resample)
    known = list(_INTERPOLATION) if processor.floats else list(Image.Resampling)
    if resample not in known:
        names = ", ".join(f"{each.value} ({each.name.lower()})" for each in known)
        raise ModelError(f"{path}: resample {resample!r}; known here: {names}")
    mean, std = (
        _triple(config.get(key, default), key, path)
        for key, default in (("image_mean", processor.mean), ("image_std", processor.std))
    )
    return Preprocessing(size, edge, fit, Image.Resampling(resample), processor.floats, mean, std)


def _resize_rule(size: Any, square: bool, path: Path) -> tuple[Fit, int]:
    if isinstance(size, int):
        return ("stretch" if square else "shortest edge"), size
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int) and not size.get("longest_edge"):
        return "shortest edge", size["shortest_edge"]
    return "stretch", _square(size, "size", path)


def _square(size: Any, key: str, path: Path) -> int:
    if isinstance(size, int):
        return size
    if isinstance(size, dict) and isinstance(size.get("height"), int) and size["height"] == size.get("width"):
        return size["height"]
    raise ModelError(f"{path}: {key} {size!r}; only square sizes and a shortest edge are supported")


def _triple(values: Any, key: str, path: Path) -> Triple:
    if isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values):
        return (float(values[0]), float(values[1]), float(values[2]))
    raise ModelError(f"{path}: {key} {values!r}; three numbers are needed")
