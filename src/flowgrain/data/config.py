"""What a recipe says about its data: one folder (``path``) or several (``sources``); ``docs/data.md`` explains it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from flowgrain.config import Config
from flowgrain.data.buckets import Bucket
from flowgrain.data.captions import CaptionExtension, TagVariation
from flowgrain.data.images import WHITE
from flowgrain.granularity import Granularity

DEFAULT_RESOLUTION = 1024
DRAWN_ANEW = (
    "flip",
    "flip_scope",
    "caption_dropout",
    "caption_shuffle",
    "caption_separator",
    "tag_dropout",
    "caption_variants",
)
"""Keys of ``data`` that decide what is drawn of a slice each epoch; a data set's fingerprint knows the rest."""

_WHAT_PATH_NAMES = (
    "folder of pictures, kohya folder, data set that 'flowgrain decompose' wrote, tar shards (folder, file or pattern) "
    "or hf:DATASET"
)
_Byte = Annotated[int, Field(ge=0, le=255)]


class LongEdge(Config):
    """Buckets that all have the same longer side: ``resolution: {long_edge: 4096}``."""

    long_edge: int = Field(ge=64, le=8192, description="longer side of every bucket, pixels")
    max_aspect: float = Field(
        default=4.0, ge=1, le=16, description="longer over shorter side at most; longer pictures are left out"
    )


Resolution = Annotated[
    Annotated[int, Field(ge=1), Tag("side")] | Annotated[LongEdge, Tag("rule")],
    Discriminator(lambda value: "rule" if isinstance(value, dict | LongEdge) else "side"),
]


class SourceConfig(Config):
    """One source of several. Levels, resolution, buckets and trigger that it leaves out are those of ``data``."""

    path: Path = Field(description=_WHAT_PATH_NAMES)
    name: str | None = Field(
        default=None, pattern=r"^[^/\\]+$", description="name in slice ids and reports; null: the folder's name"
    )
    layout: Literal["auto", "plain"] = Field(
        default="auto", description="'auto' reads kohya's folders (10_name) as kohya does, 'plain' as any others"
    )
    repeats: int = Field(default=1, ge=1, description="times each picture is shown an epoch, with noise of its own")
    weight: float = Field(default=1.0, gt=0, description="factor of the loss of its slices")
    caption: str | None = Field(default=None, min_length=1, description="caption of pictures that have none")
    caption_prefix: str = Field(default="", description="put before every caption")
    caption_suffix: str = Field(default="", description="put after every caption")
    trigger: str | None = Field(default=None, min_length=1, description="word put before captions that lack it")
    keep_tokens: int | None = Field(default=None, ge=0, description="as data.keep_tokens, for this folder")
    levels: tuple[str, ...] | None = Field(default=None, min_length=1, description="names of the levels to keep")
    granularity: Granularity | None = Field(
        default=None, description="what its pictures count as (plain folder; macro): close-ups are micro"
    )
    resolution: Resolution | None = Field(default=None, description="as data.resolution, for this folder")
    buckets: tuple[Bucket, ...] | None = Field(
        default=None, min_length=1, description="as data.buckets, for this folder"
    )
    regularisation: bool = Field(
        default=False, description="pictures that keep the model's prior: no trigger, never held out"
    )

    @model_validator(mode="after")
    def _readable(self) -> "SourceConfig":
        if self.resolution is not None and self.buckets is not None:
            raise ValueError("give resolution or buckets, not both")
        unread = ("trigger", "caption_prefix", "caption_suffix")
        if self.regularisation and (named := [key for key in unread if getattr(self, key)]):
            raise ValueError(
                f"{named[0]} is not read in a regularisation source, whose pictures keep their own captions: remove it"
            )
        return self


class DataConfig(Config):
    """Which slices to train on, and how pictures and captions vary."""

    path: Path | None = Field(default=None, description=_WHAT_PATH_NAMES)
    sources: tuple[SourceConfig, ...] | None = Field(
        default=None, min_length=1, description="several folders, each with its settings, instead of path"
    )
    levels: tuple[str, ...] | None = Field(default=None, description="names of the levels to keep; null: all")
    resolution: Resolution | None = Field(
        default=None,
        description=f"side in pixels whose area the buckets have (plain folder; {DEFAULT_RESOLUTION}), or {{long_edge: "
        "4096}: buckets that all have this longer side",
    )
    buckets: tuple[Bucket, ...] | None = Field(
        default=None, min_length=1, description="explicit (width, height) list instead of resolution (plain folder)"
    )
    no_upscale: bool = Field(
        default=False,
        description="never enlarge a picture: its bucket is its own size, shrunk to the resolution's area and trimmed "
        "to the step, as kohya's bucket_no_upscale (plain folder)",
    )
    background: tuple[_Byte, _Byte, _Byte] = Field(
        default=WHITE, description="[red, green, blue], 0 to 255, behind transparent pixels (plain folder)"
    )
    mask: Literal["none", "alpha", "file"] = Field(
        default="none", description="where the loss counts: everywhere, by the picture's alpha, by STEM.mask.png"
    )
    flip: bool = Field(default=False, description="mirror slices left to right with probability 1/2, anew each epoch")
    flip_scope: Literal["root", "slice"] = Field(
        default="root", description="'root' mirrors the slices of a root together, 'slice' each on its own"
    )
    caption_extension: CaptionExtension | None = Field(
        default=None, description="read captions from '.txt' or from '.caption' alone; null: from either (plain folder)"
    )
    caption_dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a caption is left empty")
    caption_shuffle: bool = Field(default=False, description="put the tags of a caption in another order each epoch")
    tag_dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a tag of a caption is left out")
    keep_tokens: int = Field(
        default=0, ge=0, description="first tags of a caption that stay in front and are never left out"
    )
    caption_separator: str = Field(
        default=",", min_length=1, description="what stands between the tags of a caption; they are joined by ', '"
    )
    trigger: str | None = Field(default=None, min_length=1, description="word put before captions that lack it")
    holdout: float | None = Field(
        default=None, gt=0, lt=1, description="share of the source images kept for validation; null: none"
    )
    cache: bool | Path = Field(
        default=True, description="encode once: true keeps it in memory, a folder keeps it for later runs too"
    )
    cache_text: bool = Field(
        default=True, description="whether data.cache holds captions too; false runs the text encoders in every update"
    )
    caption_variants: int | None = Field(
        default=None,
        ge=1,
        description="forms to keep of each slice's caption where captions vary; another of them each epoch",
    )
    max_roots: int | None = Field(default=None, ge=1, description="use only the first roots by name, for trial runs")

    @model_validator(mode="after")
    def _one_place_of_each(self) -> "DataConfig":
        if self.path is None and self.sources is None:
            raise ValueError("data.path (one folder) or data.sources (several) is required")
        if self.path is not None and self.sources is not None:
            raise ValueError("give path (one folder) or sources (several), not both; null takes one back")
        if self.resolution is not None and self.buckets is not None:
            raise ValueError("give resolution or buckets, not both")
        if self.no_upscale and (self.buckets or any(source.buckets for source in self.sources or ())):
            raise ValueError("no_upscale makes a bucket of each picture's own size and reads no list: remove buckets")
        names = [source.name or source.path.resolve().name for source in self.sources or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two sources are called '{twice[0]}': give each a name of its own (sources.N.name)")
        return self

    @model_validator(mode="after")
    def _captions_vary_and_are_kept_together(self) -> "DataConfig":
        # values are compared with their defaults: a run's own recipe.yaml writes all of them
        if not self.captions_vary:
            kept = [source.keep_tokens for source in self.sources or ()]
            for key, given in (
                ("keep_tokens", self.keep_tokens or any(kept)),
                ("caption_separator", self.caption_separator != ","),
                ("caption_variants", self.caption_variants is not None),
            ):
                if given:
                    raise ValueError(
                        f"data.{key} is not read where captions do not vary: remove it, or set data.caption_shuffle or "
                        "data.tag_dropout"
                    )
        elif self.caches_text and self.caption_variants is None:
            key = "caption_shuffle" if self.caption_shuffle else "tag_dropout"
            raise ValueError(
                f"data.{key} gives a caption many forms and data.cache_text keeps one: set data.caption_variants to "
                "how many to keep, or data.cache_text to false to encode captions in every update"
            )
        if self.caption_variants is not None and not self.caches_text:
            off = "cache" if self.cache is False else "cache_text"
            raise ValueError(f"data.caption_variants is not read where data.{off} is false: remove it")
        own = [source.keep_tokens is not None for source in self.sources or ()]
        if self.keep_tokens and own and all(own):
            raise ValueError("data.keep_tokens is not read where every source has its own: remove it")
        return self

    @property
    def captions_vary(self) -> bool:
        """Whether a caption's tags are shuffled or left out; leaving out the whole caption is not meant."""
        return self.caption_shuffle or self.tag_dropout > 0

    @property
    def caches_text(self) -> bool:
        """Whether prompt embeddings are computed once and kept."""
        return self.cache is not False and self.cache_text

    @property
    def variation(self) -> TagVariation:
        """How the tags of captions vary."""
        return TagVariation(self.caption_shuffle, self.tag_dropout, self.caption_separator)

    @property
    def location(self) -> str:
        """The folder or folders, for messages."""
        return str(self.path) if self.path is not None else ", ".join(str(source.path) for source in self.sources or ())
