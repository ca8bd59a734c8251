"""The manifest of a comparison: variants' pictures of the same prompts and seeds, and what they are held against.

Pictures may come from ``flowgrain sample`` or from any other tool: a folder needs a ``samples.jsonl`` with the keys
``file``, ``prompt`` and ``seed`` (others are ignored), or captions beside its pictures.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from flowgrain.config import Config, load_config
from flowgrain.data.captions import caption_beside, read_caption
from flowgrain.data.collections import Item as StoredPicture
from flowgrain.data.collections import located
from flowgrain.data.collections.as_file import as_file
from flowgrain.data.images import list_images
from flowgrain.data.manifest import located_records
from flowgrain.data.sources import open_source
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.protocol import ProtocolConfig

COMPARISON_NAME = "comparison.yaml"
SAMPLES_NAME = "samples.jsonl"
ALL_PAIRS_OF = 4
"""Up to so many variants all pairs are compared where none are given."""
RecordT = TypeVar("RecordT", bound=BaseModel)


class VariantConfig(Config):
    """One way to make the pictures."""

    name: str = Field(min_length=1, description="its title in tables and figures, for example granularity 1x")
    pictures: Path = Field(description="folder of pictures, relative to this file")
    run: str | None = Field(default=None, description="the run that the variant is a checkpoint of")
    fraction: float | None = Field(default=None, gt=0, description="multiple of N1 of that checkpoint")
    run_folder: Path | None = Field(default=None, description="folder of that run, relative to this file: its log")


class DatasetConfig(Config):
    """One domain: its variants' pictures and its real pictures."""

    name: str = Field(min_length=1)
    description: str = Field(default="", description="what the domain looks like, told to judges and participants")
    references: Path | None = Field(default=None, description="folder of real pictures, relative to this file")
    variants: tuple[VariantConfig, ...] = Field(min_length=1)


class ComparisonConfig(Config):
    """A ``comparison.yaml``."""

    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig)
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="variants whose differences are measured; by default all pairs of up to four variants, of more the "
        "runs at equal budget, each checkpoint and the next, and the first run at its last budget against the others",
    )


@dataclass(frozen=True)
class Drawn:
    """One generated picture."""

    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Variant:
    """The pictures of one variant on one data set, in the order of their manifest."""

    name: str
    pictures: tuple[Drawn, ...]
    run: str | None = None
    fraction: float | None = None
    """Multiple of N1 of the run's checkpoint."""
    run_folder: Path | None = None


@dataclass(frozen=True)
class Reference:
    """A real picture of the domain; ``caption`` is empty where there is none."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Item:
    """The pictures of all variants for one prompt and seed: what one question shows."""

    key: str
    """Twelve hexadecimal digits that depend on (data set, prompt, seed) alone."""
    dataset: str
    prompt: str
    seed: int
    pictures: dict[str, Path]
    """Variant name -> picture, in the comparison's order of variants."""


@dataclass(frozen=True)
class Dataset:
    """A domain, read and checked."""

    name: str
    description: str
    references: tuple[Reference, ...]
    variants: tuple[Variant, ...]

    def items(self) -> tuple[Item, ...]:
        """One item for every (prompt, seed) that all variants drew, in the order of the first variant."""
        by_variant = {
            variant.name: {(drawn.prompt, drawn.seed): drawn.path for drawn in variant.pictures}
            for variant in self.variants
        }
        first = next(iter(by_variant.values()))
        shared = [key for key in first if all(key in pictures for pictures in by_variant.values())]
        return tuple(
            Item(
                item_key(self.name, prompt, seed),
                self.name,
                prompt,
                seed,
                {name: pictures[prompt, seed] for name, pictures in by_variant.items()},
            )
            for prompt, seed in shared
        )

    def own_reference(self, prompt: str) -> Reference | None:
        """The first reference whose caption is the prompt."""
        return next((reference for reference in self.references if reference.caption == prompt), None)


@dataclass(frozen=True)
class Comparison:
    """One or several comparison files, read and checked; all data sets have the same variants."""

    folder: Path
    """Folder of the first file: results go there by default."""
    protocol: ProtocolConfig
    datasets: tuple[Dataset, ...]
    pairs: tuple[tuple[str, str], ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants in order."""
        return tuple(variant.name for variant in self.datasets[0].variants)

    def items(self) -> tuple[Item, ...]:
        """The items of all data sets."""
        return tuple(item for dataset in self.datasets for item in dataset.items())


class _SampleLine(BaseModel):
    """What a comparison reads of a line of ``samples.jsonl``."""

    file: str = Field(min_length=1)
    prompt: str
    seed: int = 0


def read_comparison(paths: Sequence[Path]) -> Comparison:
    """Read comparison files, or folders that hold a ``comparison.yaml``.

    Raises ConfigError for a bad file, unequal variants or protocols, a data set given twice; DataError for pictures
    that are missing, drawn twice, or that no two variants share.
    """
    if not paths:
        raise ConfigError("give at least one comparison.yaml, or the folder that 'flowgrain sample --protocol' wrote")
    files = [path / COMPARISON_NAME if path.is_dir() else path for path in paths]
    configs = [(file.parent, load_config(ComparisonConfig, file, [])[0]) for file in files]
    protocol = configs[0][1].protocol
    datasets = [
        _dataset(folder, dataset, file)
        for file, (folder, config) in zip(files, configs, strict=True)
        for dataset in config.datasets
    ]
    variants = [variant.name for variant in datasets[0].variants]
    seen: set[str] = set()
    for dataset in datasets:
        names = [variant.name for variant in dataset.variants]
        if names != variants:
            raise ConfigError(
                f"data set '{dataset.name}' has the variants {', '.join(names)}, '{datasets[0].name}' has "
                f"{', '.join(variants)}: all need the same ones in the same order"
            )
        if dataset.name in seen:
            raise ConfigError(f"data set '{dataset.name}' is given twice: give each its own name")
        seen.add(dataset.name)
    for file, (_, config) in zip(files, configs, strict=True):
        if config.protocol != protocol:
            raise ConfigError(f"{file}: its protocol differs from that of {files[0]}; compare them apart")
    return Comparison(
        files[0].parent, protocol, tuple(datasets), _pairs(configs[0][1].pairs, datasets[0].variants, files[0])
    )


def item_key(dataset: str, prompt: str, seed: int) -> str:
    """The key of an item: twelve hexadecimal digits of a hash of its identity."""
    identity = json.dumps([dataset, prompt, seed], ensure_ascii=False)
    return hashlib.blake2b(identity.encode(errors="surrogatepass"), digest_size=6).hexdigest()


def _pairs(
    given: tuple[tuple[str, str], ...], variants: tuple[Variant, ...], file: Path
) -> tuple[tuple[str, str], ...]:
    """The pairs to compare: those given, all of few variants, else those that a reader asks about.

    Every pair more is a chance more to find a difference where there is none.
    """
    names = [variant.name for variant in variants]
    for pair in given:
        for name in pair:
            if name not in names:
                raise ConfigError(f"{file}: pairs: no variant '{name}'; variants: {', '.join(names)}")
    if given or len(names) < 2:
        return given
    if len(names) <= ALL_PAIRS_OF:
        return tuple(combinations(names, 2))
    runs: dict[str, dict[float, str]] = {}
    for variant in variants:
        if variant.run is not None and variant.fraction is not None:
            runs.setdefault(variant.run, {})[variant.fraction] = variant.name
    if not runs:
        return tuple((names[0], other) for other in names[1:])
    return tuple(dict.fromkeys((*_without_run(variants, runs), *_between_runs(runs), *_along_runs(runs))))


def _without_run(variants: tuple[Variant, ...], runs: dict[str, dict[float, str]]) -> Iterator[tuple[str, str]]:
    """A model that was not trained against each run's last checkpoint."""
    for variant in variants:
        if variant.run is None or variant.fraction is None:
            yield from ((variant.name, marks[max(marks)]) for marks in runs.values())


def _between_runs(runs: dict[str, dict[float, str]]) -> Iterator[tuple[str, str]]:
    """Runs at equal budget, then each later run at its first budget against the first run at its last.

    The last kind is the claim of Semantic Granularity Alignment (section 4.4.1): less training, better pictures.
    """
    for one, other in combinations(runs.values(), 2):
        yield from ((one[mark], other[mark]) for mark in sorted(one.keys() & other.keys()))
    first, *later = runs.values()
    yield from ((first[max(first)], marks[min(marks)]) for marks in later)


def _along_runs(runs: dict[str, dict[float, str]]) -> Iterator[tuple[str, str]]:
    """Each checkpoint of a run and the next one."""
    for marks in runs.values():
        yield from pairwise(marks[mark] for mark in sorted(marks))


def _dataset(folder: Path, config: DatasetConfig, file: Path) -> Dataset:
    names = [variant.name for variant in config.variants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{file}: data set '{config.name}': variant '{twice}' is given twice")
    variants = tuple(
        Variant(
            v.name,
            _drawn(folder / v.pictures),
            v.run,
            v.fraction,
            None if v.run_folder is None else folder / v.run_folder,
        )
        for v in config.variants
    )
    references = () if config.references is None else read_references(located(folder, config.references))
    dataset = Dataset(config.name, config.description, references, variants)
    if not dataset.items():
        raise DataError(
            f"data set '{config.name}': no prompt and seed that all of {', '.join(names)} drew; draw the same prompts "
            "and seeds for every variant"
        )
    return dataset


def read_references(folder: Path) -> tuple[Reference, ...]:
    """Real pictures with their captions; of a decomposed data set, its whole images (macro slices).

    ``folder`` is anything that ``data.path`` may be. Pictures in tars and in Hugging Face data sets are copied to a
    temporary folder.
    """
    collection, decomposed = open_source(folder)
    if decomposed:
        slices = located_records(folder, collection)
        found = tuple(Reference(as_file(s.file), s.record.caption) for s in slices if s.record.granularity == "macro")
    else:
        items = (StoredPicture(collection, name) for name in sorted(collection.names()))
        found = tuple(Reference(as_file(item), caption_beside(item) or "") for item in items)
    if not found:
        raise DataError(f"{folder}: no reference pictures; give a folder of pictures or of 'flowgrain decompose'")
    return found


def _drawn(folder: Path) -> tuple[Drawn, ...]:
    """The pictures of one variant; without a manifest every picture has its caption, or its name, as its prompt."""
    manifest = folder / SAMPLES_NAME
    if not manifest.exists():
        paths = list_images(folder)
        if not paths:
            raise DataError(f"{folder}: no {SAMPLES_NAME} and no pictures")
        return tuple(Drawn(read_caption(path) or path.stem, 0, path) for path in paths)
    drawn: dict[tuple[str, int], Drawn] = {}
    for number, line in _json_lines(manifest):
        record = _validated(_SampleLine, manifest, number, line)
        path = folder / record.file
        if not path.is_file():
            raise DataError(f"{manifest}:{number}: {record.file} is not there; draw it again")
        if (record.prompt, record.seed) in drawn:
            raise DataError(f"{manifest}:{number}: prompt and seed {record.seed} are there twice: '{record.prompt}'")
        drawn[record.prompt, record.seed] = Drawn(record.prompt, record.seed, path)
    if not drawn:
        raise DataError(f"{manifest}: holds no picture")
    return tuple(drawn.values())


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):  # prompts may hold other line breaks
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: not a JSON object")
        lines.append((number, value))
    return lines


def _validated(schema: type[RecordT], path: Path, number: int, line: dict[str, Any]) -> RecordT:
    try:
        return schema.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
