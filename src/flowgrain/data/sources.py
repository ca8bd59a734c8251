"""The sources of a data set: each folder, set of tar shards or Hugging Face data set that the configuration names, with
every default filled in.

kohya's folder layout is read as it is: a folder whose children are called ``<repeats>_<text>`` is one source a child.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from flowgrain.data.buckets import Bucket, bucket_list, long_edge_list
from flowgrain.data.captions import decorate, with_trigger
from flowgrain.data.collections import Collection, Folder, open_collection
from flowgrain.data.collections.tar_shards import TarShards
from flowgrain.data.config import DEFAULT_RESOLUTION, DataConfig, LongEdge, SourceConfig
from flowgrain.data.images import is_picture
from flowgrain.data.quarantine import Problem
from flowgrain.data.records import MANIFEST_NAME, Slice
from flowgrain.data.shard_files import RECORDS_NAME, holds_records
from flowgrain.errors import ConfigError, DataError

_KOHYA = re.compile(r"(\d+)_(.+)")
_MOST_REPEATS = 999
"""More is taken for a year or a number in a folder's name, and refused."""


@dataclass(frozen=True)
class Source:
    """One source to read."""

    data: DataConfig
    settings: SourceConfig
    collection: Collection
    """Its pictures or slices."""
    decomposed: bool
    """Whether 'flowgrain decompose' wrote it."""
    key: str
    """Where its settings stand in the recipe: ``data`` or ``data.sources.N``."""
    name: str
    prefix: str = ""
    """Put before ids and image names, empty where it is the only source."""

    @property
    def path(self) -> Path:
        """The folder, or what else the recipe names."""
        return self.settings.path

    @property
    def levels(self) -> tuple[str, ...] | None:
        """Names of the levels to keep, None for all."""
        return self.settings.levels or self.data.levels

    @property
    def trigger(self) -> str | None:
        """The trigger word; none for regularisation pictures, which must not learn it."""
        return None if self.settings.regularisation else self.settings.trigger or self.data.trigger

    @property
    def keep_tokens(self) -> int:
        """First tags of a caption that stay in front."""
        own = self.settings.keep_tokens
        return self.data.keep_tokens if own is None else own

    def caption(self, own: str | None) -> str:
        """What a picture with the caption ``own`` is called."""
        text = own or self.settings.caption or ""
        text = decorate(text, self.settings.caption_prefix, self.settings.caption_suffix)
        return with_trigger(text, self.trigger) if self.trigger else text

    def buckets(self, pixel_multiple: int) -> tuple[Bucket, ...]:
        """Shapes of a plain folder: the list given, or the one of the resolution.

        Raises :class:`ConfigError` for shapes that the model cannot take.
        """
        given, key = self._shapes()
        if given.buckets is not None:
            for width, height in given.buckets:
                if min(width, height) < 1 or width % pixel_multiple or height % pixel_multiple:
                    raise ConfigError(
                        f"{key}.buckets: {width}x{height} is no positive multiple of the model's {pixel_multiple} px"
                    )
            return given.buckets
        edge = self.long_edge(pixel_multiple)
        return bucket_list(*self.resolution(pixel_multiple)) if edge is None else long_edge_list(*edge)

    def long_edge(self, pixel_multiple: int) -> tuple[int, int, float] | None:
        """(longer side, step, greatest aspect) of the buckets where they share their longer side, else None.

        Raises :class:`ConfigError` for a side that the model cannot take.
        """
        rule = self._shapes()[0].resolution
        return (*self.resolution(pixel_multiple), rule.max_aspect) if isinstance(rule, LongEdge) else None

    def resolution(self, pixel_multiple: int) -> tuple[int, int]:
        """Side whose area pictures have (or the longer side), and the step of sides: about 64 px, finer below 256.

        Raises :class:`ConfigError` for a resolution that the model cannot take.
        """
        given, key = self._shapes()
        rule = given.resolution or DEFAULT_RESOLUTION
        resolution = rule.long_edge if isinstance(rule, LongEdge) else rule
        if resolution < pixel_multiple:
            raise ConfigError(
                f"{key}.resolution: {resolution} is below the {pixel_multiple} px that the model's sides come in"
            )
        return resolution, max(min(64, resolution // 4) // pixel_multiple, 1) * pixel_multiple

    def _shapes(self) -> tuple[SourceConfig | DataConfig, str]:
        """Whose resolution and buckets count: the source's own where it has any."""
        own = self.settings.resolution is not None or self.settings.buckets is not None
        return (self.settings, self.key) if own else (self.data, "data")


@dataclass
class Found:
    """What reading a source gave, before levels are chosen and pictures repeated."""

    slices: list[Slice] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    uncaptioned: set[str] = field(default_factory=set)
    """Ids of the slices that came without a caption."""


def open_source(path: Path) -> tuple[Collection, bool]:
    """What ``path`` names, and whether it is a decomposed data set. Raises as :func:`open_collection`."""
    if (path / MANIFEST_NAME).is_file():
        return Folder(path), True
    collection = open_collection(path)
    return collection, isinstance(collection, TarShards) and _holds_roots(collection)


def list_sources(config: DataConfig) -> tuple[list[Source], list[Problem]]:
    """Every source to read, in the order of the recipe, and the kohya folders that are left out.

    Raises :class:`DataError` for a missing folder or a mixed layout, :class:`ConfigError` for a key that nothing reads.
    """
    named = config.sources or (SourceConfig.model_validate({"path": config.path}),)
    sources: list[Source] = []
    problems: list[Problem] = []
    for number, settings in enumerate(named):
        key = "data" if config.sources is None else f"data.sources.{number}"
        collection, decomposed = open_source(settings.path)
        name = settings.name or settings.path.resolve().name
        children = _kohya_folders(settings) if isinstance(collection, Folder) and not decomposed else []
        for repeats, text, folder in children:
            if repeats == 0:
                problems.append((folder, "0 repeats in its name, left out as kohya does"))
                continue
            own = {"path": folder, "repeats": repeats * settings.repeats, "caption": settings.caption or text}
            full = folder.name if len(named) == 1 else f"{name}/{folder.name}"
            child = settings.model_copy(update=own)
            sources.append(Source(config, child, *open_source(folder), key, full))
        if not children:
            sources.append(Source(config, settings, collection, decomposed, key, name))
    if not sources:
        raise DataError(f"{config.location}: every folder's name gives it 0 repeats; rename those to train on")
    _check_read(config, sources)
    return [replace(s, prefix=f"{s.name}/") for s in sources] if len(sources) > 1 else sources, problems


def _holds_roots(shards: TarShards) -> bool:
    """Whether tars hold the roots of a decomposed data set: by the first ``.json`` member."""
    first = next((name for name in shards.members() if name.endswith(f".{RECORDS_NAME}")), None)
    return first is not None and holds_records(shards.read(first))


def _kohya_folders(settings: SourceConfig) -> list[tuple[int, str, Path]]:
    """(repeats, text, folder) of the children called ``<repeats>_<text>``; empty where the layout is not kohya's."""
    if settings.layout == "plain":
        return []
    try:
        children = sorted(child for child in settings.path.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{settings.path}: the folder cannot be read ({error.strerror})") from None
    folders = [child for child in children if child.is_dir()]
    named = [(match, child) for child in folders if (match := _KOHYA.fullmatch(child.name))]
    if not named:
        return []
    plain = f"to read it as a plain folder write data.sources: [{{path: {settings.path}, layout: plain}}]"
    first = named[0][1].name
    others = [child.name for child in children if not child.is_dir() and is_picture(child.name)]
    unnamed = [child for child in folders if not _KOHYA.fullmatch(child.name)]
    others += [f"{child.name}/" for child in unnamed if any(is_picture(f.name) for f in child.rglob("*"))]
    if others:
        raise DataError(
            f"{settings.path}: '{others[0]}' lies beside kohya folders such as '{first}', so its repeats are unknown; "
            f"move it into a folder called like them, or {plain}"
        )
    for match, child in named:
        if int(match[1]) > _MOST_REPEATS:
            raise DataError(
                f"{child}: in kohya's layout its name asks for {match[1]} repeats (at most {_MOST_REPEATS}); "
                f"rename it, or {plain}"
            )
    return [(int(match[1]), match[2], child) for match, child in named]


def _check_read(config: DataConfig, sources: list[Source]) -> None:
    """A key that no folder reads is an error, not a surprise."""
    for source in sources:
        for name in ("resolution", "buckets", "granularity"):
            if source.decomposed and getattr(source.settings, name) is not None:
                raise ConfigError(f"{source.key}.{name}: {_fixed(source.path, name)}")
    if config.levels is not None and all(source.settings.levels is not None for source in sources):
        raise ConfigError("data.levels: every source has levels of its own, so it is not read; remove it")
    if all(source.decomposed for source in sources):
        defaults = DataConfig.model_fields
        for name in ("resolution", "buckets", "background", "caption_extension"):
            if getattr(config, name) != defaults[name].default:
                raise ConfigError(f"data.{name}: {_fixed(sources[0].path, name)}")


def _fixed(path: Path, name: str) -> str:
    what = "sizes are" if name in ("resolution", "buckets") else f"{name.replace('_', ' ')} is"
    return (
        f"{path} is a decomposed data set whose {what} fixed in its manifest; remove {name} or decompose again "
        "with another"
    )
