"""One image: from pixels to slice records (Algorithm 1 for a single x), and from a record to the slice's pixels."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from pydantic import Field

from flowgrain.config import Config
from flowgrain.data.buckets import Bucket, best_aspect_match
from flowgrain.data.captions import SliceCaption, read_caption, read_slice_caption, slice_caption
from flowgrain.data.images import open_alpha, open_image, sha1_of
from flowgrain.data.masks import find_mask, fitting_mask, inspect_mask
from flowgrain.data.records import Box, SliceRecord
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.detectors import Detection, View, build_detector
from flowgrain.slices.framing import Decision, Limits, decide, focus, framing_crop
from flowgrain.slices.hierarchy import (
    Candidate,
    Rejected,
    Selection,
    choose,
    drop_near_region,
    parent_of,
    suppress,
)
from flowgrain.slices.upscalers import LanczosUpscaler, Upscaler, resample

_WHOLE = "whole_image"


class RejectRecord(Config):
    """One line of the rejects file: an image or a box that became no slice, and why."""

    image: str = Field(description="source file, relative to the source folder")
    root: str | None = Field(
        default=None, description="root the box belongs to; None where the image itself is rejected"
    )
    level: str | None = Field(default=None)
    box: Box | None = Field(default=None, description="source pixels")
    label: str | None = Field(default=None)
    score: float | None = Field(default=None)
    code: str = Field(description="short name of the reason, for counting")
    reason: str = Field(description="the numbers behind it")


@dataclass(frozen=True)
class Cuts:
    """What one image gives."""

    records: tuple[SliceRecord, ...]
    rejects: tuple[RejectRecord, ...]


@dataclass(frozen=True)
class RenderedSlice:
    """A slice with its pixels and, where its image has one, its mask (mode L, white = train)."""

    record: SliceRecord
    image: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class _Region:
    """A root: the image itself or one box of the coarsest level."""

    root: str
    prefix: str
    """Names the region in caption sidecars: empty, or 'p0.'"""
    candidate: Candidate
    detected: bool
    """Found by the coarsest level's detector; False where it is the whole image."""


@dataclass(frozen=True)
class _Place:
    """Where a slice goes and comes from."""

    local: str
    """Name inside its root, for example micro0."""
    target: Bucket
    crop: Box
    parent: str | None


def root_name(name: str, sha1: str) -> str:
    """Stable id of an image: its path without the extension and the start of its SHA-1."""
    return f"{PurePosixPath(name).with_suffix('').as_posix()}-{sha1[:8]}"


def render(image: Image.Image, record: SliceRecord, upscaler: Upscaler) -> Image.Image:
    """The pixels of a slice, cut from the original image in one pass."""
    size = record.width, record.height
    if record.action == "native":
        return image.crop(record.crop)  # on whole pixels
    if record.action == "upscale":
        return upscaler.upscale(image, record.crop, size)
    return resample(image, record.crop, size)


class Cutter:
    """Decides the slices of one image after another. Holds the detectors, no pixels."""

    def __init__(self, config: DecomposeConfig, source: Path):
        self._config = config
        self._source = source
        self._names = list(config.levels)
        self._levels = list(config.levels.values())
        self._sizes = [config.sizes(name) for name in self._names]
        self._detectors = [
            None if level.detector is None else build_detector(level.detector, source, name, level.max_instances)
            for name, level in config.levels.items()
        ]
        self.upscaler = LanczosUpscaler(config.lanczos_max)

    def inputs(self, name: str) -> str:
        """Hash of the files beside an image that decide its slices: captions and boxes.

        Raises :class:`flowgrain.errors.DataError` for a caption that is not UTF-8.
        """
        path = self._source / name
        digest = hashlib.sha1()
        texts = [read_caption(path), *(read_slice_caption(path, [sidecar]) for sidecar in self._sidecar_names())]
        digest.update(repr(texts).encode())
        if self._config.masks == "file" and (mask := find_mask(self._source, name)) is not None:
            digest.update(sha1_of(self._source / mask).encode())
        for detector in self._detectors:
            digest.update(repr(detector.inputs(name) if detector else b"").encode())
        return digest.hexdigest()

    def mask(self, name: str, size: tuple[int, int]) -> Image.Image | None:
        """The mask of an image of ``size`` (width, height), grey, white = train; None where it has none.

        Raises :class:`flowgrain.errors.DataError` for a mask that cannot be read or is of another shape.
        """
        if self._config.masks == "none":
            return None
        if self._config.masks == "alpha":
            return open_alpha(self._source / name)
        file = find_mask(self._source, name)
        if file is None:
            return None
        path = self._source / file
        fitting_mask(path, inspect_mask(path), size)
        grey = open_image(path, (0, 0, 0)).convert("L")
        return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR)

    def outside(self, record: SliceRecord) -> RejectRecord:
        """The rejects line of a slice that shows nothing of its image's mask."""
        return RejectRecord(
            image=record.image,
            root=record.root,
            level=record.level,
            box=record.box,
            score=record.score,
            code="outside_mask",
            reason="the mask is black everywhere in it",
        )

    def cut(self, image: Image.Image, name: str, sha1: str) -> Cuts:
        """The slices of an upright RGB image, coarse to fine, root by root."""
        records: list[SliceRecord] = []
        rejects: list[RejectRecord] = []
        regions, refused = self._regions(image, name, sha1)
        rejects += [self._reject(name, root_name(name, sha1), item) for item in refused]
        caption = read_caption(self._source / name)
        for region in regions:
            candidates, refused = self._candidates(image, name, region)
            rejects += [self._reject(name, region.root, item) for item in refused]
            more, refused = self._slices(name, sha1, region, candidates, caption)
            records += more
            rejects += [self._reject(name, region.root, item) for item in refused]
        return Cuts(tuple(records), tuple(rejects))

    def _regions(self, image: Image.Image, name: str, sha1: str) -> tuple[list[_Region], list[Rejected]]:
        """Stage 1: the roots of an image, in reading order of their top left corners' x, then y."""
        whole: Box = (0.0, 0.0, float(image.width), float(image.height))
        root = root_name(name, sha1)
        itself = Candidate(0, whole, Detection(whole, "image", 1.0))
        detector = self._detectors[0]
        if self._config.mode == _WHOLE or detector is None:
            return [_Region(root, "", itself, False)], []
        found, refused = choose(detector.detect(View(image, whole, name)), whole, 0, self._selection(0))
        if not found and self._config.no_region == _WHOLE:
            return [_Region(f"{root}/p0", "p0.", itself, False)], refused
        ordered = sorted(found, key=lambda candidate: candidate.box)
        return [_Region(f"{root}/p{i}", f"p{i}.", candidate, True) for i, candidate in enumerate(ordered)], refused

    def _candidates(self, image: Image.Image, name: str, region: _Region) -> tuple[list[Candidate], list[Rejected]]:
        """Stage 2: the boxes of every level in a region that survive, coarse to fine."""
        candidates, rejects = [region.candidate], []
        view = View(image, region.candidate.box, name)
        for level, detector in enumerate(self._detectors):
            if level == 0 or detector is None:
                continue
            found, refused = choose(detector.detect(view), view.region, level, self._selection(level))
            candidates += found
            rejects += refused
        if self._config.dedupe_against_macro == "finer":
            candidates, refused = drop_near_region(candidates, view.region, self._config.iou_threshold)
            rejects += refused
        candidates, refused = suppress(candidates, self._threshold, self._config.suppress_coarsest)
        return candidates, rejects + refused

    def _slices(
        self, name: str, sha1: str, region: _Region, candidates: list[Candidate], caption: str | None
    ) -> tuple[list[SliceRecord], list[Rejected]]:
        """Stage 3: size and framing of each surviving box; too small ones are refused."""
        records: list[SliceRecord] = []
        refused: list[Rejected] = []
        kept: list[Candidate] = []
        numbers: Counter[int] = Counter()
        for candidate in candidates:
            level, box = candidate.level, candidate.box
            target = best_aspect_match(box[2] - box[0], box[3] - box[1], self._sizes[level])
            decision = decide(box, target, self._limits(level), self.upscaler.max_factor)
            if decision.action == "discard":
                refused.append(Rejected(level, box, candidate.detection, decision.code, decision.reason))
                continue
            finer = [(other.box, other.detection.score) for other in candidates if other.level > level]
            crop = framing_crop(box, target, decision, focus(box, finer))
            parent = parent_of(candidate, kept)
            parent_id = records[kept.index(parent)].slice_id if parent is not None else None
            place = _Place(f"{self._names[level]}{numbers[level]}", target, crop, parent_id)
            records.append(self._record(name, sha1, region, candidate, decision, place, caption))
            kept.append(candidate)
            numbers[level] += 1
        return records, refused

    def _record(
        self,
        name: str,
        sha1: str,
        region: _Region,
        candidate: Candidate,
        decision: Decision,
        place: _Place,
        caption: str | None,
    ) -> SliceRecord:
        level, detection = candidate.level, candidate.detection
        detector = self._detectors[level] if level or region.detected else None
        text = self._caption(name, region, candidate, place.local, caption)
        found = f"{detector.kind} '{detection.label}', score {detection.score:.3f}" if detector else "whole image"
        return SliceRecord(
            slice_id=f"{region.root}/{place.local}",
            root=region.root,
            image=name,
            image_sha1=sha1,
            level=self._names[level],
            granularity=self._levels[level].granularity,
            path=f"slices/{region.root}/{place.local}.{self._config.image_format}",
            width=place.target[0],
            height=place.target[1],
            box=candidate.box,
            crop=place.crop,
            scale=decision.scale,
            action=decision.action,
            reason=f"{found}; {decision.reason}",
            parent=place.parent,
            detector=detector.kind if detector else _WHOLE,
            score=detection.score,
            caption=text.text,
            caption_source=text.source,
        )

    def _caption(
        self, name: str, region: _Region, candidate: Candidate, local: str, caption: str | None
    ) -> SliceCaption:
        level, detection = self._names[candidate.level], candidate.detection
        own = detection.caption or read_slice_caption(self._source / name, [region.prefix + local, local, level])
        template = self._levels[candidate.level].caption
        return slice_caption(own, template, caption, self._config.trigger, detection.label)

    def _selection(self, level: int) -> Selection:
        settings = self._levels[level]
        return Selection(settings.min_score, settings.max_instances, settings.expand, settings.square)

    def _limits(self, level: int) -> Limits:
        settings = self._levels[level]
        return Limits(settings.max_upscale, settings.max_downscale, settings.min_side)

    def _threshold(self, coarse: int, fine: int) -> float:
        return self._config.threshold(self._names[coarse], self._names[fine])

    def _reject(self, name: str, root: str, item: Rejected) -> RejectRecord:
        return RejectRecord(
            image=name,
            root=root,
            level=self._names[item.level],
            box=item.box,
            label=item.detection.label,
            score=item.detection.score,
            code=item.code,
            reason=item.reason,
        )

    def _sidecar_names(self) -> Iterator[str]:
        """Every name that a slice's caption file may have, for :meth:`inputs`."""
        regions = [""]
        if self._config.mode != _WHOLE:
            regions += [f"p{index}." for index in range(self._levels[0].max_instances)]
        for name, level in self._config.levels.items():
            yield name
            for prefix in regions:
                yield from (f"{prefix}{name}{index}" for index in range(level.max_instances))
