"""The records that travel between decomposition, planning and training.

``SliceRecord`` is one line of a manifest: a crop of a root at one granularity, already rendered to its bucket
size. ``Update`` is one optimizer step: micro-batches of slice indices with weights that sum to 1.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from flowgrain.config import Config
from flowgrain.granularity import Granularity

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels of the upright source image, half-open."""

MANIFEST_NAME = "manifest.jsonl"
REJECTS_NAME = "rejects.jsonl"
MANIFEST_VERSION = 1


class SliceRecord(Config):
    """One slice of a root (spec d.3)."""

    slice_id: str = Field(description="stable and unique in the data set, for example fox-1a2b3c4d/p0/micro0")
    root: str = Field(description="id of the root: slices of one root form a tuple")
    image: str = Field(description="source file, relative to the source folder, '/' separated")
    image_sha1: str = Field(description="SHA-1 of the source file's bytes")
    level: str = Field(description="name of the level that cut it")
    granularity: Granularity
    path: str = Field(description="slice file, relative to the data-set folder, '/' separated")
    width: int = Field(gt=0, description="pixels of the slice file: its bucket")
    height: int = Field(gt=0)
    box: Box = Field(description="crop box in source pixels before framing")
    crop: Box = Field(description="source pixels that the slice file shows, after framing")
    scale: float = Field(gt=0, description="slice pixels per source pixel")
    action: str = Field(description="downscale, native or upscale")
    reason: str = Field(description="why this box: detector and rule")
    parent: str | None = Field(description="slice_id of the coarser slice that contains it, None for the coarsest")
    detector: str
    score: float
    caption: str
    caption_source: str = Field(description="sidecar, template, root or none")


@dataclass(frozen=True)
class MicroBatch:
    """Slices of one shape that run forward and backward together."""

    slices: np.ndarray
    """int64 indices into the data set's slice list."""
    weights: np.ndarray
    """float64 weight of each slice's loss in the update's objective."""


@dataclass(frozen=True)
class Update:
    """One optimizer step. The weights of all its micro-batches sum to 1 (reduction ``literal`` excepted)."""

    epoch: int
    index: int
    roots: int
    micro_batches: tuple[MicroBatch, ...]

    @property
    def slices(self) -> int:
        """Number of slices with a non-zero weight."""
        return sum(int(np.count_nonzero(batch.weights)) for batch in self.micro_batches)
