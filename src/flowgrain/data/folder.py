"""Plain pictures (of a folder, tar shards or a Hugging Face data set): each is a root of one slice, cover-cropped to
its nearest bucket when it is read.

Every picture is decoded once when the source is opened, so that a damaged one is found then and not in training; what
cannot be read is left out with its reason. Nothing is ever written beside the pictures.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from flowgrain.data.buckets import (
    Bucket,
    CoverCrop,
    best_aspect_match,
    cover_crop,
    fitted_margins,
    long_edge_crop,
    long_edge_shrink,
    shrink_crop,
)
from flowgrain.data.captions import CaptionConflict, caption_beside
from flowgrain.data.collections import Item
from flowgrain.data.collections.base import stem_of
from flowgrain.data.collections.hub import HubDataset
from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.images import decode_image, sha1_of_bytes
from flowgrain.data.masks import MaskFile, mask_files
from flowgrain.data.quarantine import describe_problems
from flowgrain.data.records import Mask, Slice
from flowgrain.data.sources import Found, Source
from flowgrain.errors import DataError
from flowgrain.granularity import granularity_index

PLAIN_LEVEL = "macro"
_SHOWN = 3


def read_pictures(source: Source, pixel_multiple: int) -> Found:
    """The pictures of a plain source, and those that are left out.

    Raises :class:`DataError` for a source without pictures, one of which none can be read, and one whose pictures have
    two captions; :class:`flowgrain.errors.ConfigError` for shapes that the model cannot take.
    """
    items = [Item(source.collection, name) for name in source.collection.names()]
    index = FileIndex(index_location(source))
    facts = index.facts(items, inspect_picture)
    masks = mask_files(items, index) if source.data.mask == "file" else {}
    index.save([*(item.name for item in items), *(mask.file.name for mask in masks.values())])
    reader = _Reader(source, _Shapes(source, pixel_multiple), masks)
    found = Found()
    found.problems += [(Path(place), reason) for place, reason in source.collection.problems()]
    by_id: dict[str, Slice] = {}
    for item, known in zip(items, facts, strict=True):
        place = item.place()
        try:
            made, captioned = reader.slice_of(item, known)
        except CaptionConflict:
            raise
        except DataError as error:
            folder = place.removesuffix(PurePosixPath(item.name).name)
            found.problems.append((Path(place), str(error).removeprefix(f"{place}: ").removeprefix(folder)))
            continue
        if made.slice_id in by_id:
            twin = PurePosixPath(by_id[made.slice_id].file.name).name
            found.problems.append((Path(place), f"the same picture as {twin}, under the same name"))
            continue
        by_id[made.slice_id] = made
        if not captioned:
            found.uncaptioned.add(made.slice_id)
    if not by_id:
        first = "the first" if len(items) == 1 else f"the first {min(_SHOWN, len(items))}"
        raise DataError(
            f"{source.path}: none of its {len(items)} pictures can be read; {first}: "
            f"{describe_problems(found.problems[-len(items) :], _SHOWN)}"
        )
    found.slices = list(by_id.values())
    return found


def inspect_picture(item: Item) -> FileFacts:
    """Digest, upright size and largest alpha of a picture, which is decoded in full.

    Raises :class:`DataError` where it cannot be read.
    """
    data = item.read()
    image, alpha = decode_image(data, Path(item.place()))
    peak = None if alpha is None else int(np.asarray(alpha).max())
    return FileFacts(sha1_of_bytes(data), image.width, image.height, peak)


def index_location(source: Source) -> Path | None:
    """In the cache folder, never among the user's files; nowhere without a cache folder."""
    if not isinstance(source.data.cache, Path):
        return None
    named = str(source.path) if isinstance(source.collection, HubDataset) else str(source.path.resolve())
    return source.data.cache / f"files-{hashlib.blake2b(named.encode(), digest_size=8).hexdigest()}.json"


class _Shapes:
    """The bucket of each size, chosen once a size."""

    def __init__(self, source: Source, pixel_multiple: int):
        self._enlarges = not source.data.no_upscale
        self._edge = source.long_edge(pixel_multiple)
        by_area = not self._enlarges and self._edge is None
        self._resolution = source.resolution(pixel_multiple) if by_area else None
        # of a long edge too, though not read: a wrong one is a mistake of the recipe, not of every picture
        self._buckets = () if by_area else source.buckets(pixel_multiple)
        self._chosen: dict[tuple[int, int], tuple[Bucket, CoverCrop]] = {}

    def of(self, size: tuple[int, int]) -> tuple[Bucket, CoverCrop]:
        """Raises DataError for a picture longer than all buckets, or below the step where none is enlarged."""
        if size not in self._chosen:
            self._chosen[size] = self._choose(size)
        return self._chosen[size]

    def _choose(self, size: tuple[int, int]) -> tuple[Bucket, CoverCrop]:
        if self._edge is not None:
            return (long_edge_crop if self._enlarges else long_edge_shrink)(*size, *self._edge)
        if self._resolution is not None:
            return shrink_crop(*size, *self._resolution)
        bucket = best_aspect_match(*size, self._buckets)
        return bucket, cover_crop(*size, bucket)


@dataclass(frozen=True)
class _Reader:
    source: Source
    shapes: _Shapes
    masks: dict[str, MaskFile]

    def slice_of(self, file: Item, facts: FileFacts | DataError) -> tuple[Slice, bool]:
        """The slice of a picture and whether it came with a caption; raises DataError where it must be left out."""
        if isinstance(facts, DataError):
            raise facts
        source, settings = self.source, self.source.settings
        size = (facts.width, facts.height)
        bucket, crop = self.shapes.of(size)
        left, top, right = fitted_margins(*size, bucket)
        own = caption_beside(file, source.data.caption_extension)
        level = settings.granularity or PLAIN_LEVEL
        root = f"{source.prefix}{stem_of(file.name)}-{facts.digest[:8]}"
        item = Slice(
            slice_id=f"{root}/{level}0",
            root=root,
            image=source.prefix + file.name,
            level=level,
            granularity=granularity_index(level),
            file=file,
            caption=source.caption(own),
            bucket=bucket,
            crop=None if size == bucket else crop,
            digest=facts.digest,
            native=size,
            offset=(left, top),
            offset_mirrored=right,
            image_digest=facts.digest,
            source=source.name,
            weight=settings.weight,
            regularisation=settings.regularisation,
            mask=self._mask(file, facts),
            background=source.data.background,
            keep_tokens=source.keep_tokens,
        )
        return item, bool(own or settings.caption)

    def _mask(self, file: Item, facts: FileFacts) -> Mask | None:
        if self.source.data.mask == "alpha" and facts.peak is not None:
            if facts.peak == 0:
                what = "transparent everywhere, its alpha as a mask leaves nothing to train on"
                raise DataError(f"{file.place()}: {what}")
            return Mask(file, True, facts.digest)
        mask = self.masks.get(file.name)
        return None if mask is None else mask.fitted((facts.width, facts.height))
