"""A forecast of the memory that training takes, by part, before any weight is loaded.

Weights are counted from the model's configuration files, activations by running the training step without values
(:mod:`flowgrain.train.activations`). ``docs/memory.md`` says what is exact and what is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flowgrain.adapters.low_rank import inject
from flowgrain.align.terms.base import AlignmentTerm
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import MicroBatch, Update
from flowgrain.families.base import ConditionInputs, Family, Quantization, TextEmbedding
from flowgrain.families.quantization import quantized_bytes, unpacked_bytes
from flowgrain.families.registry import load_skeleton
from flowgrain.train.activations import PassMemory, on_meta, trace_pass
from flowgrain.train.alignment import build_terms, encoder_bytes, open_encoders, shapes_of
from flowgrain.train.objective import HEADS, Batch
from flowgrain.train.optimizers import OptimizerConfig, state_bytes
from flowgrain.train.recipe import ModelConfig, Recipe
from flowgrain.train.setup import check_keys, fine_tuning
from flowgrain.train.tap_layout import tap_layouts

CUDA_CONTEXT = 600 * 2**20
"""Driver context, kernels and library workspaces of a CUDA process: a usual value, it differs between drivers."""

_LONG_CAPTION = "a " * 512
"""As many tokens as any family reads: some cut the padding of shorter captions (Qwen-Image, Z-Image)."""


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that training takes on the device."""

    parts: dict[str, int]
    switches: list[tuple[str, int]]
    """(setting, bytes that it would save), largest first; only those that save something."""
    largest: str
    """The micro-batch that the activations are of."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """A table for people: a line a part, then a line a switch."""
        width = max(len(name) for name in self.parts)
        rows = [f"memory: {readable(self.total)} expected at the largest micro-batch ({self.largest})"]
        rows += [f"  {name.ljust(width)}  {readable(size)}" for name, size in self.parts.items()]
        return rows + [f"  {setting} would save {readable(size)}" for setting, size in self.switches]


@dataclass(frozen=True)
class Shape:
    """A micro-batch's size: what decides how much memory it takes."""

    slices: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.slices} x {self.width}x{self.height}"


def offload_setting(recipe: Recipe) -> str | None:
    """What would let the encoders leave the device; None where text encoders train and must stay."""
    data = recipe.data
    if recipe.trains_text:
        return None
    needed = "data.caption_variants" if data.captions_vary else "data.cache_text" if data.cache else "data.cache"
    return f"memory.offload_encoders=true with {needed}"


@dataclass(frozen=True)
class _Choice:
    """The settings that a forecast may vary."""

    checkpointing: bool
    quantize: Quantization
    optimizer: OptimizerConfig
    dtype: str
    bf16: bool
    offload: bool
    shape: Shape


def largest_micro_batch(dataset: SliceDataset, plan: list[Update]) -> MicroBatch:
    """The micro-batch with most pixels in all: the first of them where several have as many."""

    def pixels(micro: MicroBatch) -> int:
        width, height = dataset.slices[int(micro.slices[0])].bucket
        return len(micro.slices) * width * height

    return max((micro for update in plan for micro in update.micro_batches), key=pixels)


def shape_of(dataset: SliceDataset, micro: MicroBatch) -> Shape:
    """Slices and pixel size of a micro-batch."""
    width, height = dataset.slices[int(micro.slices[0])].bucket
    return Shape(len(micro.slices), height, width)


class MemoryModel:
    """Forecasts for one recipe on one kind of device."""

    def __init__(self, recipe: Recipe, device: torch.device, precision: str):
        self._recipe = recipe
        self._device = device
        self._precision = precision
        self._skeletons: dict[str, _Skeleton] = {}
        self._passes: dict[tuple[Any, ...], PassMemory] = {}

    def forecast(self, shape: Shape) -> MemoryForecast:
        """Parts at a micro-batch of ``shape``, and what each switch would save there."""
        base = self._chosen(shape)
        parts = self._parts(base)
        total = sum(parts.values())
        savings = [(name, total - sum(self._parts(choice).values())) for name, choice in self._alternatives(base)]
        switches = sorted((item for item in savings if item[1] > 0), key=lambda item: -item[1])
        return MemoryForecast(parts, switches, str(shape))

    def parts(self, shape: Shape) -> dict[str, int]:
        """Bytes by part at a micro-batch of ``shape``, as the recipe runs it."""
        return self._parts(self._chosen(shape))

    def activations(self, shape: Shape) -> PassMemory:
        """Memory of the forward and backward pass of a micro-batch as the recipe runs it."""
        return self._pass(self._chosen(shape))

    def _chosen(self, shape: Shape) -> _Choice:
        recipe = self._recipe
        return _Choice(
            checkpointing=recipe.memory.gradient_checkpointing,
            quantize=recipe.memory.quantize,
            optimizer=recipe.optimizer,
            dtype=recipe.model.dtype,
            bf16=self._precision == "bf16",
            offload=recipe.memory.offloads(recipe.data.caches_text, self._device),
            shape=shape,
        )

    def _alternatives(self, base: _Choice) -> list[tuple[str, _Choice]]:
        found: list[tuple[str, dict[str, Any]]] = []
        if not base.checkpointing:
            found.append(("memory.gradient_checkpointing=true", {"checkpointing": True}))
        frozen = self._recipe.adapter.kind != "full"  # weights that train are not quantised
        if frozen and base.quantize != "nf4":
            found.append(("memory.quantize=nf4", {"quantize": "nf4"}))
        if frozen and base.quantize == "none" and base.checkpointing:
            found.append(("memory.quantize=int8", {"quantize": "int8"}))
        if base.shape.slices > 1:
            one = Shape(1, base.shape.height, base.shape.width)
            found.append(("tuples.micro_batch=1", {"shape": one}))
        if not base.offload and self._device.type != "cpu" and (setting := offload_setting(self._recipe)):
            found.append((setting, {"offload": True}))
        if base.optimizer.name in ("adamw", "prodigy"):
            found.append(("optimizer.name=adamw8bit", {"optimizer": OptimizerConfig(name="adamw8bit")}))
        if base.dtype == "float32":
            found.append(("model.dtype=bfloat16", {"dtype": "bfloat16"}))
        if not base.bf16:
            found.append(("precision=bf16", {"bf16": True}))
        return [(name, replace(base, **changes)) for name, changes in found]

    def _parts(self, choice: _Choice) -> dict[str, int]:
        skeleton, passed = self._skeleton(choice.dtype), self._pass(choice)
        trained = _bytes(parameter for _, parameter in skeleton.parameters)
        parts = {"frozen backbone": skeleton.backbone - skeleton.saved_by[choice.quantize]}
        if not choice.offload:
            parts["text encoders and autoencoder"] = skeleton.encoders
        if skeleton.references:
            parts["reference encoders (data.cache is off)"] = skeleton.references
        parts["trained weights" if self._recipe.adapter.kind == "full" else "adapter"] = trained - skeleton.heads
        if skeleton.heads:
            parts["heads of alignment terms"] = skeleton.heads
        parts["gradients"] = trained
        parts[f"optimizer state ({choice.optimizer.name})"] = state_bytes(choice.optimizer.name, skeleton.parameters)
        if self._recipe.ema is not None:
            parts["moving average"] = trained
        parts["activations kept for the backward pass"] = passed.kept
        parts["working memory of the passes"] = passed.peak - passed.kept + skeleton.unpacked[choice.quantize]
        if self._device.type == "cuda":
            parts["CUDA context (a usual value)"] = CUDA_CONTEXT
        return parts

    def _pass(self, choice: _Choice) -> PassMemory:
        key = (choice.dtype, choice.checkpointing, choice.bf16, choice.shape)
        if key not in self._passes:
            kind = "cuda" if self._device.type == "cuda" else "cpu"
            self._passes[key] = self._skeleton(choice.dtype).trace(
                choice.shape, choice.checkpointing, kind, choice.bf16
            )
        return self._passes[key]

    def _skeleton(self, dtype: str) -> "_Skeleton":
        if dtype not in self._skeletons:
            self._skeletons[dtype] = _Skeleton(self._recipe, dtype)
        return self._skeletons[dtype]


@dataclass(frozen=True)
class DiskForecast:
    """Bytes that a run writes."""

    checkpoint: int
    """Parameters, optimizer state, the average where there is one, and the adapter's own file."""
    embedding: TextEmbedding
    """One caption's prompt embedding, without values: its shapes and dtypes."""


def forecast_disk(recipe: Recipe) -> DiskForecast:
    """What checkpoints and cached captions of a recipe take, by the model's configuration files; raises ModelError."""
    skeleton = _Skeleton(recipe, recipe.model.dtype)
    adapter = _bytes(parameter for _, parameter in skeleton.parameters)
    copies = 3 if recipe.ema is not None else 2
    state = state_bytes(recipe.optimizer.name, skeleton.parameters)
    return DiskForecast(copies * adapter + state, skeleton.embedding)


class _Skeleton:
    """The recipe's model and adapter without values."""

    def __init__(self, recipe: Recipe, dtype: str):
        self._recipe = recipe
        self._family = family = _load_skeleton(recipe.model, dtype)
        check_keys(recipe, family)
        self.saved_by = {bits: quantized_bytes(family.blocks(), bits) for bits in get_args(Quantization)}
        self.unpacked = {bits: unpacked_bytes(family.blocks(), bits) for bits in get_args(Quantization)}
        self.embedding = _longest_embedding(family)
        with on_meta():
            adapter = inject(family, recipe.adapter.model_copy(update={"init_from": None}), recipe.seed)
        self._terms = self._alignment()
        self._objective = fine_tuning(recipe, family, adapter, self._terms)
        self.parameters = self._objective.parameters()
        self.heads = _bytes(parameter for name, parameter in self.parameters if name.startswith(HEADS))
        trained = {id(parameter) for _, parameter in self.parameters}
        self.backbone = _bytes(t for t in _tensors(family.backbone) if id(t) not in trained)
        self.encoders = _bytes(
            t for model in family.encoders().values() for t in _tensors(model) if id(t) not in trained
        )
        self._running = list(family.components().values()) if recipe.trains_text else [family.backbone]
        for _, parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def _alignment(self) -> tuple[AlignmentTerm, ...]:
        """The terms without values; the encoders are opened for what they are and their size, on the CPU."""
        configs = self._recipe.terms_in_force
        self.references = 0
        if not configs:
            return ()
        layouts = tap_layouts(self._family, (config.tap for config in configs))
        encoders = open_encoders(configs, torch.device("cpu"))
        self.references = encoder_bytes(self._recipe.data, encoders.values())
        return build_terms(self._recipe, shapes_of(configs, layouts, encoders), torch.device("meta"))

    def trace(self, shape: Shape, checkpointing: bool, device: Literal["cuda", "cpu"], bf16: bool) -> PassMemory:
        """Memory of one forward and backward pass."""
        self._family.gradient_checkpointing(checkpointing)
        batch = self._batch(shape)
        gradients = [parameter.grad for _, parameter in self.parameters if parameter.grad is not None]
        before = [*gradients, batch.x0, batch.noise]
        before += batch.inputs.embedding.tensors.values() if batch.inputs.embedding is not None else ()
        before += batch.features.values()
        before += [parameter for name, parameter in self.parameters if name.startswith(HEADS)]
        before += chain.from_iterable(_tensors(model) for model in self._running)
        return trace_pass(lambda: self._objective.per_sample(batch).total.sum(), before, device, bf16)

    def _batch(self, shape: Shape) -> Batch:
        capabilities = self._family.capabilities
        cells = (shape.height // capabilities.latent_scale, shape.width // capabilities.latent_scale)
        latents = torch.empty(shape.slices, capabilities.latent_channels, *cells, device="meta")
        return Batch(
            x0=latents,
            noise=torch.empty_like(latents),
            u=torch.full((shape.slices,), 0.5, dtype=torch.float64),
            granularity=torch.zeros(shape.slices, dtype=torch.int64),
            tokens=torch.full((shape.slices,), self._family.tokens(shape.height, shape.width)),
            inputs=self._inputs(shape.slices),
            weight=torch.ones(shape.slices, dtype=torch.float64),
            features={term.key(*cells): self._tokens(term, shape.slices, cells) for term in self._terms},
        )

    def _tokens(self, term: AlignmentTerm, slices: int, cells: tuple[int, int]) -> Tensor:
        """Reference tokens of a micro-batch of latents of so many cells."""
        places, kept = term.grid(*cells).places, getattr(torch, term.config.kept)
        return torch.empty(slices, places, term.shape.reference_width, dtype=kept, device="meta")

    def _inputs(self, slices: int) -> ConditionInputs:
        """Cached embeddings, or captions where text encoders train: the pass then runs through them."""
        guidance = self._recipe.model.guidance
        if self._recipe.trains_text:
            return ConditionInputs([_LONG_CAPTION] * slices, None, guidance, grad=True)
        return ConditionInputs(None, TextEmbedding.stack([self.embedding] * slices), guidance)


def _load_skeleton(model: ModelConfig, dtype: str) -> Family:
    return load_skeleton(model.path, model.family, getattr(torch, dtype), model.config, model.vae)


def _longest_embedding(family: Family) -> TextEmbedding:
    return family.embed_text([_LONG_CAPTION])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def readable(size: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
