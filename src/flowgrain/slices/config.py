"""Configuration of a decomposition: levels from coarse to fine, bucket sizes, thresholds."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from flowgrain.config import Config, Layered, build_config, merged
from flowgrain.data.buckets import Bucket, bucket_list
from flowgrain.data.captions import check_template
from flowgrain.errors import ConfigError
from flowgrain.granularity import Granularity, granularity_index
from flowgrain.slices.captioners.registry import OneCaptioner
from flowgrain.slices.detectors import DetectorConfig
from flowgrain.slices.detectors.registry import Detectors
from flowgrain.slices.detectors.saliency import SaliencyConfig
from flowgrain.slices.detectors.vlm import VlmDetectorConfig
from flowgrain.slices.upscalers.lanczos import LanczosConfig
from flowgrain.slices.upscalers.registry import OneUpscaler
from flowgrain.vlm.settings import VlmConfig, decisive

SETTINGS_SUFFIX = ".decompose.yaml"
"""Ending of the file beside an image that holds settings of its own."""
CODE_VERSION = 2
"""Raised by hand when the same configuration would cut other slices, so that re-runs do not mix both."""


class BucketRule(Config):
    """Bucket sizes made the way of kohya's sd-scripts, limited in aspect."""

    resolution: int = Field(default=1024, ge=16, le=8192, description="side of the square bucket, pixels")
    step: int = Field(default=64, ge=1, description="every side is a multiple of this, pixels")
    min_side: int | None = Field(default=None, ge=16, description="shortest side, pixels; null: half the resolution")
    max_side: int | None = Field(default=None, ge=16, description="longest side, pixels; null: twice the resolution")
    max_aspect: float = Field(default=2.0, ge=1, description="greatest ratio of the longer to the shorter side")

    @model_validator(mode="after")
    def _some(self) -> "BucketRule":
        try:
            self.sizes()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    def sizes(self) -> tuple[Bucket, ...]:
        """Sorted (width, height) sizes, the square among them."""
        sizes = bucket_list(self.resolution, self.step, self.min_side, self.max_side)
        return tuple((w, h) for w, h in sizes if max(w, h) <= self.max_aspect * min(w, h))


def _check_sizes(sizes: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
    if not sizes:
        raise ValueError("give at least one [width, height]")
    small = next((size for size in sizes if min(size) < 16), None)
    if small:
        raise ValueError(f"bucket {small[0]}x{small[1]} has a side below 16 pixels")
    return tuple(sorted(set(sizes)))


Targets = Annotated[
    Annotated[tuple[Bucket, ...], Tag("sizes")] | Annotated[BucketRule, Tag("rule")],
    Discriminator(lambda value: "sizes" if isinstance(value, list | tuple) else "rule"),
]


class LevelConfig(Config):
    """One level of the decomposition."""

    granularity: Granularity = Field(description="decides the modulation of noise levels and weights in training")
    detector: Detectors | None = Field(
        default=None,
        description="finds the level's boxes (docs/slices.md lists them): a map, 'kind' or 'kind:value'; of a list the "
        "first that finds something usable counts; none for the whole image",
    )
    max_instances: int = Field(default=1, ge=1, description="boxes kept per root, best score first")
    min_score: float = Field(default=0.0, ge=0, le=1, description="detections below this are dropped")
    expand: float = Field(default=1.0, gt=0, le=10, description="factor that enlarges a box about its centre")
    square: bool = Field(default=False, description="make boxes squares of the longer side, before clipping")
    targets: Targets | None = Field(default=None, description="bucket sizes of this level; null: those of the data set")
    max_upscale: float = Field(default=2.0, ge=1, description="a box that needs a greater enlargement is discarded")
    max_downscale: float = Field(
        default=1.1, ge=1, description="boxes up to this factor too large are cropped at native scale and not shrunk"
    )
    min_side: int = Field(default=32, ge=1, description="shortest side of a box, source pixels")
    caption: str = Field(default="{caption}", description="template of {caption} (the root's), {trigger}, {label}")

    @property
    def detectors(self) -> tuple[DetectorConfig, ...]:
        """The level's detectors in the order in which they are tried; empty for the whole image."""
        if self.detector is None:
            return ()
        return self.detector if isinstance(self.detector, tuple) else (self.detector,)

    def asking(self, shared: VlmConfig | None) -> "LevelConfig":
        """With what its vlm detectors say nothing about taken from the data set's vlm settings."""
        filled = tuple(d.with_defaults(shared) if isinstance(d, VlmDetectorConfig) else d for d in self.detectors)
        several = isinstance(self.detector, tuple)
        return self.model_copy(update={"detector": filled if several else filled[0]}) if filled else self

    @field_validator("targets")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return _check_sizes(value) if isinstance(value, tuple) else value

    @field_validator("caption")
    @classmethod
    def _template(cls, value: str) -> str:
        return check_template(value)


def _default_levels() -> dict[str, LevelConfig]:
    return {
        "macro": LevelConfig(granularity="macro"),
        "meso": LevelConfig(granularity="meso", detector=SaliencyConfig(fraction=0.6), caption="close-up of {caption}"),
        "micro": LevelConfig(
            granularity="micro",
            detector=SaliencyConfig(fraction=0.35),
            max_upscale=3.0,
            caption="extreme close-up of {caption}",
        ),
    }


class DecomposeConfig(Config):
    """How images become slices (Semantic Granularity Alignment, Algorithm 1)."""

    vlm: VlmConfig | None = Field(
        default=None,
        description="the model that vlm detectors and the captioner ask, for what they do not set themselves",
    )
    captioner: OneCaptioner | None = Field(
        default=None, description="writes captions of images and slices: vlm, or a map; null: they are read from files"
    )
    mode: Literal["whole_image", "pre_split"] = Field(
        default="whole_image", description="the coarsest level is the image, or every box that its detector finds"
    )
    no_region: Literal["whole_image", "skip"] = Field(
        default="whole_image", description="pre-split mode: what an image without a coarsest box becomes"
    )
    levels: dict[str, LevelConfig] = Field(
        default_factory=_default_levels, description="levels by name, coarsest first; null removes one"
    )
    targets: Targets = Field(default=BucketRule(), description="bucket sizes: a list of [width, height], or a rule")
    iou_threshold: float = Field(
        default=0.7, ge=0, le=1, description="a coarser box is suppressed above this IoU with a finer one; 1 = never"
    )
    pair_iou_thresholds: dict[str, float] = Field(
        default_factory=dict, description="thresholds of single pairs, for example meso/micro: 0.6"
    )
    images: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="settings of single images, by name or pattern ('people/*': {max_upscale: ...}); what lies beside "
        "an image as STEM.decompose.yaml wins over them",
    )
    suppress_coarsest: bool = Field(default=False, description="let finer boxes suppress the coarsest slice too")
    dedupe_against_macro: Literal["off", "finer"] = Field(
        default="off", description="finer: drop a finer box whose IoU with its region is above iou_threshold"
    )
    upscaler: OneUpscaler = Field(
        default=LanczosConfig(),
        description="enlarges beyond lanczos_max: ncnn or esrgan, 'kind:value'; lanczos: nothing",
    )
    lanczos_max: float = Field(default=1.25, ge=1, description="greatest enlargement by interpolation")
    trigger: str = Field(
        default="", description="word appended to captions where neither they nor the template have it"
    )
    background: tuple[int, int, int] = Field(default=(255, 255, 255), description="colour under transparency, 0 to 255")
    masks: Literal["none", "alpha", "file"] = Field(
        default="none",
        description="cut masks along with the pictures: from their alpha, or STEM.mask.png beside them; slices that "
        "hold nothing of the mask are refused",
    )
    layout: Literal["folder", "webdataset"] = Field(
        default="folder",
        description="files in folders, or tar shards in which the slices of a root are one WebDataset sample",
    )
    image_format: Literal["png", "webp", "jpg"] = Field(
        default="png", description="png and webp are lossless, jpg is not"
    )

    @field_validator("levels", mode="before")
    @classmethod
    def _present(cls, value: Any) -> Any:
        return {name: level for name, level in value.items() if level is not None} if isinstance(value, dict) else value

    @field_validator("levels")
    @classmethod
    def _ordered(cls, value: dict[str, LevelConfig]) -> dict[str, LevelConfig]:
        if not value:
            raise ValueError("at least one level is needed")
        for name in value:
            if not name.replace("-", "").replace("_", "").isalpha():
                raise ValueError(f"level name '{name}': only letters, '-' and '_' (it becomes part of file names)")
        for (coarse, a), (fine, b) in pairwise(value.items()):
            if granularity_index(a.granularity) > granularity_index(b.granularity):
                found = f"'{fine}' ({b.granularity}) comes after '{coarse}' ({a.granularity})"
                raise ValueError(f"levels go from coarse to fine, but {found}")
        return value

    @field_validator("targets")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return _check_sizes(value) if isinstance(value, tuple) else value

    @field_validator("background")
    @classmethod
    def _colour(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in value):
            raise ValueError(f"background {list(value)}: three numbers from 0 to 255")
        return value

    @model_validator(mode="after")
    def _share_model(self) -> "DecomposeConfig":
        """What asks a model takes from ``vlm`` whatever it does not say itself."""
        levels = {name: level.asking(self.vlm) for name, level in self.levels.items()}
        captioner = self.captioner and self.captioner.with_defaults(self.vlm)
        object.__setattr__(self, "levels", levels)  # frozen for everybody else
        object.__setattr__(self, "captioner", captioner)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "DecomposeConfig":
        names = list(self.levels)
        first = self.levels[names[0]]
        if self.mode == "pre_split" and first.detector is None:
            raise ValueError(f"mode pre_split needs levels.{names[0]}.detector, which finds the regions")
        if self.mode == "whole_image" and first.detector is not None:
            raise ValueError(
                f"levels.{names[0]}.detector is not read in mode whole_image; remove it or set mode pre_split"
            )
        missing = next((name for name in names[1:] if self.levels[name].detector is None), None)
        if missing:
            raise ValueError(f"levels.{missing}.detector: missing; only the coarsest level may go without")
        if self.mode == "whole_image" and self.no_region == "skip":
            raise ValueError("no_region is read in mode pre_split alone")
        pairs = {f"{a}/{b}" for i, a in enumerate(names) for b in names[i + 1 :]}
        for pair, threshold in self.pair_iou_thresholds.items():
            if pair not in pairs:
                raise ValueError(f"pair_iou_thresholds: no pair '{pair}'; pairs are {', '.join(sorted(pairs))}")
            if not 0 <= threshold <= 1:
                raise ValueError(f"pair_iou_thresholds.{pair}: {threshold:g} is not between 0 and 1")
        return self

    def sizes(self, level: str) -> tuple[Bucket, ...]:
        """Bucket sizes of a level, its own or the data set's."""
        targets = self.levels[level].targets or self.targets
        return targets.sizes() if isinstance(targets, BucketRule) else targets

    def threshold(self, coarse: str, fine: str) -> float:
        """IoU above which ``fine`` suppresses ``coarse`` (theta of the paper)."""
        return self.pair_iou_thresholds.get(f"{coarse}/{fine}", self.iou_threshold)

    def override_of(self, name: str) -> dict[str, Any]:
        """Settings that ``images`` gives the image of this name, later patterns over earlier ones."""
        found: dict[str, Any] = {}
        for pattern, settings in self.images.items():
            if self.applies(pattern, name):
                found = merged(found, settings)
        return found

    @staticmethod
    def applies(pattern: str, name: str) -> bool:
        """Whether a pattern of ``images`` names an image: shell style, '*' crosses folders."""
        return fnmatch.fnmatchcase(name, pattern)

    def digest(self) -> str:
        """Hash of everything that decides the slices of an image."""
        settings = decisive(self.model_dump(mode="json", exclude={"images", "vlm"}))
        canonical = json.dumps([CODE_VERSION, settings], sort_keys=False)
        return hashlib.sha1(canonical.encode()).hexdigest()


def overridden(config: DecomposeConfig, override: Mapping[str, Any]) -> DecomposeConfig:
    """The configuration of an image with settings of its own.

    Raises :class:`ConfigError` for an unknown key or a wrong value, and for settings that hold for whole data sets.
    """
    for key in ("images", "layout", "image_format"):
        if key in override:
            raise ConfigError(f"{key}: holds for the whole data set and cannot be set for one image")
    values = spread_each_level(dict(override), tuple(config.levels))
    base = config.model_dump(mode="json", exclude={"images"})
    return build_config(DecomposeConfig, Layered(merged(base, values), {}))


def spread_each_level(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Settings of ``each_level`` written out for each level, below the level's own."""
    values = dict(values)
    shared = values.pop("each_level", None)
    if not shared:
        return values
    own = values.get("levels") or {}
    levels = {name: _over(shared, own.get(name, {})) for name in {**dict.fromkeys(names), **own}}
    return {**values, "levels": levels}


def _over(shared: Mapping[str, Any], own: Any) -> Any:
    """A level's own settings over the shared ones; null removes the level and stays null."""
    return merged(shared, own) if isinstance(own, Mapping) else own
