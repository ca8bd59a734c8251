"""A run opened for measuring: model, adapter, data and checkpoints, from its folder, which is only read.

A checkpoint's weights are those of its ``adapter`` folder: what pictures are drawn with, the moving average where the
recipe has one. What the optimizer was at (``trainable.safetensors``) is there on request, where it was not deleted.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain import rng
from flowgrain.adapters.base import Adapter
from flowgrain.config import load_config
from flowgrain.data.cache import EmbeddingCache, EmbeddingSource, LiveEmbeddings, PosteriorCache, PosteriorSource
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.tuples import plan_epoch
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.latents import LatentReader, LatentSpace
from flowgrain.diagnose.points import ModelPoint, choose_points, find_checkpoints, has_trained, read_trained
from flowgrain.errors import ConfigError, DataError
from flowgrain.families.base import ConditionInputs, Family, TextEmbedding
from flowgrain.flow.paths import Path as FlowPath
from flowgrain.sample.run_folder import Checkpoint
from flowgrain.train.batches import BatchBuilder
from flowgrain.train.log import read_log
from flowgrain.train.objective import FineTuning
from flowgrain.train.recipe import Recipe
from flowgrain.train.setup import (
    autocast_of,
    choose_device,
    choose_precision,
    fine_tuning,
    fresh_adapter,
    load_backbone,
    open_data,
)
from flowgrain.train.state import CheckpointInfo
from flowgrain.train.validation import Validator

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""

OVERRIDABLE = ("data.", "validation.", "model.path", "model.config", "model.vae", "device", "precision", "memory.")
"""Keys of the recipe that a diagnosis may change: where things are and what they run on, not what was trained."""

_KEPT_EMBEDDINGS = 64


@dataclass(frozen=True, eq=False)
class Part:
    """Slices of a run with all that a forward pass on them needs."""

    dataset: SliceDataset
    posteriors: PosteriorSource
    builder: BatchBuilder


@dataclass(frozen=True, eq=False)
class HeldOut(Part):
    """The held-out slices."""

    validator: Validator


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run, ready to be measured at its points."""

    folder: Path
    recipe: Recipe
    config: DiagnoseConfig
    device: torch.device
    precision: str
    family: Family
    adapter: Adapter
    objective: FineTuning
    train: Part
    """The training slices, or whole roots of them up to ``config.max_slices``."""
    slices_in_run: int
    """How many training slices the run has."""
    held_out: HeldOut | None
    checkpoints: tuple[Checkpoint, ...]
    """All complete ones, oldest first."""
    points: tuple[ModelPoint, ...]
    """What is measured: the model without adapter first, then the chosen checkpoints."""
    log: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl."""
    _progress: Progress
    _loaded: list[tuple[Path, bool]] = field(default_factory=list)

    @property
    def path(self) -> FlowPath:
        """The probability path that was trained on."""
        return self.objective.path

    @property
    def seed(self) -> int:
        """For draws of one's own: ``rng.normal(shape, opened.seed, identity..., purpose)``."""
        return self.config.seed

    @cached_property
    def spaces(self) -> tuple[LatentSpace, ...]:
        """The training latents by shape, most first; encoded and read on first use."""
        reader = LatentReader(
            self.train.dataset, self.train.posteriors, self.family, self.seed, self.config.memory_mib * 2**20 // 2
        )
        return reader.spaces(lambda done, total: self._progress("reading latents", done, total))

    def autocast(self) -> torch.autocast:
        """The autocast context of the run's precision on this device."""
        return autocast_of(self.device, self.precision)

    def plan(self, epoch: int) -> list[Update]:
        """The updates of an epoch over ``train``: the run's own unless slices were left out."""
        return plan_epoch(self.train.dataset.table, self.recipe.tuples, self.recipe.seed, epoch)

    @contextmanager
    def at(self, point: ModelPoint, trained: bool = False) -> Iterator[None]:
        """A block in which the model is that of ``point``, without dropout; contexts do not nest.

        ``trained`` asks for the parameters that the optimizer was at, in place of the moving average. Raises
        CheckpointError where they do not fit or were deleted.
        """
        if point.checkpoint is not None:
            self.load(point.checkpoint, trained)
        with self.adapter.enabled(point.checkpoint is not None):
            yield

    def without_adapter(self) -> Any:
        """A context in which the adapter does not act."""
        return self.adapter.enabled(False)

    def load(self, checkpoint: Checkpoint, trained: bool = False) -> None:
        """Put a checkpoint's parameters into the adapter, see :meth:`at`."""
        wanted = (checkpoint.path, trained)
        if self._loaded == [wanted]:
            return
        self._loaded.clear()
        if trained:
            self.adapter.load_state_dict(read_trained(checkpoint))
        else:
            self.adapter.load(checkpoint.adapter)
        self._loaded.append(wanted)

    def forget_loaded(self) -> None:
        """Say that the adapter's parameters were changed by hand: the next :meth:`at` loads them anew."""
        self._loaded.clear()

    def has_trained(self, point: ModelPoint) -> bool:
        """Whether :meth:`at` can give the parameters that the optimizer was at."""
        return point.checkpoint is not None and has_trained(point.checkpoint)

    def inputs(
        self, part: Part, indices: Sequence[int], captions: list[str] | None = None, mirrored: Sequence[bool] = ()
    ) -> ConditionInputs:
        """Conditioning inputs of slices, of their own captions (as they are written) or of the given ones."""
        own = [part.dataset.slices[i].caption for i in indices] if captions is None else captions
        return part.builder.inputs(indices, own, list(mirrored) or [False] * len(indices))

    @torch.no_grad()
    def predict(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], inputs: ConditionInputs
    ) -> Float[Tensor, "b c h w"]:
        """What the model predicts (velocity, noise, v or x0) at noised latents, float32, in one forward pass."""
        x, t = x.to(self.device, torch.float32), t.to(self.device, torch.float64)
        # the path knows which times its model is given at a level
        times = self.path(x, x, t).times
        with self.autocast():
            output = self.family.predict(x, times, self.family.condition(inputs))
        return output.prediction.float()


def open_run(run: Path, config: DiagnoseConfig, overrides: Sequence[str], cache: Path, progress: Progress) -> OpenedRun:
    """Open the run in folder ``run``, which is not written to.

    ``overrides`` (``data.path=...``) say what moved; ``cache`` keeps posteriors where the run's own cache is gone or
    was in memory. Raises CheckpointError where ``run`` is no run or has no checkpoint, DataError where its data set is
    gone or changed, ModelError where its model is.
    """
    checkpoints = find_checkpoints(run)
    points = choose_points(checkpoints, config.checkpoints, config.max_checkpoints)
    recipe = _read_recipe(run, overrides)
    device = choose_device(recipe.device)
    family = load_backbone(recipe, device)
    family.fingerprint()  # before an adapter may change the text encoders
    whole, held = _open_data(recipe, family, checkpoints[-1])
    adapter = fresh_adapter(recipe, family)
    adapter.train(False)
    if recipe.memory.gradient_checkpointing:
        family.gradient_checkpointing(True)
    embeddings = _embeddings(recipe, (whole, held), family, progress)
    train = _part(recipe, _subset(whole, config.max_slices, config.seed), family, embeddings, device, cache, progress)
    held_out = None
    if held is not None and recipe.validation is not None:
        part, size = _part(recipe, held, family, embeddings, device, cache, progress), recipe.validation.batch_size
        path = fine_tuning(recipe, family, adapter).path
        validator = Validator(held, family, part.posteriors, part.builder, path, size, device)
        held_out = HeldOut(held, part.posteriors, part.builder, validator)
    if recipe.memory.offloads(recipe.data.caches_text, device):
        family.offload_encoders()
    return OpenedRun(
        folder=run,
        recipe=recipe,
        config=config,
        device=device,
        precision=choose_precision(recipe.precision, device),
        family=family,
        adapter=adapter,
        objective=fine_tuning(recipe, family, adapter),
        train=train,
        slices_in_run=len(whole),
        held_out=held_out,
        checkpoints=checkpoints,
        points=points,
        log=tuple(read_log(run)),
        _progress=progress,
    )


def _read_recipe(run: Path, overrides: Sequence[str]) -> Recipe:
    for text in overrides:
        key = text.partition("=")[0]
        if not any(key == allowed or (allowed.endswith(".") and key.startswith(allowed)) for allowed in OVERRIDABLE):
            raise ConfigError(
                f"{text}: a diagnosis measures the run as it was trained; only these may change, for what moved: "
                + ", ".join(f"{key}*" if key.endswith(".") else key for key in OVERRIDABLE)
            )
    recipe, _ = load_config(Recipe, run / "recipe.yaml", list(overrides))
    # compiled blocks have no forward-mode derivatives
    return recipe.model_copy(update={"memory": recipe.memory.model_copy(update={"compile": False})})


def _open_data(recipe: Recipe, family: Family, newest: Checkpoint) -> tuple[SliceDataset, SliceDataset | None]:
    """The data of the run; raises DataError where it is not the data of the newest checkpoint any more."""
    try:
        train, held = open_data(recipe, family.capabilities.pixel_multiple)
    except DataError as error:
        raise DataError(f"{error}; if the data moved, say where: data.path=FOLDER (validation.path=FOLDER)") from None
    if CheckpointInfo.read(newest.path).data_fingerprint != train.fingerprint:
        raise DataError(
            f"{recipe.data.location}: not the data that the run was trained on (contents, captions, levels or sizes "
            "changed since); restore it, or give the original with data.path=FOLDER"
        )
    return train, held


def _subset(dataset: SliceDataset, most: int, seed: int) -> SliceDataset:
    """Whole roots, drawn by identity, up to ``most`` slices; all where they are no more."""
    if len(dataset) <= most:
        return dataset
    sizes: dict[str, int] = {}
    for item in dataset.slices:
        sizes[item.root] = sizes.get(item.root, 0) + 1
    kept: set[str] = set()
    total = 0
    for root in sorted(sizes, key=lambda name: (rng.stable_seed(seed, name, "diagnose root"), name)):
        if total + sizes[root] <= most or not kept:
            kept.add(root)
            total += sizes[root]
    return dataclasses.replace(dataset, slices=tuple(item for item in dataset.slices if item.root in kept))


def _part(
    recipe: Recipe,
    dataset: SliceDataset,
    family: Family,
    embeddings: EmbeddingSource | None,
    device: torch.device,
    cache: Path,
    progress: Progress,
) -> Part:
    own = recipe.data.cache
    posteriors = PosteriorCache(own if isinstance(own, Path) and own.is_dir() else cache, family)
    posteriors.fill(dataset, dataset.flips, lambda done, total: progress("encoding images", done, total))
    builder = BatchBuilder(
        dataset, family, posteriors, embeddings, recipe.seed, recipe.model.guidance, recipe.noise, recipe.mask, device
    )
    return Part(dataset, posteriors, builder)


def _embeddings(
    recipe: Recipe, datasets: Sequence[SliceDataset | None], family: Family, progress: Progress
) -> EmbeddingSource | None:
    """The run's kept embeddings where they are on disk, else the text encoders; None where these were trained."""
    if recipe.trains_text:
        return None
    folder = recipe.data.cache
    if not (recipe.data.caches_text and isinstance(folder, Path) and folder.is_dir()):
        return _RecentEmbeddings(family)
    kept = EmbeddingCache(folder, family)
    for dataset in datasets:
        if dataset is not None:
            captions = {*dataset.captions(recipe.seed), *(item.caption for item in dataset.slices), ""}
            kept.fill(sorted(captions), lambda done, total: progress("encoding captions", done, total))
    return kept


class _RecentEmbeddings(EmbeddingSource):
    """Runs the text encoders, and remembers the captions used last: a diagnosis asks for few of them, often."""

    def __init__(self, family: Family):
        self._live = LiveEmbeddings(family)
        self._kept: OrderedDict[str, TextEmbedding] = OrderedDict()

    def get(self, caption: str) -> TextEmbedding:
        """See :meth:`EmbeddingSource.get`."""
        if caption not in self._kept:
            self._kept[caption] = self._live.get(caption)
            if len(self._kept) > _KEPT_EMBEDDINGS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(caption)
        return self._kept[caption]
