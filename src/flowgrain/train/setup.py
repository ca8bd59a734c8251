"""Build everything a run needs from its recipe, in the order in which mistakes are cheapest to find."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from flowgrain import rng
from flowgrain.adapters.base import Adapter
from flowgrain.adapters.low_rank import inject
from flowgrain.align.base import Term
from flowgrain.align.references import References
from flowgrain.data.cache import (
    EmbeddingCache,
    EmbeddingSource,
    LiveEmbeddings,
    LivePosteriors,
    PosteriorCache,
    PosteriorSource,
)
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset, open_split
from flowgrain.data.records import Update
from flowgrain.data.sources import open_source
from flowgrain.data.tuples import plan_epoch
from flowgrain.errors import ConfigError
from flowgrain.families.autoencoder import set_tiling
from flowgrain.families.base import Family
from flowgrain.families.registry import load_family
from flowgrain.flow.paths import Path as FlowPath
from flowgrain.flow.time_laws import LogitNormal
from flowgrain.flow.weightings import MinSnr
from flowgrain.granularity import GRANULARITIES
from flowgrain.train.alignment import build_terms, layouts_of, open_encoders, open_references, shapes_of
from flowgrain.train.batches import BatchBuilder
from flowgrain.train.interference import Interference
from flowgrain.train.modulation import MeasuredFactors, MeasuredLaws, Modulation, adapts_laws, check_modulation
from flowgrain.train.modulation_config import ModulationConfig
from flowgrain.train.objective import FineTuning
from flowgrain.train.optimizers import build_optimizer
from flowgrain.train.previews import Previewer
from flowgrain.train.recipe import ModelConfig, Recipe
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.schedule import Ema
from flowgrain.train.sharding import check_shardable, shard_frozen
from flowgrain.train.validation import Validator
from flowgrain.train.weighting_config import GammaConfig

ProgressCallback = Callable[[str, int, int], None]
"""(what, done, total)"""


@dataclass(frozen=True)
class Session:
    """A prepared run."""

    recipe: Recipe
    device: torch.device
    precision: str
    family: Family
    dataset: SliceDataset
    builder: BatchBuilder
    adapter: Adapter
    objective: FineTuning
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    validator: Validator | None
    previewer: Previewer | None
    interference: Interference | None
    modulation: Modulation | None
    """None where nothing of it is measured."""
    runtime: Runtime

    def autocast(self) -> torch.autocast:
        """The autocast context of the run's precision."""
        return autocast_of(self.device, self.precision)

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the adapter holds its moving average, where the recipe has one."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """A context in which the model is what is sampled: moving average where there is one, no adapter dropout."""
        self.adapter.train(False)
        try:
            with self.averaged():
                yield
        finally:
            self.adapter.train(True)

    def recipe_in_force(self) -> Recipe:
        """The recipe with what measured modulation has come to as its own numbers: that of the next update alone."""
        if self.modulation is None:
            return self.recipe
        law, weighting, changed = self.objective.time_law, self.objective.weighting, {}
        if isinstance(law, LogitNormal):
            shift = dict(zip(GRANULARITIES, law.delta, strict=True))
            changed["time"] = self.recipe.time.model_copy(update={"granularity_shift": shift})
        if isinstance(weighting, MinSnr):
            gamma = GammaConfig(**dict(zip(GRANULARITIES, weighting.gammas, strict=True)))
            changed["weighting"] = self.recipe.weighting.model_copy(update={"gamma": gamma})
        return self.recipe.model_copy(update={**changed, "modulation": ModulationConfig()})

    def plan(self, epoch: int) -> list[Update]:
        """The updates of one epoch."""
        return plan_epoch(self.dataset.table, self.recipe.tuples, self.recipe.seed, epoch)


def choose_device(name: str, runtime: Runtime = ALONE) -> torch.device:
    """``auto`` is CUDA where there is one; of several processes on a machine each takes its own.

    Raises ConfigError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: '{name}' is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and runtime.world > 1:
        if device.index is not None:
            raise ConfigError(f"device: all {runtime.world} processes would use {name}; use auto or cuda")
        device = torch.device("cuda", runtime.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: '{device}' is not there; torch sees {torch.cuda.device_count()} CUDA devices"
            + ("; start one process a device" if runtime.world > 1 else "")
        )
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 where the device multiplies bf16 natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def prepare(recipe: Recipe, on_progress: ProgressCallback, runtime: Runtime = ALONE) -> Session:
    """Load the model, inject the adapter, open and cache the data."""
    device = choose_device(recipe.device, runtime)
    if device.type == "cuda" and runtime.world > 1:
        torch.cuda.set_device(device)
    precision = choose_precision(recipe.precision, device)
    if runtime.sharded:
        check_shardable(recipe.memory, recipe.adapter)
    layouts = layouts_of(recipe)
    home = torch.device("cpu") if runtime.sharded else device
    family = load_backbone(recipe, home)
    if recipe.trains_text:
        family.fingerprint()  # of the model as it is: an adapter in the text encoders does not change the latents
    dataset, held_out = open_data(recipe, family.capabilities.pixel_multiple)
    runtime.require_equal({"recipe": recipe.identity(), "data set": dataset.fingerprint, "precision": precision})
    adapter = fresh_adapter(recipe, family)
    if recipe.memory.gradient_checkpointing:
        family.gradient_checkpointing(True)
    if recipe.memory.compile:
        family.compile()
    if runtime.sharded:
        shard_frozen(family, [parameter for _, parameter in adapter.parameters()], device, runtime.world)
    encoders = open_encoders(recipe.terms_in_force, device)
    terms = build_terms(recipe, shapes_of(recipe.terms_in_force, layouts, encoders), device)
    with runtime.main_first():
        sources = _sources(recipe, dataset, family, "caching", on_progress)
        references = open_references(terms, dataset, encoders, family.capabilities.latent_scale, on_progress)
        builder = _builder(recipe, dataset, family, sources, device, references)
        validator = _validator(recipe, held_out, family, device, on_progress, runtime)
    offload = recipe.memory.offloads(recipe.data.caches_text, device)
    if offload:
        family.offload_encoders()
    objective = fine_tuning(recipe, family, adapter, terms)
    parameters = objective.parameters()

    def autocast() -> torch.autocast:
        return autocast_of(device, precision)

    return Session(
        recipe=recipe,
        device=device,
        precision=precision,
        family=family,
        dataset=dataset,
        builder=builder,
        adapter=adapter,
        objective=objective,
        optimizer=build_optimizer(recipe.optimizer, parameters, device),
        ema=Ema(parameters, recipe.ema.decay) if recipe.ema else None,
        validator=validator,
        # with whole weights in every process the main one draws alone; with shards all must take part
        previewer=_previewer(recipe, family, adapter, autocast, offload)
        if runtime.is_main or runtime.sharded
        else None,
        interference=_interference(recipe, dataset, builder, objective, autocast, runtime),
        modulation=_modulation(recipe, objective, dataset, held_out, runtime),
        runtime=runtime,
    )


def load_backbone(recipe: Recipe, device: torch.device) -> Family:
    """The frozen model that a recipe fine-tunes; raises ConfigError for keys that it does not read."""
    model, dtype = recipe.model, getattr(torch, recipe.model.dtype)
    family = load_family(model.path, model.family, dtype, device, recipe.memory.quantize, model.config, model.vae)
    check_keys(recipe, family)
    set_tiling(family.encoders()["vae"], recipe.memory.vae_tiling, recipe.model.path)
    if any(setting is not None for setting in recipe.path.overrides):
        family.override_path(*recipe.path.overrides)
    return family


def check_keys(recipe: Recipe, family: Family) -> None:
    """Raise ConfigError for a setting that the model does not read or that means nothing to it (DESIGN section 6)."""
    if family.capabilities.guidance != "embedded" and recipe.model.guidance != ModelConfig().guidance:
        raise ConfigError(
            f"model.guidance is set to {recipe.model.guidance:g}, but {recipe.model.path} takes no guidance input; "
            "remove the key"
        )
    weighting = recipe.weighting.build(path_of(recipe, family))
    law = recipe.time.law(family.default_shift(), family.default_time_law())
    if recipe.modulation.measured and recipe.validation is not None:
        check_modulation(recipe.modulation, law, weighting, alone=recipe.interference is None)


def fresh_adapter(recipe: Recipe, family: Family) -> Adapter:
    """The recipe's adapter, injected as at the start of training."""
    return inject(family, recipe.adapter, rng.stable_seed(recipe.seed, "adapter"))


def fine_tuning(recipe: Recipe, family: Family, adapter: Adapter, terms: Sequence[Term] = ()) -> FineTuning:
    """What the recipe minimises, with alignment ``terms`` that are built already."""
    path = path_of(recipe, family)
    return FineTuning(
        family=family,
        adapter=adapter,
        path=path,
        time_law=recipe.time.law(family.default_shift(), family.default_time_law()),
        weighting=recipe.weighting.build(path),
        terms=tuple(terms),
        wavelet=recipe.loss.build(path),
    )


def path_of(recipe: Recipe, family: Family) -> FlowPath:
    """The path of training, validation and previews."""
    return recipe.path.build(family.default_path())


def autocast_of(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision on a device."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _previewer(
    recipe: Recipe, family: Family, adapter: Adapter, autocast: Callable[[], torch.autocast], offload: bool
) -> Previewer | None:
    if recipe.previews is None:
        return None
    return Previewer(family, adapter, recipe.previews, recipe.output, autocast, offload)


def _interference(
    recipe: Recipe,
    dataset: SliceDataset,
    builder: BatchBuilder,
    objective: FineTuning,
    autocast: Callable[[], torch.autocast],
    runtime: Runtime,
) -> Interference | None:
    if recipe.interference is None:
        return None
    return Interference(recipe.interference, recipe.tuples, recipe.seed, dataset, builder, objective, autocast, runtime)


def _modulation(
    recipe: Recipe, objective: FineTuning, dataset: SliceDataset, held_out: SliceDataset | None, runtime: Runtime
) -> Modulation | None:
    config, laws, factors = recipe.modulation, None, None
    if not config.measured:
        return None
    if held_out is not None and adapts_laws(objective.time_law, objective.weighting):
        laws = MeasuredLaws(config, objective, held_out)
    if recipe.interference is not None:
        factors = MeasuredFactors(config, dataset, runtime)
    return Modulation(laws, factors)


@dataclass(frozen=True)
class _Sources:
    posteriors: PosteriorSource
    embeddings: EmbeddingSource | None
    """None where text encoders train: the captions go to the model."""


def _sources(
    recipe: Recipe, dataset: SliceDataset, family: Family, label: str, on_progress: ProgressCallback
) -> _Sources:
    """Filled caches of a data set, or live encoders where it is not cached."""
    data = dataset.config
    folder = data.cache if isinstance(data.cache, Path) else None
    embeddings: EmbeddingSource | None = None if recipe.trains_text else LiveEmbeddings(family)
    if data.caches_text:
        embeddings = kept = EmbeddingCache(folder, family)
        captions = dataset.captions(recipe.seed)
        kept.fill(captions, lambda done, total: on_progress(f"{label}: captions", done, total))
    if data.cache is False:
        return _Sources(LivePosteriors(dataset, family), embeddings)
    posteriors = PosteriorCache(folder, family)
    posteriors.fill(dataset, dataset.flips, lambda done, total: on_progress(f"{label}: images", done, total))
    return _Sources(posteriors, embeddings)


def open_data(recipe: Recipe, pixel_multiple: int) -> tuple[SliceDataset, SliceDataset | None]:
    """The training part and, where the recipe has one, the held-out part: ``data.holdout`` or ``validation.path``."""
    if recipe.data.holdout is not None:
        train, held_out = open_split(recipe.data, pixel_multiple)
        if held_out is not None and recipe.validation is not None and recipe.validation.max_roots is not None:
            held_out = held_out.first_roots(recipe.validation.max_roots)
        return train, held_out
    dataset, path = open_dataset(recipe.data, pixel_multiple), recipe.validation.path if recipe.validation else None
    if recipe.validation is None or path is None:
        return dataset, None
    decomposed = open_source(path)[1]
    data = DataConfig(
        path=path,
        resolution=None if decomposed else recipe.data.resolution,
        buckets=None if decomposed else recipe.data.buckets,
        trigger=recipe.data.trigger,
        cache=recipe.data.cache,
        cache_text=recipe.data.cache_text,
        max_roots=recipe.validation.max_roots,
    )
    return dataset, open_dataset(data, pixel_multiple)


def _validator(
    recipe: Recipe,
    held_out: SliceDataset | None,
    family: Family,
    device: torch.device,
    on_progress: ProgressCallback,
    runtime: Runtime,
) -> Validator | None:
    """The validator of the held-out data, None where there is none."""
    if recipe.validation is None or held_out is None:
        return None
    sources = _sources(recipe, held_out, family, "caching held-out", on_progress)
    builder = _builder(recipe, held_out, family, sources, device)
    path, batch_size = path_of(recipe, family), recipe.validation.batch_size
    return Validator(held_out, family, sources.posteriors, builder, path, batch_size, device, runtime)


def _builder(
    recipe: Recipe,
    dataset: SliceDataset,
    family: Family,
    sources: _Sources,
    device: torch.device,
    references: References | None = None,
) -> BatchBuilder:
    return BatchBuilder(
        dataset,
        family,
        sources.posteriors,
        sources.embeddings,
        recipe.seed,
        recipe.model.guidance,
        recipe.noise,
        recipe.mask,
        device,
        references,
    )
