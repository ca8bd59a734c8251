"""The seam of upscalers: what enlarges a window, how it is configured, and what a network has to offer for it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32
from PIL import Image

from flowgrain.config import Config
from flowgrain.data.records import Box


class Upscaler(ABC):
    """Enlarges a window of a picture. Deterministic; for pictures alone, never for masks."""

    name: str
    max_factor: float
    """Greatest factor that gives a picture worth training on; framing discards a box that needs more."""

    @abstractmethod
    def upscale(self, image: Image.Image, window: Box, size: tuple[int, int]) -> Image.Image:
        """The window (source pixels, fractions allowed) of an RGB image as an image of ``size`` (width, height)."""

    @abstractmethod
    def method(self, factor: float) -> str:
        """What enlarges by ``factor``, for the slice's record, such as 'lanczos' or 'ncnn animevideov3 x2'."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of what the configuration only names, the weights; empty where there is nothing of the kind."""


class Network(ABC):
    """A super-resolution network of one whole factor."""

    name: str
    factor: int
    reach: int
    """Input pixels from which on a pixel's surroundings change it by less than 1/255."""

    @abstractmethod
    def run(self, pixels: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """RGB values around [0, 1], enlarged by ``factor``; what lies outside is clipped by the caller."""


@dataclass(frozen=True)
class UpscalerContext:
    """What an upscaler is built for, besides its own configuration."""

    lanczos_max: float
    """Factor up to which every upscaler interpolates."""
    device: str = "cpu"
    """torch device of those that compute on one."""
    threads: int | None = None
    """Threads that a library may use; None leaves the choice to it."""


class UpscalerConfig(Config, ABC):
    """Base of the configurations of upscalers. A subclass has a ``kind`` of its own, by which YAML names it."""

    short_key: ClassVar[str | None] = None
    """Key that takes what follows the colon where an upscaler is written as ``kind:value``."""

    @abstractmethod
    def build(self, context: UpscalerContext) -> Upscaler:
        """The upscaler, its weights read. Raises :class:`flowgrain.errors.FlowgrainError` where they are unusable."""
