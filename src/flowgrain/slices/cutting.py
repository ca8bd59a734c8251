"""One image: from its boxes to slice records (Algorithm 1, stage 3), and from a record to the slice's pixels."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from pydantic import Field

from flowgrain.config import Config
from flowgrain.data.buckets import Bucket
from flowgrain.data.captions import SliceCaption, caption_beside, slice_caption, slice_caption_beside
from flowgrain.data.collections import Item
from flowgrain.data.collections.base import stem_of
from flowgrain.data.records import Box, SliceRecord
from flowgrain.slices.finding import WHOLE_IMAGE, Found, Region
from flowgrain.slices.framing import Decision, focus, framing_crop
from flowgrain.slices.hierarchy import Candidate, Rejected, parent_of
from flowgrain.slices.scheme import Scheme
from flowgrain.slices.upscalers import Upscaler, resample


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
    detector: str | None = Field(default=None, description="kind of the detector that found the box")
    parent: str | None = Field(default=None, description="slice_id of the coarser slice that contains the box")
    code: str = Field(description="short name of the reason, for counting")
    reason: str = Field(description="the numbers behind it")


@dataclass(frozen=True)
class Cuts:
    """What one image gives."""

    records: tuple[SliceRecord, ...]
    rejects: tuple[RejectRecord, ...]


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
    return f"{stem_of(name)}-{sha1[:8]}"


def render(image: Image.Image, record: SliceRecord, upscaler: Upscaler) -> Image.Image:
    """The pixels of a slice, cut from the original image in one pass."""
    size = record.width, record.height
    if record.action == "native":
        return image.crop(record.crop)  # on whole pixels
    if record.action == "upscale":
        return upscaler.upscale(image, record.crop, size)
    return resample(image, record.crop, size)


def render_mask(mask: Image.Image, record: SliceRecord) -> Image.Image:
    """The mask of a slice, cut as its picture is but never by an upscaling network."""
    size = record.width, record.height
    return mask.crop(record.crop) if record.action == "native" else resample(mask, record.crop, size)


def inputs_digest(item: Item, scheme: Scheme) -> str:
    """Hash of the files beside an image that decide its slices: captions and boxes.

    Raises :class:`flowgrain.errors.DataError` for a caption that is not UTF-8 and for files that cannot be read.
    """
    digest = hashlib.sha1()
    sidecars = (slice_caption_beside(item, [name]) for name in _sidecar_names(scheme))
    digest.update(repr([caption_beside(item), *sidecars]).encode())
    for level in scheme.levels:
        for detector in level.detectors:
            digest.update(repr(detector.inputs(item)).encode())
    return digest.hexdigest()


def cut(found: Found, item: Item, sha1: str, scheme: Scheme, caption: str | None) -> Cuts:
    """The slices of an image with this caption, coarse to fine, root by root.

    Raises :class:`flowgrain.errors.DataError` for a caption that is not UTF-8.
    """
    return _Cutter(item, sha1, scheme, caption).cut(found)


def outside_mask(record: SliceRecord) -> RejectRecord:
    """The rejects line of a slice that shows nothing of its image's mask."""
    return RejectRecord(
        image=record.image,
        root=record.root,
        level=record.level,
        box=record.box,
        label=record.label,
        score=record.score,
        detector=record.detector,
        parent=record.parent,
        code="outside_mask",
        reason="the mask is black everywhere in it",
    )


class _Cutter:
    """Stage 3 for one image."""

    def __init__(self, item: Item, sha1: str, scheme: Scheme, caption: str | None):
        self._item = item
        self._sha1 = sha1
        self._scheme = scheme
        self._caption = caption
        self._root = root_name(item.name, sha1)

    def cut(self, found: Found) -> Cuts:
        records: list[SliceRecord] = []
        rejects = [self._reject(self._root, item, None) for item in found.refused]
        for number, region in enumerate(found.regions):
            root, prefix = (f"{self._root}/p{number}", f"p{number}.") if self._scheme.pre_split else (self._root, "")
            made, refused = self._slices(region, root, prefix)
            records += made
            rejects += refused
        return Cuts(tuple(records), tuple(rejects))

    def _slices(self, region: Region, root: str, prefix: str) -> tuple[list[SliceRecord], list[RejectRecord]]:
        """Size and framing of each surviving box; too small ones are refused."""
        records: list[SliceRecord] = []
        kept: list[Candidate] = []
        refused = list(region.refused)
        numbers: Counter[int] = Counter()

        def parent_id(candidate: Candidate) -> str | None:
            parent = parent_of(candidate, kept)
            return None if parent is None else records[kept.index(parent)].slice_id

        for candidate in region.candidates:
            level, box = self._scheme.levels[candidate.level], candidate.box
            target, decision = self._scheme.decision(candidate.level, box)
            if decision.action == "discard":
                refused.append(Rejected(candidate.level, box, candidate.detection, decision.code, decision.reason))
                continue
            finer = [(b.box, b.detection.score) for b in region.candidates if b.level > candidate.level]
            crop = framing_crop(box, target, decision, focus(box, finer))
            place = _Place(f"{level.name}{numbers[candidate.level]}", target, crop, parent_id(candidate))
            records.append(self._record(root, prefix, candidate, decision, place))
            kept.append(candidate)
            numbers[candidate.level] += 1
        rejects = [self._reject(root, r, parent_id(Candidate(r.level, r.box, r.detection))) for r in refused]
        return records, rejects

    def _record(self, root: str, prefix: str, candidate: Candidate, decision: Decision, place: _Place) -> SliceRecord:
        level, detection = self._scheme.levels[candidate.level], candidate.detection
        whole = detection.detector == WHOLE_IMAGE
        text = self._slice_caption(prefix, candidate, place.local)
        found = "whole image" if whole else f"{detection.detector} '{detection.label}', score {detection.score:.3f}"
        return SliceRecord(
            slice_id=f"{root}/{place.local}",
            root=root,
            image=self._item.name,
            image_sha1=self._sha1,
            level=level.name,
            granularity=level.config.granularity,
            path=f"slices/{root}/{place.local}.{self._scheme.config.image_format}",
            width=place.target[0],
            height=place.target[1],
            box=candidate.box,
            crop=place.crop,
            scale=decision.scale,
            action=decision.action,
            upscaler=self._scheme.upscaler.method(decision.scale) if decision.action == "upscale" else "",
            reason=f"{found}; {decision.reason}",
            parent=place.parent,
            detector=detection.detector,
            label=detection.label,
            score=detection.score,
            caption=text.text,
            caption_source=text.source,
        )

    def _slice_caption(self, prefix: str, candidate: Candidate, local: str) -> SliceCaption:
        level, detection = self._scheme.levels[candidate.level], candidate.detection
        own = detection.caption or slice_caption_beside(self._item, [prefix + local, local, level.name])
        trigger = self._scheme.config.trigger
        return slice_caption(own, level.config.caption, self._caption, trigger, detection.label)

    def _reject(self, root: str, item: Rejected, parent: str | None) -> RejectRecord:
        return RejectRecord(
            image=self._item.name,
            root=root,
            level=self._scheme.levels[item.level].name,
            box=item.box,
            label=item.detection.label,
            score=item.detection.score,
            detector=item.detection.detector,
            parent=parent,
            code=item.code,
            reason=item.reason,
        )


def _sidecar_names(scheme: Scheme) -> Iterator[str]:
    """Every name that a slice's caption file may have, for :func:`inputs_digest`."""
    regions = [""]
    if scheme.pre_split:
        regions += [f"p{index}." for index in range(scheme.levels[0].config.max_instances)]
    for level in scheme.levels:
        yield level.name
        for prefix in regions:
            yield from (f"{prefix}{level.name}{index}" for index in range(level.config.max_instances))
