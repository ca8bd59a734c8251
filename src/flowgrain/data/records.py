"""The records that travel between decomposition, planning and training.

``SliceRecord`` is one line of a manifest: a crop of a root at one granularity, already rendered to its bucket
size. ``Slice`` is one training picture of an opened data set. ``Update`` is one optimizer step: micro-batches of slice
indices with weights that sum to 1.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from flowgrain.config import Config
from flowgrain.data.buckets import Bucket, CoverCrop
from flowgrain.data.collections import Item
from flowgrain.data.images import WHITE, Colour
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
    path: str = Field(
        description="slice file, relative to the data-set folder, '/' separated; member of a tar: shards/0.tar!NAME"
    )
    width: int = Field(gt=0, description="pixels of the slice file: its bucket")
    height: int = Field(gt=0)
    box: Box = Field(description="crop box in source pixels before framing")
    crop: Box = Field(description="source pixels that the slice file shows, after framing")
    scale: float = Field(gt=0, description="slice pixels per source pixel")
    action: str = Field(description="downscale, native or upscale")
    upscaler: str = Field(default="", description="what enlarged it, empty where nothing did")
    reason: str = Field(description="why this box: detector and rule")
    parent: str | None = Field(description="slice_id of the coarser slice that contains it, None for the coarsest")
    detector: str = Field(description="kind of the detector that found the box, or whole_image")
    label: str = Field(default="", description="what the detector calls the box")
    score: float
    caption: str
    caption_source: str = Field(description="sidecar, template, root, model (a captioner) or none")


@dataclass(frozen=True)
class Mask:
    """Where the loss of a slice counts: a grey picture, white = train."""

    file: Item
    from_alpha: bool
    """True: the alpha channel of ``file``, False: its grey values."""
    digest: str
    """SHA-1 of the file's bytes."""


@dataclass(frozen=True)
class Slice:
    """One training picture."""

    slice_id: str
    root: str
    image: str
    """Name of the source image; the roots cut from one image share it."""
    level: str
    granularity: int
    file: Item
    """Where its bytes are: a file, a member of a tar, a row of a data set."""
    caption: str
    bucket: Bucket
    """(width, height) in pixels that the model sees."""
    crop: CoverCrop | None
    """How the file is brought to its bucket, None where it has that size."""
    digest: str
    """SHA-1 of the file's bytes."""
    native: tuple[int, int]
    """(width, height) before any resizing, in source pixels: SDXL's original size."""
    offset: tuple[int, int]
    """(left, top) in pixels of the bucket: SDXL's crop corner. Of a slice, where framing cut its resized box; of a
    whole picture, :func:`flowgrain.data.buckets.fitted_margins`."""
    offset_mirrored: int
    """``left`` of the offset when the picture is mirrored."""
    image_digest: str
    """SHA-1 of the source image's bytes: the same picture in two sources has one."""
    source: str
    """Name of the source."""
    weight: float = 1.0
    """Factor of its loss."""
    regularisation: bool = False
    """True for pictures that only keep the model's prior; they are never held out."""
    repeat: int = 1
    """Which copy of a repeated picture this is, counted from 1."""
    mask: Mask | None = None
    """Where its loss counts, None: everywhere."""
    background: Colour = WHITE
    """What shows through where the picture is transparent."""
    keep_tokens: int = 0
    """First tags of its caption that stay in front where captions vary."""

    @property
    def transform(self) -> str:
        """Name of the file-to-bucket transform: part of every cache key."""
        if self.crop is None:
            name = "none"
        else:
            (width, height), (across, down) = self.crop.resize, self.bucket
            name = f"lanczos {width}x{height} crop {self.crop.left},{self.crop.top} {across}x{down}"
        return name if self.background == WHITE else f"{name} over {','.join(map(str, self.background))}"


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
