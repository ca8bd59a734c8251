"""Data sets of slices: a decomposed folder (``manifest.jsonl``) or a plain folder of pictures.

In a plain folder each picture is a root of one macro slice, cover-cropped to its nearest bucket when it is read.
Slices are sorted by id, flips and caption dropout are drawn from identity: nothing depends on the order in which
files are found or asked for.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from flowgrain.config import Config
from flowgrain.data.buckets import Bucket, CoverCrop, best_aspect_match, bucket_list, cover_crop
from flowgrain.data.captions import read_caption
from flowgrain.data.images import list_images, open_image, sha1_of, to_tensor
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.data.tuples import SliceTable
from flowgrain.errors import ConfigError, DataError
from flowgrain.granularity import granularity_index
from flowgrain.rng import stable_seed, uniform

DEFAULT_RESOLUTION = 1024
PLAIN_LEVEL = "macro"
_READERS = 4


class DataConfig(Config):
    """Which slices to train on, and how pictures and captions vary."""

    path: Path = Field(description="folder of pictures, or a folder that 'flowgrain decompose' wrote")
    levels: tuple[str, ...] | None = Field(default=None, description="names of the levels to keep; null: all")
    resolution: int | None = Field(
        default=None,
        ge=1,
        description=f"side in pixels whose area the buckets have (plain folder; {DEFAULT_RESOLUTION})",
    )
    buckets: tuple[Bucket, ...] | None = Field(
        default=None, min_length=1, description="explicit (width, height) list instead of resolution (plain folder)"
    )
    flip: bool = Field(default=False, description="mirror slices left to right with probability 1/2, anew each epoch")
    flip_scope: Literal["root", "slice"] = Field(
        default="root", description="'root' mirrors the slices of a root together, 'slice' each on its own"
    )
    caption_dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a caption is left empty")
    trigger: str | None = Field(default=None, min_length=1, description="word put before captions that lack it")
    cache: bool | Path = Field(
        default=True, description="encode once: true keeps it in memory, a folder keeps it for later runs too"
    )
    max_roots: int | None = Field(default=None, ge=1, description="use only the first roots by name, for trial runs")

    @model_validator(mode="after")
    def _one_source_of_shapes(self) -> "DataConfig":
        if self.resolution is not None and self.buckets is not None:
            raise ValueError("give resolution or buckets, not both")
        return self


@dataclass(frozen=True)
class Slice:
    """One training picture."""

    slice_id: str
    root: str
    image: str
    """Name of the source image; the roots cut from one image share it."""
    level: str
    granularity: int
    path: Path
    caption: str
    bucket: Bucket
    """(width, height) in pixels that the model sees."""
    crop: CoverCrop | None
    """How the file is brought to its bucket, None where it has that size."""
    digest: str
    """SHA-1 of the file's bytes."""
    native: tuple[int, int]
    """(width, height) before resizing, in source pixels: SDXL's original size."""
    offset: tuple[int, int]
    """(left, top) of the bucket in the resized picture: SDXL's crop corner."""

    @property
    def transform(self) -> str:
        """Name of the file-to-bucket transform: part of every cache key."""
        if self.crop is None:
            return "none"
        (width, height), (across, down) = self.crop.resize, self.bucket
        return f"lanczos {width}x{height} crop {self.crop.left},{self.crop.top} {across}x{down}"


@dataclass(frozen=True)
class SliceDataset:
    """Slices sorted by id, with their pixels, captions and random choices."""

    config: DataConfig
    slices: tuple[Slice, ...]
    problems: tuple[tuple[Path, str], ...] = ()
    """Files left out, each with its reason."""
    missing_captions: int = 0
    """Slices that came without a caption, before any split."""

    def __len__(self) -> int:
        return len(self.slices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that a run depends on: ids, contents, levels, captions, shapes."""
        digest = hashlib.blake2b(digest_size=16)
        for s in self.slices:
            fields = (s.slice_id, s.root, s.level, str(s.granularity), s.digest, s.transform, str(s.bucket), s.caption)
            digest.update("\x1f".join(fields).encode() + b"\x1e")
        return digest.hexdigest()

    @cached_property
    def table(self) -> SliceTable:
        """The columns that the planner reads; codes are ranks of the sorted names."""
        return SliceTable(
            root=_codes([s.root for s in self.slices]),
            granularity=np.array([s.granularity for s in self.slices], np.int8),
            level=_codes([s.level for s in self.slices]),
            bucket=_codes([s.bucket for s in self.slices]),
        )

    @property
    def flips(self) -> tuple[bool, ...]:
        """The mirror states that training can ask for."""
        return (False, True) if self.config.flip else (False,)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """Every caption that training can ask for, sorted, the empty one included where captions may be dropped."""
        return tuple(sorted({s.caption for s in self.slices} | ({""} if self.config.caption_dropout else set())))

    def pixels(self, index: int, flip: bool = False) -> Float[Tensor, "3 h w"]:
        """Pixels in [-1, 1] at the bucket's size; raises :class:`DataError` if the file changed or cannot be read."""
        chosen = self.slices[index]
        image = open_image(chosen.path)
        if chosen.crop is not None:
            (left, top), (width, height) = (chosen.crop.left, chosen.crop.top), chosen.bucket
            image = image.resize(chosen.crop.resize, Image.Resampling.LANCZOS)
            image = image.crop((left, top, left + width, top + height))
        if image.size != chosen.bucket:
            raise DataError(
                f"{chosen.path}: {image.width}x{image.height} px, but slice '{chosen.slice_id}' is recorded as "
                f"{chosen.bucket[0]}x{chosen.bucket[1]}; decompose the data set again"
            )
        pixels = to_tensor(image)
        return pixels.flip(-1) if flip else pixels

    def caption(self, index: int, seed: int, epoch: int) -> str:
        """The caption of a slice in an epoch, empty where it is dropped."""
        chosen = self.slices[index]
        probability = self.config.caption_dropout
        if probability and uniform(seed, epoch, chosen.slice_id, "caption dropout") < probability:
            return ""
        return chosen.caption

    def flipped(self, index: int, seed: int, epoch: int) -> bool:
        """Whether a slice is mirrored in an epoch."""
        if not self.config.flip:
            return False
        chosen = self.slices[index]
        identity = chosen.root if self.config.flip_scope == "root" else chosen.slice_id
        return uniform(seed, epoch, identity, "flip") < 0.5

    def split(self, fraction: float, seed: int = 0) -> tuple["SliceDataset", "SliceDataset"]:
        """(training, held-out) parts by source image, so that no picture has slices on both sides.

        Images are ranked by a hash of their names, so that adding one moves at most one other to the other side; at
        least one image is held out and one kept.
        Raises :class:`DataError` with fewer than two images, ValueError for a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"held-out fraction must lie strictly between 0 and 1, got {fraction}")
        images = sorted({s.image for s in self.slices}, key=lambda image: (stable_seed(seed, image, "holdout"), image))
        if len(images) < 2:
            raise DataError(f"{self.config.path}: {len(images)} image, holding some out needs at least 2")
        held = set(images[: min(max(round(fraction * len(images)), 1), len(images) - 1)])
        return self._only(lambda s: s.image not in held), self._only(lambda s: s.image in held)

    def _only(self, keep: Callable[[Slice], bool]) -> "SliceDataset":
        return SliceDataset(self.config, tuple(s for s in self.slices if keep(s)), self.problems, self.missing_captions)


def open_dataset(config: DataConfig, pixel_multiple: int) -> SliceDataset:
    """Read a decomposed or plain folder; ``pixel_multiple`` is what the model asks of image sides, in pixels.

    Unreadable pictures of a plain folder are left out and listed in ``problems``. Raises :class:`DataError` for a
    missing or empty folder, a wrong manifest line or nothing readable, :class:`ConfigError` for shapes that the
    model cannot take.
    """
    if not config.path.is_dir():
        raise DataError(f"{config.path}: no such folder of pictures or slices")
    decomposed = (config.path / MANIFEST_NAME).is_file()
    slices, problems = (
        _read_manifest(config, pixel_multiple) if decomposed else _read_folder(config, _buckets(config, pixel_multiple))
    )
    slices = _select(config, slices)
    missing = sum(not s.caption for s in slices)
    captioned = (_with_trigger(s, config.trigger) for s in slices) if config.trigger else slices
    return SliceDataset(config, tuple(sorted(captioned, key=lambda s: s.slice_id)), tuple(problems), missing)


def _select(config: DataConfig, slices: Sequence[Slice]) -> list[Slice]:
    if config.levels is not None:
        present = sorted({s.level for s in slices})
        unknown = sorted(set(config.levels) - set(present))
        if unknown:
            raise DataError(f"{config.path}: no slice of level '{unknown[0]}'; levels here: {', '.join(present)}")
        slices = [s for s in slices if s.level in config.levels]
    roots = sorted({s.root for s in slices})[: config.max_roots]
    kept = set(roots)
    return [s for s in slices if s.root in kept]


def _with_trigger(item: Slice, trigger: str) -> Slice:
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", item.caption):
        return item
    return replace(item, caption=f"{trigger}, {item.caption}" if item.caption else trigger)


def _codes(values: Sequence[str] | Sequence[Bucket]) -> np.ndarray:
    """Rank of each value among the sorted distinct ones, int64."""
    ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return np.array([ranks[value] for value in values], np.int64)


def _buckets(config: DataConfig, pixel_multiple: int) -> tuple[Bucket, ...]:
    """Shapes of a plain folder: the list given, or kohya's list in steps of about 64 px, finer below 256 px."""
    if config.buckets is not None:
        for width, height in config.buckets:
            if min(width, height) < 1 or width % pixel_multiple or height % pixel_multiple:
                raise ConfigError(
                    f"data.buckets: {width}x{height} is no positive multiple of the model's {pixel_multiple} px"
                )
        return config.buckets
    resolution = config.resolution or DEFAULT_RESOLUTION
    if resolution < pixel_multiple:
        raise ConfigError(
            f"data.resolution: {resolution} is below the {pixel_multiple} px that the model's sides come in"
        )
    return bucket_list(resolution, max(min(64, resolution // 4) // pixel_multiple, 1) * pixel_multiple)


def _read_folder(config: DataConfig, buckets: Sequence[Bucket]) -> tuple[list[Slice], list[tuple[Path, str]]]:
    files = list_images(config.path)
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_inspect, files))
    slices: dict[str, Slice] = {}
    problems: list[tuple[Path, str]] = []
    for path, (size, digest, reason) in zip(files, found, strict=True):
        image = path.relative_to(config.path).as_posix()
        root = f"{image[: -len(path.suffix)]}-{digest[:8]}"
        twin = slices.get(f"{root}/{PLAIN_LEVEL}0")
        if twin is not None:
            reason = f"the same picture as {twin.path.name}, under the same name"
        if reason:
            problems.append((path, reason))
            continue
        bucket = best_aspect_match(*size, buckets)
        crop = cover_crop(*size, bucket)
        item = Slice(
            slice_id=f"{root}/{PLAIN_LEVEL}0",
            root=root,
            image=image,
            level=PLAIN_LEVEL,
            granularity=granularity_index("macro"),
            path=path,
            caption=read_caption(path) or "",
            bucket=bucket,
            crop=None if size == bucket else crop,
            digest=digest,
            native=size,
            offset=(crop.left, crop.top),
        )
        slices[item.slice_id] = item
    if not slices:
        path, reason = problems[0]
        raise DataError(
            f"{config.path}: none of its {len(files)} pictures can be read; the first: {path.name}: {reason}"
        )
    return list(slices.values()), problems


def _inspect(path: Path) -> tuple[tuple[int, int], str, str]:
    """(width, height), digest and, where the file cannot be read, the reason."""
    try:
        return open_image(path).size, sha1_of(path), ""
    except DataError as error:
        return (0, 0), "", str(error).removeprefix(f"{path}: ")


def _read_manifest(config: DataConfig, pixel_multiple: int) -> tuple[list[Slice], list[tuple[Path, str]]]:
    for name in ("resolution", "buckets"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"data.{name}: {config.path} is a decomposed data set whose sizes are fixed in its {MANIFEST_NAME}; "
                f"remove {name} or decompose again at another size"
            )
    records = list(_records(config.path, pixel_multiple))
    if not records:
        raise DataError(f"{config.path / MANIFEST_NAME}: no slice in it; decompose the data set again")
    with ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(sha1_of, [config.path / record.path for record in records])
        return [_slice_of(config.path, *pair) for pair in zip(records, digests, strict=True)], []


def _records(folder: Path, pixel_multiple: int) -> Iterator[SliceRecord]:
    manifest = folder / MANIFEST_NAME
    first_line: dict[str, int] = {}
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{manifest}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        try:
            record = SliceRecord.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise DataError(f"{where}: {field + ': ' if field else ''}{problem['msg']}") from None
        if record.slice_id in first_line:
            raise DataError(
                f"{where}: slice_id '{record.slice_id}' was already used at line {first_line[record.slice_id]}"
            )
        first_line[record.slice_id] = number
        if record.width % pixel_multiple or record.height % pixel_multiple:
            raise DataError(
                f"{where}: slice '{record.slice_id}' is {record.width}x{record.height} px, but the model needs "
                f"multiples of {pixel_multiple}; decompose again with targets that are"
            )
        relative = Path(record.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(f"{where}: path '{record.path}' must lie inside the data set's folder")
        if not (folder / relative).is_file():
            raise DataError(f"{where}: file '{record.path}' is missing; restore it or decompose again")
        yield record


def _slice_of(folder: Path, record: SliceRecord, digest: str) -> Slice:
    x0, y0, x1, y1 = record.box
    native = (max(round(x1 - x0), 1), max(round(y1 - y0), 1))
    offset = (round(max(record.crop[0] - x0, 0) * record.scale), round(max(record.crop[1] - y0, 0) * record.scale))
    return Slice(
        slice_id=record.slice_id,
        root=record.root,
        image=record.image,
        level=record.level,
        granularity=granularity_index(record.granularity),
        path=folder / record.path,
        caption=record.caption,
        bucket=(record.width, record.height),
        crop=None,
        digest=digest,
        native=native,
        offset=offset,
    )
