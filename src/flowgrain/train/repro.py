"""A non-finite update as a folder that reproduces it without the data set: write it, read it, run it again.

    nonfinite-update-000123/
        recipe.yaml                 the run's recipe: model, adapter, law of t (measured modulation as it stood)
        trainable.safetensors       the parameters before the update
        batches.safetensors         what the micro-batches are made of: x0, noise, u, weights, embeddings, tokens of
                                    reference encoders, ...
        update.json                 epoch, slices, message, versions, shapes of alignment terms

All randomness of an update is from identity, so the batches are built again, not kept.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from flowgrain import rng
from flowgrain.align.terms.base import AlignmentTerm, TermShape
from flowgrain.config import dump_yaml, load_config
from flowgrain.data.records import Update
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.families.base import ConditionInputs, SizeGeometry, TextEmbedding
from flowgrain.files import atomic_directory, atomic_write_bytes, atomic_write_text
from flowgrain.train.alignment import build_terms
from flowgrain.train.objective import HEADS, Batch, without_heads
from flowgrain.train.recipe import Recipe
from flowgrain.train.run_file import versions
from flowgrain.train.schedule import Progress
from flowgrain.train.setup import (
    Session,
    autocast_of,
    choose_device,
    fine_tuning,
    fresh_adapter,
    load_backbone,
)
from flowgrain.train.state import RECIPE_NAME

BUNDLE_PREFIX = "nonfinite-update-"
UPDATE_NAME = "update.json"
TENSORS_NAME = "trainable.safetensors"
BATCHES_NAME = "batches.safetensors"

_BATCH_MAPS = ("features", "token_masks")
_BATCH_TENSORS = tuple(field.name for field in fields(Batch) if field.name not in ("inputs", "names", *_BATCH_MAPS))
_ON_DEVICE = frozenset(_BATCH_TENSORS) - {"u", "tokens", "watch"}
"""What the builder puts on the training device; u and tokens decide t on the CPU, watch what is logged."""


@dataclass(frozen=True)
class Bundle:
    """A recorded update."""

    recipe: Recipe
    info: dict[str, Any]
    parameters: dict[str, Tensor]
    batches: tuple[Batch, ...]

    @property
    def precision(self) -> str:
        """The run's own precision, unless the recipe names one: ``auto`` may be another on this machine."""
        return self.info["precision"] if self.recipe.precision == "auto" else self.recipe.precision


@dataclass(frozen=True)
class SliceReport:
    """One slice of a replayed update."""

    name: str
    t: float
    weight: float
    total: float
    """The loss that is differentiated, before the slice's weight."""
    parts: dict[str, float]


@dataclass(frozen=True)
class MicroBatchReport:
    """One micro-batch of a replayed update."""

    slices: tuple[SliceReport, ...]
    grad_norm: float
    """Norm of the gradient of this micro-batch's weighted loss alone."""

    @property
    def finite(self) -> bool:
        """Whether all losses and the gradient are finite."""
        return math.isfinite(self.grad_norm) and all(math.isfinite(item.total) for item in self.slices)


def bundle_path(run: Path, update: int) -> Path:
    """Folder of the bundle of the ``update``-th update, counted from 1."""
    return run / f"{BUNDLE_PREFIX}{update:06d}"


def write_bundle(path: Path, session: Session, progress: Progress, update: Update, message: str) -> None:
    """Write the bundle of the update that follows ``progress``; raises OSError where the disk is full."""
    tensors: dict[str, Tensor] = {}
    described: list[dict[str, Any]] = []
    for index, micro in enumerate(update.micro_batches):
        batch = session.builder.build(micro, update.epoch)
        tensors |= {f"{index}.{name}": value.cpu().contiguous() for name, value in _tensors(batch).items()}
        inputs = {"guidance": batch.inputs.guidance, "captions": batch.inputs.captions}
        described.append({"slices": batch.names, "weights": batch.weight.tolist(), **inputs})
    info = {
        "message": message,
        "update": progress.updates + 1,
        "epoch": update.epoch,
        "window": progress.window,
        "progress": asdict(progress),
        "precision": session.precision,
        "device": str(session.device),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "micro_batches": described,
        "terms": {term.name: asdict(term.shape) for term in session.objective.terms if isinstance(term, AlignmentTerm)},
    }
    parameters = {name: value.detach().cpu().contiguous() for name, value in session.objective.parameters()}
    with atomic_directory(path) as folder:
        atomic_write_text(folder / RECIPE_NAME, dump_yaml(session.recipe_in_force()))
        atomic_write_text(folder / UPDATE_NAME, json.dumps(info, indent=2) + "\n")
        atomic_write_bytes(folder / TENSORS_NAME, serialize(parameters))
        atomic_write_bytes(folder / BATCHES_NAME, serialize(tensors))


def read_bundle(path: Path, overrides: list[str]) -> Bundle:
    """Read a bundle; ``overrides`` change its recipe, for example ``precision=fp32`` or ``model.path=...``.

    Raises CheckpointError where ``path`` is no bundle or a file of it is damaged, ConfigError for wrong overrides.
    """
    if not (path / UPDATE_NAME).is_file():
        raise CheckpointError(f"{path}: no {UPDATE_NAME} here; give a folder {BUNDLE_PREFIX}... of a run")
    recipe, _ = load_config(Recipe, path / RECIPE_NAME, overrides)
    try:
        info = json.loads((path / UPDATE_NAME).read_text(encoding="utf-8"))
        tensors = load_file(path / BATCHES_NAME)
        batches = tuple(_batch(item, _under(tensors, f"{i}.")) for i, item in enumerate(info["micro_batches"]))
        return Bundle(recipe, info, load_file(path / TENSORS_NAME), batches)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged bundle ({reason})") from None


def only_slice(bundle: Bundle, name: str) -> Bundle:
    """The bundle of one slice alone; raises ConfigError naming the slices where it holds no such slice."""
    for batch in bundle.batches:
        if name in batch.names:
            return replace(bundle, batches=(_row(batch, batch.names.index(name)),))
    there = ", ".join(known for batch in bundle.batches for known in batch.names)
    raise ConfigError(f"--slice {name}: not in this update; its slices are: {there}")


def replay(bundle: Bundle) -> list[MicroBatchReport]:
    """Run the update's micro-batches again, forward and backward, as the run did; nothing is stepped.

    Raises CheckpointError where the bundle's parameters do not fit the model.
    """
    recipe = bundle.recipe
    device = choose_device(recipe.device)
    family = load_backbone(recipe, device)
    adapter = fresh_adapter(recipe, family)
    adapter.load_state_dict(without_heads(bundle.parameters))
    objective = fine_tuning(recipe, family, adapter, _terms(bundle, device))
    parameters = [parameter for _, parameter in objective.parameters()]
    reports = []
    with rng.seeded(recipe.seed, bundle.info["epoch"], bundle.info["window"], "dropout"):
        for batch in (_moved(batch, device) for batch in bundle.batches):
            with autocast_of(device, bundle.precision):
                losses = objective.per_sample(batch)
            (batch.weight.to(losses.total.dtype) * losses.total).sum().backward()
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            for parameter in parameters:
                parameter.grad = None
            slices = tuple(
                SliceReport(
                    name=name,
                    t=losses.t[i].item(),
                    weight=batch.weight[i].item(),
                    total=losses.total[i].item(),
                    parts={part: value[i].item() for part, value in losses.parts.items()},
                )
                for i, name in enumerate(batch.names)
            )
            reports.append(MicroBatchReport(slices, norm))
    return reports


def _terms(bundle: Bundle, device: torch.device) -> tuple[AlignmentTerm, ...]:
    """The run's alignment terms with the heads of the bundle; the encoders are not needed."""
    shapes = {name: TermShape(**shape) for name, shape in bundle.info.get("terms", {}).items()}
    missing = [config.name for config in bundle.recipe.terms_in_force if config.name not in shapes]
    if missing:
        there = ", ".join(shapes) or "none"
        raise CheckpointError(f"align.{missing[0]}: the recorded update has no such term; its terms: {there}")
    terms = build_terms(bundle.recipe, shapes, device)
    for term in terms:
        own = _under(bundle.parameters, f"{HEADS}{term.name}.")
        try:
            term.head().load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"align.{term.name}: the recorded head does not fit ({reason})") from None
    return terms


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch by dotted name."""
    found = {name: getattr(batch, name) for name in _BATCH_TENSORS}
    if batch.inputs.embedding is not None:
        found |= {f"embedding.{name}": value for name, value in batch.inputs.embedding.tensors.items()}
    if batch.inputs.geometry is not None:
        found |= {f"geometry.{name}": value for name, value in vars(batch.inputs.geometry).items()}
    for kind in _BATCH_MAPS:
        found |= {f"{kind}.{name}": value for name, value in getattr(batch, kind).items()}
    return {name: value for name, value in found.items() if value is not None}


def _batch(item: dict[str, Any], tensors: dict[str, Tensor]) -> Batch:
    """The inverse of :func:`_tensors`, with what is no tensor from ``update.json``."""
    embedding, geometry = _under(tensors, "embedding."), _under(tensors, "geometry.")
    inputs = ConditionInputs(
        captions=item["captions"],
        embedding=TextEmbedding(embedding) if embedding else None,
        guidance=item["guidance"],
        geometry=SizeGeometry(**geometry) if geometry else None,
    )
    own = {name: tensors[name] for name in _BATCH_TENSORS if name in tensors}
    features, masks = (_under(tensors, f"{kind}.") for kind in _BATCH_MAPS)
    return Batch(inputs=inputs, names=list(item["slices"]), features=features, token_masks=masks, **own)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _row(batch: Batch, index: int) -> Batch:
    """One sample of a batch."""
    captions = batch.inputs.captions
    item = {
        "slices": [batch.names[index]],
        "captions": None if captions is None else [captions[index]],
        "guidance": batch.inputs.guidance,
    }
    return _batch(item, {name: value[index : index + 1] for name, value in _tensors(batch).items()})


def _moved(batch: Batch, device: torch.device) -> Batch:
    tensors = {name: getattr(batch, name) for name in _ON_DEVICE}
    moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items() if value is not None}
    for kind in _BATCH_MAPS:
        moved[kind] = {name: value.to(device) for name, value in getattr(batch, kind).items()}
    return replace(batch, **moved)
