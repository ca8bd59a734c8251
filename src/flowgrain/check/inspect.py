"""Open data as a run would and say what it amounts to: the same code path, no weights, nothing written."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from flowgrain.check.captions import captions, too_long
from flowgrain.check.findings import Arithmetic, BucketRow, Finding, Inspection, Schedule, Storage, ordered
from flowgrain.check.pictures import duplicates, hashes, leaks, shapes, whole_pictures
from flowgrain.data.cache import forecast_bytes, forecast_embedding_bytes
from flowgrain.data.collections.hub import PREFIX
from flowgrain.data.collections.tar_shards import SUFFIX
from flowgrain.data.config import DataConfig
from flowgrain.data.dataset import SliceDataset, open_dataset
from flowgrain.data.records import Update
from flowgrain.data.sources import open_source
from flowgrain.data.tuples import TupleConfig, fill, plan_epoch
from flowgrain.errors import ConfigError
from flowgrain.families.base import Capabilities
from flowgrain.families.registry import read_capabilities
from flowgrain.granularity import Granularity, granularity_index
from flowgrain.train.memory_forecast import forecast_disk
from flowgrain.train.recipe import ModelConfig, Recipe
from flowgrain.train.setup import open_data

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""

_FEW_SLICES = 0.5
"""A fill below this is reported: small micro-batches waste a GPU."""


def inspect_folder(folder: Path, model: ModelConfig, on_progress: Progress) -> Inspection:
    """Check a folder of pictures or a decomposed data set for ``model``, with tuples of 8 roots as an example.

    Raises :class:`DataError` and :class:`ConfigError` for what a run could not open either.
    """
    capabilities, dataset = read_capabilities(model.path, model.config, model.vae), folder_data(folder, model)
    plan = plan_epoch(dataset.table, TupleConfig(), seed=0, epoch=0)
    findings = [*_findings(dataset, None, model, on_progress), *_plan_findings(TupleConfig(), plan)]
    return Inspection(
        subject=str(folder),
        arithmetic=_arithmetic(dataset, None),
        schedule=_schedule(TupleConfig(), dataset, plan, None),
        buckets=_buckets(dataset),
        storage=_storage(dataset, capabilities, folder, None),
        findings=ordered(findings),
    )


def folder_data(folder: Path, model: ModelConfig) -> SliceDataset:
    """The slices of a folder as ``model`` would be trained on them; raises as :func:`inspect_folder`."""
    capabilities = read_capabilities(model.path, model.config, model.vae)
    decomposed = open_source(folder)[1]
    data = DataConfig(path=folder, resolution=None if decomposed else capabilities.native_size)
    return open_dataset(data, capabilities.pixel_multiple)


def recipe_data(recipe: Recipe) -> SliceDataset:
    """The slices that a recipe trains on; raises as :func:`inspect_folder`."""
    return open_data(
        recipe, read_capabilities(recipe.model.path, recipe.model.config, recipe.model.vae).pixel_multiple
    )[0]


def inspect_recipe(recipe: Recipe, on_progress: Progress) -> Inspection:
    """Check the data, the split and the plan of a recipe; raises as :func:`inspect_folder`."""
    capabilities = read_capabilities(recipe.model.path, recipe.model.config, recipe.model.vae)
    dataset, held_out = open_data(recipe, capabilities.pixel_multiple)
    plan = plan_epoch(dataset.table, recipe.tuples, recipe.seed, epoch=0)
    findings = [
        *_findings(dataset, held_out, recipe.model, on_progress),
        *_plan_findings(recipe.tuples, plan),
        *_recipe_findings(recipe, dataset, plan),
    ]
    return Inspection(
        subject=f"recipe {recipe.name} on {recipe.data.location}",
        arithmetic=_arithmetic(dataset, held_out),
        schedule=_schedule(recipe.tuples, dataset, plan, recipe),
        buckets=_buckets(dataset),
        storage=_storage(dataset, capabilities, recipe.output, recipe),
        findings=ordered(findings),
    )


def _arithmetic(dataset: SliceDataset, held_out: SliceDataset | None) -> Arithmetic:
    slices = dataset.slices
    return Arithmetic(
        images=len({(s.source, s.image) for s in slices}),
        quarantined=len(dataset.problems),
        roots=len({s.root for s in slices}),
        distinct_slices=sum(s.repeat == 1 for s in slices),
        slices=len(slices),
        slices_by_level=dict(Counter(s.level for s in slices)),
        slices_by_source=dict(Counter(s.source for s in slices)),
        roots_by_size=dict(sorted(Counter(Counter(s.root for s in slices).values()).items())),
        held_out_images=len({(s.source, s.image) for s in held_out.slices}) if held_out else 0,
        held_out_slices=len(held_out.slices) if held_out else 0,
    )


def _schedule(config: TupleConfig, dataset: SliceDataset, plan: Sequence[Update], recipe: Recipe | None) -> Schedule:
    roots = config.grouping != "slice"
    per_epoch = sum(update.slices for update in plan)
    limit = config.micro_batch or config.batch_size
    epochs, seconds = None, None
    if recipe is not None:
        amount = recipe.budget.amount * recipe.budget.checkpoints[-1]
        if recipe.budget.unit == "seconds":
            seconds = amount
        else:
            epochs = amount / (len(plan) if recipe.budget.unit == "updates" else per_epoch)
    return Schedule(
        unit="roots" if roots else "slices",
        batch_size=config.batch_size,
        units=len({s.root for s in dataset.slices}) if roots else len(dataset.slices),
        updates=len(plan),
        micro_batches=sum(len(update.micro_batches) for update in plan),
        micro_batch=limit,
        fill=fill(plan, limit),
        last_update_units=plan[-1].roots if roots else plan[-1].slices,
        dropped_slices=len(dataset.slices) - per_epoch,
        epochs=epochs,
        total_updates=epochs * len(plan) if epochs is not None else None,
        total_slices=epochs * per_epoch if epochs is not None else None,
        seconds=seconds,
    )


def _buckets(dataset: SliceDataset) -> tuple[BucketRow, ...]:
    levels: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for item in dataset.slices:
        levels[item.bucket][item.level] += 1
    return tuple(
        BucketRow(width, height, counts.total(), dict(counts)) for (width, height), counts in sorted(levels.items())
    )


def _storage(dataset: SliceDataset, capabilities: Capabilities, target: Path, recipe: Recipe | None) -> Storage:
    existing = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    cache = dataset.config.cache
    kept, checkpoint, embeddings = None, None, None
    if recipe is not None:
        kept = len(recipe.budget.checkpoints) + 1 + bool(recipe.validation and recipe.validation.keep_best)
        expected = forecast_disk(recipe)
        checkpoint = expected.checkpoint
        captions = dataset.captions(recipe.seed) if recipe.data.caches_text else ()
        embeddings = forecast_embedding_bytes(len(captions), expected.embedding)
    return Storage(
        latents=forecast_bytes(dataset, capabilities),
        embeddings=embeddings,
        cache_folder=str(cache) if isinstance(cache, Path) else None,
        checkpoint=checkpoint,
        checkpoints=kept,
        free=shutil.disk_usage(existing).free,
    )


def _findings(
    dataset: SliceDataset, held_out: SliceDataset | None, model: ModelConfig, on_progress: Progress
) -> list[Finding]:
    found = [
        Finding("warning", "unreadable", f"left out of training: {reason}", (str(path),))
        for path, reason in dataset.problems
    ]
    found += [*captions(dataset.slices), *too_long(dataset.slices, model.path, model.config), *shapes(dataset.slices)]
    whole = whole_pictures(dataset.slices)
    digests = {name: item.digest for name, item in whole.items()}
    found += duplicates(digests)
    if held_out is not None:
        others = whole_pictures(held_out.slices)
        digests |= {name: item.digest for name, item in others.items()}
        ours = hashes(whole, lambda done, total: on_progress("comparing training pictures", done, total))
        theirs = hashes(others, lambda done, total: on_progress("comparing held-out pictures", done, total))
        found += leaks(ours, theirs, digests)
    return found


def _plan_findings(config: TupleConfig, plan: Sequence[Update]) -> list[Finding]:
    limit = config.micro_batch or config.batch_size
    found = []
    if limit > 1 and fill(plan, limit) < _FEW_SLICES:
        hint = "" if config.packing == "fill" else "; tuples.packing: fill puts roots of like shapes together"
        found.append(
            Finding(
                "note", "fill", f"micro-batches are filled to {fill(plan, limit):.0%}: many shapes, few roots{hint}"
            )
        )
    sizes = {update.roots for update in plan}
    if len(sizes) > 1 and not config.drop_last:
        found.append(
            Finding(
                "note", "last_update",
                f"the last update of an epoch is smaller: {min(sizes)} instead of {max(sizes)} units",
            )
        )  # fmt: skip
    return found


def _recipe_findings(recipe: Recipe, dataset: SliceDataset, plan: Sequence[Update]) -> list[Finding]:
    found = []
    levels = {item.level for item in dataset.slices}
    modulated = {
        "time.granularity_shift": any(recipe.time.granularity_shift.values()),
        "weighting.gamma": len(set(recipe.weighting.gamma.values)) > 1,
    }
    if any(modulated.values()) and len({item.granularity for item in dataset.slices}) == 1:
        keys = ", ".join(key for key, given in modulated.items() if given)
        found.append(
            Finding(
                "warning", "one_granularity",
                f"{keys} differs by granularity, but all slices are {', '.join(sorted(levels))}: decompose the "
                "pictures first, or remove it",
            )
        )  # fmt: skip
    lambdas = recipe.tuples.lambdas
    factors: dict[Granularity, float] = {"macro": lambdas.macro, "meso": lambdas.meso, "micro": lambdas.micro}
    present = {item.granularity for item in dataset.slices}
    absent = [
        *(f"time.granularity_shift.{name}" for name, shift in recipe.time.granularity_shift.items()
          if shift and granularity_index(name) not in present),
        *(f"tuples.lambdas.{name}" for name, factor in factors.items()
          if factor != 1 and granularity_index(name) not in present),
    ]  # fmt: skip
    if absent:
        message = f"{', '.join(absent)}: the data holds no slice of that granularity"
        found.append(Finding("warning", "unread_granularity", message))
    if recipe.budget.unit == "updates" and recipe.budget.amount * recipe.budget.checkpoints[-1] < len(plan):
        found.append(Finding("warning", "short_budget", "the budget ends before every slice was seen once"))
    if recipe.validation is None:
        found.append(
            Finding("note", "no_validation", "no held-out pictures: set data.holdout: 0.1 to see when it overfits")
        )
    return found


def require_folder_or_recipe(subject: str) -> Path | None:
    """The folder, tars or ``hf:`` data set that ``subject`` names, None for a recipe; ConfigError for neither."""
    path = Path(subject)
    if path.is_dir() or subject.startswith(PREFIX) or subject.endswith(SUFFIX):
        return path
    if path.suffix in (".yaml", ".yml") or (not path.exists() and "/" not in subject):
        return None
    raise ConfigError(f"{subject}: neither a folder nor a recipe (.yaml); give one of the two")
