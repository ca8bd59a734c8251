"""The seam of detectors: an image in, boxes in its own pixels out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from PIL import Image

from flowgrain.data.records import Box


@dataclass(frozen=True)
class View:
    """What a detector looks at: one source image and the region of it that is being decomposed."""

    image: Image.Image
    """The whole source image, upright RGB."""
    region: Box
    """Whole-pixel part of the image; the image itself in whole-image mode."""
    name: str
    """Source file relative to the source folder, '/' separated."""


@dataclass(frozen=True)
class Detection:
    """One found box, in source pixels; score in [0, 1], the higher the better."""

    box: Box
    label: str
    score: float
    caption: str | None = None
    """Caption written for this very box, where the detector knows one."""


class Detector(ABC):
    """Finds the boxes of one level. Deterministic: the same view gives the same detections."""

    kind: str

    @abstractmethod
    def detect(self, view: View) -> list[Detection]:
        """Boxes in source pixels, in any order; they may reach beyond the region.

        Raises :class:`flowgrain.errors.DataError` where the detector's own files are malformed.
        """

    def inputs(self, name: str) -> bytes:
        """Whatever besides the image and the configuration decides the result for one source, such as a sidecar."""
        return b""
