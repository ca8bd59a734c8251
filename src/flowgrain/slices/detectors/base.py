"""The seam of detectors: images in, boxes in their own pixels out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from flowgrain.config import Config
from flowgrain.data.collections import Item
from flowgrain.data.records import Box

BOX_GRID = 0.25
"""Boxes are put on this grid, in pixels, before anything is decided by them."""
SCORE_DIGITS = 4
"""Scores are rounded to so many decimals: what a model computes in batches of another size or on another machine
differs in the last bits, and no decision should hang on those."""


@dataclass(frozen=True)
class View:
    """What a detector looks at: one source image and the region of it that is being decomposed."""

    image: Image.Image
    """The whole source image, upright RGB."""
    region: Box
    """Whole-pixel part of the image; the image itself in whole-image mode."""
    item: Item
    """The source file, for what lies beside it and for messages."""

    @property
    def name(self) -> str:
        """Source file relative to its collection, '/' separated."""
        return self.item.name


@dataclass(frozen=True)
class Detection:
    """One found box, in source pixels; score in [0, 1], the higher the better."""

    box: Box
    label: str
    score: float
    caption: str | None = None
    """Caption written for this very box, where the detector knows one."""
    detector: str = ""
    """Kind of the detector that found it; filled in by whoever runs the detector."""

    def settled(self, detector: str) -> "Detection":
        """The detection of ``detector`` with box and score rounded."""
        x0, y0, x1, y1 = (round(side / BOX_GRID) * BOX_GRID for side in self.box)
        return replace(self, box=(x0, y0, x1, y1), score=round(self.score, SCORE_DIGITS), detector=detector)


@dataclass(frozen=True)
class DetectorContext:
    """What a detector is built for, besides its own configuration."""

    folder: Path
    """What relative paths of files about the images (COCO, YOLO labels) are relative to."""
    level: str
    max_instances: int
    device: str = "cpu"
    """torch device of those that compute on one."""
    threads: int | None = None
    """Threads that a library may use; None leaves the choice to it."""
    cache: Path | None = None
    """Folder for what is dear to ask twice; None: nowhere."""


class Detector(ABC):
    """Finds the boxes of one level. Deterministic: the same views give the same detections."""

    kind: str
    batch_size: int = 1
    """Views that are best looked at together. Above 1, a view's boxes may depend on its batch in the last bits."""

    @abstractmethod
    def detect(self, view: View) -> list[Detection]:
        """Boxes in source pixels, in any order; they may reach beyond the region.

        Raises :class:`flowgrain.errors.DataError` where files beside the image are malformed.
        """

    def detect_all(self, views: Sequence[View]) -> list[list[Detection]]:
        """:meth:`detect` of each view; detectors that gain from it look at all of them at once."""
        return [self.detect(view) for view in views]

    def inputs(self, item: Item) -> bytes:
        """Whatever besides the image and the configuration decides the result for one source, such as a sidecar."""
        return b""

    def fingerprint(self) -> str:
        """Digest of what the configuration only names: the weights of a model."""
        return ""


class DetectorConfig(Config, ABC):
    """Base of the configurations of detectors. A subclass has a ``kind`` of its own, by which YAML names it."""

    short_key: ClassVar[str | None] = None
    """Key that takes what follows the colon where a detector is written as ``kind:value``."""
    kind: Any
    """Literal text of the subclass."""
    asks_others: ClassVar[bool] = False
    """Whether it waits for an endpoint: then one process that asks several things at once does better than many."""

    @abstractmethod
    def build(self, context: DetectorContext) -> Detector:
        """The detector. Raises :class:`flowgrain.errors.FlowgrainError` where its own files are unusable."""
