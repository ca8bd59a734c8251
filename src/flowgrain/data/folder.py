"""Plain folders: each picture is a root of one slice, cover-cropped to its nearest bucket when it is read.

Every picture is decoded once when the folder is opened, so that a damaged one is found then and not in training; what
cannot be read is left out with its reason. Nothing is ever written to the folder.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowgrain.data.buckets import Bucket, CoverCrop, best_aspect_match, cover_crop, fitted_margins, shrink_crop
from flowgrain.data.captions import CaptionConflict, read_caption
from flowgrain.data.file_index import FileFacts, FileIndex
from flowgrain.data.images import decode_image, list_images, read_bytes, sha1_of_bytes
from flowgrain.data.masks import find_mask, fitting_mask, inspect_mask
from flowgrain.data.quarantine import describe_problems
from flowgrain.data.records import Mask, Slice
from flowgrain.data.sources import Found, Source
from flowgrain.errors import DataError
from flowgrain.granularity import granularity_index

PLAIN_LEVEL = "macro"
_SHOWN = 3


def read_folder(source: Source, pixel_multiple: int) -> Found:
    """The pictures of a plain folder, and those that are left out.

    Raises :class:`DataError` for a folder without pictures, one of which none can be read, and one whose pictures have
    two captions; :class:`flowgrain.errors.ConfigError` for shapes that the model cannot take.
    """
    files = list_images(source.path)
    names = [file.relative_to(source.path).as_posix() for file in files]
    index = FileIndex(_index_location(source))
    facts = index.facts(source.path, names, inspect_picture)
    masks = _read_masks(source, names, index)
    index.save([*names, *(mask.name for mask in masks.values() if isinstance(mask, _MaskFile))])
    reader = _Reader(source, _Shapes(source, pixel_multiple), masks)
    found = Found()
    by_id: dict[str, Slice] = {}
    for name, path, known in zip(names, files, facts, strict=True):
        try:
            item, captioned = reader.slice_of(name, path, known)
        except CaptionConflict:
            raise
        except DataError as error:
            found.problems.append((path, str(error).removeprefix(f"{path}: ").removeprefix(f"{path.parent}/")))
            continue
        if item.slice_id in by_id:
            twin = by_id[item.slice_id].path.name
            found.problems.append((path, f"the same picture as {twin}, under the same name"))
            continue
        by_id[item.slice_id] = item
        if not captioned:
            found.uncaptioned.add(item.slice_id)
    if not by_id:
        first = "the first" if len(files) == 1 else f"the first {min(_SHOWN, len(files))}"
        raise DataError(
            f"{source.path}: none of its {len(files)} pictures can be read; {first}: "
            f"{describe_problems(found.problems, _SHOWN)}"
        )
    found.slices = list(by_id.values())
    return found


def inspect_picture(path: Path) -> FileFacts:
    """Digest, upright size and largest alpha of a picture, which is decoded in full.

    Raises :class:`DataError` where it cannot be read.
    """
    data = read_bytes(path)
    image, alpha = decode_image(data, path)
    peak = None if alpha is None else int(np.asarray(alpha).max())
    return FileFacts(sha1_of_bytes(data), image.width, image.height, peak)


class _Shapes:
    """The bucket of each size, chosen once a size."""

    def __init__(self, source: Source, pixel_multiple: int):
        self._resolution = source.resolution(pixel_multiple) if source.data.no_upscale else None
        self._buckets = source.buckets(pixel_multiple) if self._resolution is None else ()
        self._chosen: dict[tuple[int, int], tuple[Bucket, CoverCrop]] = {}

    def of(self, size: tuple[int, int]) -> tuple[Bucket, CoverCrop]:
        """Raises DataError where a picture that must not be enlarged is smaller than the step."""
        if size not in self._chosen:
            self._chosen[size] = self._choose(size)
        return self._chosen[size]

    def _choose(self, size: tuple[int, int]) -> tuple[Bucket, CoverCrop]:
        if self._resolution is not None:
            return shrink_crop(*size, *self._resolution)
        bucket = best_aspect_match(*size, self._buckets)
        return bucket, cover_crop(*size, bucket)


@dataclass(frozen=True)
class _MaskFile:
    name: str
    facts: FileFacts | DataError


def _read_masks(source: Source, names: Sequence[str], index: FileIndex) -> dict[str, _MaskFile | DataError]:
    """The mask file of each picture that has one, or why it cannot be chosen."""
    found: dict[str, str] = {}
    masks: dict[str, _MaskFile | DataError] = {}
    for name in names if source.data.mask == "file" else ():
        try:
            mask = find_mask(source.path, name)
        except DataError as error:
            masks[name] = error
            continue
        if mask is not None:
            found[name] = mask
    facts = index.facts(source.path, list(found.values()), inspect_mask)
    return masks | {name: _MaskFile(found[name], known) for name, known in zip(found, facts, strict=True)}


@dataclass(frozen=True)
class _Reader:
    source: Source
    shapes: _Shapes
    masks: dict[str, _MaskFile | DataError]

    def slice_of(self, name: str, path: Path, facts: FileFacts | DataError) -> tuple[Slice, bool]:
        """The slice of a picture and whether it came with a caption; raises DataError where it must be left out."""
        if isinstance(facts, DataError):
            raise facts
        source, settings = self.source, self.source.settings
        size = (facts.width, facts.height)
        bucket, crop = self.shapes.of(size)
        left, top, right = fitted_margins(*size, bucket)
        own = read_caption(path, source.data.caption_extension)
        level = settings.granularity or PLAIN_LEVEL
        root = f"{source.prefix}{name[: -len(path.suffix)]}-{facts.digest[:8]}"
        item = Slice(
            slice_id=f"{root}/{level}0",
            root=root,
            image=source.prefix + name,
            level=level,
            granularity=granularity_index(level),
            path=path,
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
            mask=self._mask(name, path, facts),
            background=source.data.background,
            keep_tokens=source.keep_tokens,
        )
        return item, bool(own or settings.caption)

    def _mask(self, name: str, path: Path, facts: FileFacts) -> Mask | None:
        if self.source.data.mask == "alpha" and facts.peak is not None:
            if facts.peak == 0:
                raise DataError(f"{path}: transparent everywhere, its alpha as a mask leaves nothing to train on")
            return Mask(path, True, facts.digest)
        match self.masks.get(name):
            case None:
                return None
            case _MaskFile(mask, known):
                return fitting_mask(self.source.path / mask, known, (facts.width, facts.height))
            case error:
                raise error


def _index_location(source: Source) -> Path | None:
    """In the cache folder, never among the user's files; nowhere without a cache folder."""
    if not isinstance(source.data.cache, Path):
        return None
    name = hashlib.blake2b(str(source.path.resolve()).encode(), digest_size=8).hexdigest()
    return source.data.cache / f"files-{name}.json"
