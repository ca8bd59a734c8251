"""Build everything a run needs from its recipe, in the order in which mistakes are cheapest to find."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flowgrain import rng
from flowgrain.adapters.base import Adapter
from flowgrain.adapters.low_rank import inject
from flowgrain.data.cache import (
    EmbeddingCache,
    EmbeddingSource,
    LiveEmbeddings,
    LivePosteriors,
    PosteriorCache,
    PosteriorSource,
)
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.records import MANIFEST_NAME, Update
from flowgrain.data.tuples import plan_epoch
from flowgrain.errors import ConfigError
from flowgrain.families.base import Family
from flowgrain.families.registry import load_family
from flowgrain.flow.weightings import Uniform
from flowgrain.train.batches import BatchBuilder
from flowgrain.train.objective import FineTuning
from flowgrain.train.recipe import OptimizerConfig, Recipe
from flowgrain.train.schedule import Ema
from flowgrain.train.validation import Validator

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

    def autocast(self) -> torch.autocast:
        """The autocast context of the run's precision."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def plan(self, epoch: int) -> list[Update]:
        """The updates of one epoch."""
        return plan_epoch(self.dataset.table, self.recipe.tuples, self.recipe.seed, epoch)


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one; raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: '{name}' is no device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: '{name}' is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """``auto`` is bf16 where the device multiplies bf16 natively, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def prepare(recipe: Recipe, on_progress: ProgressCallback) -> Session:
    """Load the model, open and cache the data, inject the adapter."""
    device = choose_device(recipe.device)
    family = load_family(recipe.model.path, recipe.model.family, getattr(torch, recipe.model.dtype), device)
    _check_guidance(recipe, family)
    dataset = open_dataset(recipe.data, family.capabilities.pixel_multiple)
    builder = _builder(recipe, dataset, family, _sources(dataset, family, "caching", on_progress), device)
    validator = _validator(recipe, family, device, on_progress)
    adapter = inject(family, recipe.adapter, rng.stable_seed(recipe.seed, "adapter"))
    objective = FineTuning(
        family=family,
        adapter=adapter,
        path=family.default_path(),
        time_law=recipe.time.law(family.default_shift()),
        weighting=Uniform(),
    )
    parameters = objective.parameters()
    return Session(
        recipe=recipe,
        device=device,
        precision=choose_precision(recipe.precision, device),
        family=family,
        dataset=dataset,
        builder=builder,
        adapter=adapter,
        objective=objective,
        optimizer=_optimizer(recipe.optimizer, [parameter for _, parameter in parameters]),
        ema=Ema(parameters, recipe.ema.decay) if recipe.ema else None,
        validator=validator,
    )


def _check_guidance(recipe: Recipe, family: Family) -> None:
    """A guidance value that the model does not read is an error (DESIGN section 6)."""
    if family.capabilities.guidance != "embedded" and "guidance" in recipe.model.model_fields_set:
        raise ConfigError(
            f"model.guidance is set to {recipe.model.guidance:g}, but {recipe.model.path} takes no guidance input; "
            "remove the key"
        )


def _optimizer(config: OptimizerConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


@dataclass(frozen=True)
class _Sources:
    posteriors: PosteriorSource
    embeddings: EmbeddingSource


def _sources(dataset: SliceDataset, family: Family, label: str, on_progress: ProgressCallback) -> _Sources:
    """Filled caches of a data set, or live encoders where ``data.cache`` is false."""
    if dataset.config.cache is False:
        return _Sources(LivePosteriors(dataset, family), LiveEmbeddings(family))
    folder = dataset.config.cache if isinstance(dataset.config.cache, Path) else None
    posteriors, embeddings = PosteriorCache(folder, family), EmbeddingCache(folder, family)
    embeddings.fill(dataset.captions, lambda done, total: on_progress(f"{label}: captions", done, total))
    posteriors.fill(dataset, dataset.flips, lambda done, total: on_progress(f"{label}: images", done, total))
    return _Sources(posteriors, embeddings)


def _validator(recipe: Recipe, family: Family, device: torch.device, on_progress: ProgressCallback) -> Validator | None:
    """The validator of the recipe's held-out data, None where it names none."""
    if recipe.validation is None:
        return None
    path = recipe.validation.path
    decomposed = (path / MANIFEST_NAME).is_file()
    data = DataConfig(
        path=path,
        resolution=None if decomposed else recipe.data.resolution,
        buckets=None if decomposed else recipe.data.buckets,
        trigger=recipe.data.trigger,
        cache=recipe.data.cache,
        max_roots=recipe.validation.max_roots,
    )
    dataset = open_dataset(data, family.capabilities.pixel_multiple)
    sources = _sources(dataset, family, "caching held-out", on_progress)
    builder = _builder(recipe, dataset, family, sources, device)
    batch_size = recipe.validation.batch_size
    return Validator(dataset, family, sources.posteriors, builder, family.default_path(), batch_size, device)


def _builder(
    recipe: Recipe, dataset: SliceDataset, family: Family, sources: _Sources, device: torch.device
) -> BatchBuilder:
    return BatchBuilder(
        dataset, family, sources.posteriors, sources.embeddings, recipe.seed, recipe.model.guidance, device
    )
