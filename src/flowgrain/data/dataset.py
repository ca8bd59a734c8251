"""Data sets of slices: decomposed ones (``manifest.jsonl``) and plain pictures, in folders, tar shards or Hugging Face
data sets, one or several.

Slices are sorted by id; flips, caption dropout and the tags of captions are drawn from identity: nothing depends on the
order in which files are found or asked for.
"""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowgrain.data.buckets import Bucket
from flowgrain.data.captions import vary_tags
from flowgrain.data.config import DEFAULT_RESOLUTION, DataConfig, SourceConfig
from flowgrain.data.folder import PLAIN_LEVEL, read_pictures
from flowgrain.data.images import decode_image, to_tensor
from flowgrain.data.manifest import read_manifest, wrong_size
from flowgrain.data.masks import read_mask
from flowgrain.data.quarantine import Problem
from flowgrain.data.records import Slice
from flowgrain.data.sources import Source, list_sources
from flowgrain.data.tuples import SliceTable
from flowgrain.errors import DataError
from flowgrain.rng import stable_seed, uniform

__all__ = [
    "DEFAULT_RESOLUTION",
    "PLAIN_LEVEL",
    "DataConfig",
    "Slice",
    "SliceDataset",
    "SourceConfig",
    "open_dataset",
    "open_split",
]


@dataclass(frozen=True)
class SliceDataset:
    """Slices sorted by id, with their pixels, masks, captions and random choices."""

    config: DataConfig
    slices: tuple[Slice, ...]
    problems: tuple[Problem, ...] = ()
    """Files left out, each with its reason."""
    missing_captions: int = 0
    """Slices that came without a caption, before any split."""

    def __len__(self) -> int:
        return len(self.slices)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that a run depends on: ids, contents, levels, captions, shapes, geometry, weights, masks."""
        digest = hashlib.blake2b(digest_size=16)
        for s in self.slices:
            mask = f"{'alpha' if s.mask.from_alpha else 'grey'} {s.mask.digest}" if s.mask else ""
            geometry = f"{s.native} {s.offset} {s.offset_mirrored}"
            names = (s.slice_id, s.root, s.level, str(s.granularity), s.digest, s.transform)
            fields = (*names, str(s.bucket), geometry, s.caption, str(s.keep_tokens), repr(s.weight), mask)
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
            weight=np.array([s.weight for s in self.slices], np.float64),
        )

    @property
    def flips(self) -> tuple[bool, ...]:
        """The mirror states that training can ask for."""
        return (False, True) if self.config.flip else (False,)

    def captions(self, seed: int) -> tuple[str, ...]:
        """Every caption that training asks a cache for, sorted, the empty one included where captions may be dropped.

        Where captions vary these are their kept variants, which are drawn by ``seed``.
        """
        variants = range(self.config.caption_variants or 1) if self.config.captions_vary else range(1)
        found = {self._variant(s, seed, variant) for s in self.slices for variant in variants}
        return tuple(sorted(found | ({""} if self.config.caption_dropout else set())))

    def pixels(self, index: int, flip: bool = False) -> Float[Tensor, "3 h w"]:
        """Pixels in [-1, 1] at the bucket's size; raises :class:`DataError` if the file changed or cannot be read."""
        chosen = self.slices[index]
        image = decode_image(chosen.file.read(), Path(chosen.file.place()), chosen.background)[0]
        if chosen.crop is not None:
            (left, top), (width, height) = (chosen.crop.left, chosen.crop.top), chosen.bucket
            image = image.resize(chosen.crop.resize, Image.Resampling.LANCZOS)
            image = image.crop((left, top, left + width, top + height))
        if image.size != chosen.bucket:
            raise wrong_size(chosen.file, image.size, chosen.slice_id, chosen.bucket)
        pixels = to_tensor(image)
        return pixels.flip(-1) if flip else pixels

    def mask(self, index: int, flip: bool = False) -> Float[Tensor, "h w"] | None:
        """Where the loss counts, in [0, 1] at the bucket's size; None where it counts everywhere.

        Raises :class:`DataError` if the file changed or cannot be read.
        """
        return read_mask(self.slices[index], flip)

    def caption(self, index: int, seed: int, epoch: int) -> str:
        """The caption of a slice in an epoch: left out as a whole, or its tags left out and shuffled.

        With ``caption_variants`` it is one of so many, each in turn, beginning anywhere.
        """
        chosen, config = self.slices[index], self.config
        dropout = config.caption_dropout
        if dropout and uniform(seed, epoch, chosen.slice_id, "caption dropout") < dropout:
            return ""
        if config.caption_variants is not None:
            first = stable_seed(seed, chosen.slice_id, "caption variant")
            return self._variant(chosen, seed, (first + epoch) % config.caption_variants)
        if not config.captions_vary:
            return chosen.caption
        return vary_tags(chosen.caption, config.variation, chosen.keep_tokens, seed, epoch, chosen.slice_id, "tags")

    def _variant(self, item: Slice, seed: int, variant: int) -> str:
        """The kept form number ``variant`` of a caption."""
        if not self.config.captions_vary:
            return item.caption
        identity = (seed, "caption variant", variant, item.slice_id)
        return vary_tags(item.caption, self.config.variation, item.keep_tokens, *identity)

    def flipped(self, index: int, seed: int, epoch: int) -> bool:
        """Whether a slice is mirrored in an epoch."""
        if not self.config.flip:
            return False
        chosen = self.slices[index]
        identity = chosen.root if self.config.flip_scope == "root" else chosen.slice_id
        return uniform(seed, epoch, identity, "flip") < 0.5

    def split(self, fraction: float, seed: int = 0) -> tuple["SliceDataset", "SliceDataset"]:
        """(training, held-out) parts by source image, so that no picture has slices on both sides.

        Slices of one image, its repeats and copies of the same file in any source go together. Images are ranked by a
        hash of their contents, so that adding one moves at most one other to the other side; at least one image is
        held out and one kept. Regularisation pictures are never held out.
        Raises :class:`DataError` with fewer than two images, ValueError for a fraction outside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"held-out fraction must lie strictly between 0 and 1, got {fraction}")
        image = _images(self.slices)
        kept = {code for s, code in zip(self.slices, image, strict=True) if s.regularisation}
        images = sorted(set(image) - kept, key=lambda code: (stable_seed(seed, code, "holdout"), code))
        if len(images) < 2:
            count = f"{len(images)} image" + (" beside the regularisation pictures" if kept else "")
            raise DataError(f"{self.config.location}: {count}, holding some out needs at least 2")
        held = set(images[: min(max(round(fraction * len(images)), 1), len(images) - 1)])
        sides = [code in held for code in image]
        return self._only([not side for side in sides]), self._only(sides)

    def first_roots(self, count: int) -> "SliceDataset":
        """The slices of the first ``count`` roots by name."""
        first = set(sorted({s.root for s in self.slices})[:count])
        return self._only([s.root in first for s in self.slices])

    def _only(self, keep: Sequence[bool]) -> "SliceDataset":
        slices = tuple(s for s, kept in zip(self.slices, keep, strict=True) if kept)
        return SliceDataset(self.config, slices, self.problems, self.missing_captions)


def open_dataset(config: DataConfig, pixel_multiple: int) -> SliceDataset:
    """Read the folders of a data set; ``pixel_multiple`` is what the model asks of image sides, in pixels.

    ``config.holdout`` is not applied, see :func:`open_split`. Unreadable pictures of a plain folder are left out and
    listed in ``problems``. Raises :class:`DataError` for a missing or empty folder, a wrong manifest line or nothing
    readable, :class:`flowgrain.errors.ConfigError` for shapes that the model cannot take and keys that nothing reads.
    """
    with _without_collector():
        return _open(config, pixel_multiple)


def _open(config: DataConfig, pixel_multiple: int) -> SliceDataset:
    sources, problems = list_sources(config)
    slices: list[tuple[Source, Slice]] = []
    uncaptioned: set[str] = set()
    present: set[str] = set()
    for source in sources:
        found = read_manifest(source, pixel_multiple) if source.decomposed else read_pictures(source, pixel_multiple)
        levels = {s.level for s in found.slices}
        if source.settings.levels is not None:
            _check_levels(str(source.path), source.settings.levels, levels)
        present |= levels
        slices += [(source, s) for s in found.slices if source.levels is None or s.level in source.levels]
        problems += found.problems
        uncaptioned |= found.uncaptioned
    _check_levels(config.location, config.levels or (), present)
    if config.mask != "none" and not any(s.mask for _, s in slices):
        what = "file STEM.mask.png" if config.mask == "file" else "alpha channel (or STEM.mask.png, decomposed)"
        raise DataError(f"{config.location}: data.mask is '{config.mask}', but no picture has a mask: no {what}")
    first = set(sorted({s.root for _, s in slices})[: config.max_roots])
    copies = [copy for source, s in slices if s.root in first for copy in _repeated(s, source.settings.repeats)]
    chosen = tuple(sorted(copies, key=lambda s: s.slice_id))
    _check_distinct(chosen)
    missing = sum(s.slice_id.removesuffix(_suffix(s.repeat)) in uncaptioned for s in chosen)
    return SliceDataset(config, chosen, tuple(problems), missing)


def open_split(config: DataConfig, pixel_multiple: int, seed: int = 0) -> tuple[SliceDataset, SliceDataset | None]:
    """(training, held-out) parts of a data set by ``config.holdout``; the second is None where it holds nothing out.

    Held-out pictures come once, as they are: without repeats, flips and variation of captions. Raises as
    :func:`open_dataset` and :meth:`SliceDataset.split` do.
    """
    dataset = open_dataset(config, pixel_multiple)
    if config.holdout is None:
        return dataset, None
    train, held = dataset.split(config.holdout, seed)
    varied = ("flip", "caption_dropout", "caption_shuffle", "tag_dropout", "caption_variants")
    plain = config.model_copy(update={key: DataConfig.model_fields[key].default for key in varied})
    return train, replace(held, config=plain, slices=tuple(s for s in held.slices if s.repeat == 1))


@contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage collection inside: the many small objects made there all stay, and looking through them over and
    over takes as long as all the rest.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_levels(where: str, asked: Sequence[str], present: set[str]) -> None:
    unknown = sorted(set(asked) - present)
    if unknown:
        raise DataError(f"{where}: no slice of level '{unknown[0]}'; levels here: {', '.join(sorted(present))}")


def _check_distinct(slices: Sequence[Slice]) -> None:
    """Ids that were made unique by suffixes must not meet ids that end so by themselves."""
    owners: dict[str, Slice] = {}
    for s in slices:
        owner = owners.setdefault(s.root, s)
        if (owner.source, owner.repeat) != (s.source, s.repeat):
            places = f"{owner.file.place()} and {s.file.place()}"
            raise DataError(f"root '{s.root}' stands for {places}; rename one of the two")
    for one, two in pairwise(slices):
        if one.slice_id == two.slice_id:
            places = f"{one.file.place()} and {two.file.place()}"
            raise DataError(f"slice '{one.slice_id}' stands for {places}; rename one of the two")


def _suffix(repeat: int) -> str:
    return "" if repeat == 1 else f"#{repeat}"


def _repeated(item: Slice, repeats: int) -> list[Slice]:
    """The slice and its copies: units of their own, with noise of their own and the same pixels."""
    return [item] + [
        replace(item, slice_id=item.slice_id + _suffix(n), root=item.root + _suffix(n), repeat=n)
        for n in range(2, repeats + 1)
    ]


def _images(slices: Sequence[Slice]) -> list[str]:
    """The source image of each slice, by the smallest digest that it is known under.

    Slices are of one image where their image's digest or their image's name is the same, and so on along the chain.
    """
    parent: dict[str, str] = {}

    def top(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for s in slices:
        one, two = sorted((top(f"digest {s.image_digest}"), top(f"name {s.image}")))
        parent[two] = one
    return [top(f"digest {s.image_digest}") for s in slices]


def _codes(values: Sequence[str] | Sequence[Bucket]) -> np.ndarray:
    """Rank of each value among the sorted distinct ones, int64."""
    ranks = {value: rank for rank, value in enumerate(sorted(set(values)))}
    return np.array([ranks[value] for value in values], np.int64)
