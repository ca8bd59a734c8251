"""LoRA and DoRA through peft, saved as diffusers loads them.

LoRA (Hu et al. 2022): W' = W + s B A with s = alpha / rank, B = 0 at the start.
DoRA (Liu et al. 2024): W' = m (W + s B A) / |W + s B A|, norms over each row (output feature), m trained from |W|.
The norm counts as a constant in the backward pass (their section 4.3). Other trainers differ in both choices, so the
saved header names them (``dora.norm_axis``, ``dora.detach_norm``).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flowgrain import rng
from flowgrain.adapters.base import WEIGHTS_NAME, Adapter, AdapterConfig
from flowgrain.adapters.dora import FactoredDora, PeftLayer, plain_weight
from flowgrain.adapters.fusing import fuse, fuse_all, fused_in
from flowgrain.adapters.source import FUSED_KEY, AdapterSource, fused_header, read_adapter
from flowgrain.adapters.targets import also_matched, find_targets, values_by_layer
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.families.base import Family
from flowgrain.files import atomic_write_bytes

ADAPTER_NAME = "flowgrain"
DORA_VARIANT = {"dora.norm_axis": "output", "dora.detach_norm": "true"}


def inject(family: Family, config: AdapterConfig, seed: int) -> "LowRankAdapter":
    """Put an adapter into ``config.component``; a fresh one leaves predictions bitwise what they were.

    The initial values depend on ``seed`` and the layers' names alone, not on dtype, device or order; with
    ``config.init_from`` they, or the base weights under them, are those of an earlier adapter. Raises ConfigError for
    an unknown component or target, a rank above the smallest side of a target, or a DoRA target with an all-zero row
    (its direction is 0 / 0); CheckpointError for an ``init_from`` that cannot be read or does not fit.
    """
    components = family.components()
    if config.component not in components:
        raise ConfigError(f"adapter.component: '{config.component}' is unknown; choose one of {', '.join(components)}")
    component = components[config.component]
    host = _lora_host(component)
    if host._hf_peft_config_loaded:
        raise ConfigError(f"adapter: {config.component} carries an adapter already; remove or merge it first")
    targets = find_targets(component, config.targets or family.adapter_targets(config.component), config.exclude)
    peft_config = _peft_config(config, component, targets)
    source = _prepare_base(family, config)
    if config.kind == "dora":
        _refuse_empty_rows(targets)
    host.add_adapter(peft_config, adapter_name=ADAPTER_NAME)
    peft_config.exclude_modules = None  # a file's layers are those of its tensors, peft warns of needless exclusions
    adapter = LowRankAdapter(component, config, peft_config)
    adapter.initialise(seed)
    if source is not None:
        adapter.load_state_dict(_fitting_state(source, adapter, config))
    adapter.train(True)
    return adapter


class LowRankAdapter(Adapter):
    """A LoRA or DoRA adapter in a diffusers model; made by :func:`inject`."""

    def __init__(self, component: nn.Module, config: AdapterConfig, peft_config: LoraConfig):
        self.config = config
        self._component = component
        self._peft_config = peft_config
        self._layers: dict[str, PeftLayer] = {
            name: module for name, module in component.named_modules() if isinstance(module, LoraLayer)
        }
        self._fused = fused_in(component)
        self._dora = {name: FactoredDora() for name in self._layers} if config.kind == "dora" else {}
        for name, variant in self._dora.items():
            self._layers[name].lora_variant[ADAPTER_NAME] = variant
        self._enabled = True
        self._parameters = [part for name, layer in self._layers.items() for part in self._parts(name, layer)]
        for _, parameter in self._parameters:
            parameter.data = parameter.data.float()

    def initialise(self, seed: int) -> None:
        """A uniform in +-1 / sqrt(in features) (Kaiming, a = sqrt 5), B zero, magnitudes the rows' norms."""
        for name, layer in self._layers.items():
            down = _part(layer, "lora_A")
            fresh = torch.empty(down.shape)
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=rng.generator(seed, "lora_A", name))
            with torch.no_grad():
                down.copy_(fresh)
                _part(layer, "lora_B").zero_()
        for name, variant in self._dora.items():
            lengths = variant.row_norms(self._layers[name], ADAPTER_NAME)
            with torch.no_grad():
                _part(self._layers[name], "lora_magnitude_vector").copy_(lengths)

    def scalings(self) -> dict[str, tuple[int, float]]:
        """Rank and alpha of each layer."""
        return {name: (layer.r[ADAPTER_NAME], layer.lora_alpha[ADAPTER_NAME]) for name, layer in self._layers.items()}

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Adapter.parameters`."""
        return list(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Adapter.state_dict`."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self._parameters}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See :meth:`Adapter.load_state_dict`."""
        own = dict(self._parameters)
        problems = [f"missing {_some(own.keys() - state.keys())}"] if own.keys() - state.keys() else []
        if state.keys() - own.keys():
            problems.append(f"unexpected {_some(state.keys() - own.keys())}")
        for name in own.keys() & state.keys():
            if own[name].shape != state[name].shape:
                problems.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}")
        if problems:
            raise CheckpointError(f"the adapter's weights do not fit this run's adapter: {'; '.join(problems[:4])}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """See :meth:`Adapter.save`; one file, ``pytorch_lora_weights.safetensors``.

        Where ``metadata`` follows ModelSpec (:mod:`flowgrain.adapters.model_spec`) the hash of the tensors joins it.
        """
        peft_values = self._peft_config.to_dict().items()
        described = {f"{self.config.component}.{key}": _plain(value) for key, value in peft_values}
        header = {
            **metadata,
            **(DORA_VARIANT if self.config.kind == "dora" else {}),
            "format": "pt",
            LORA_ADAPTER_METADATA_KEY: json.dumps(described, sort_keys=True),
            **fused_header(self._fused),
        }
        atomic_write_bytes(folder / WEIGHTS_NAME, _file_bytes(self.state_dict(), header))

    def load(self, folder: Path) -> None:
        """See :meth:`Adapter.load`; kind and alpha / rank must be this adapter's too."""
        path = folder / WEIGHTS_NAME
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}
            header = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
            fused = [entry["sha256"] for entry in json.loads(metadata.get(FUSED_KEY, "[]"))]
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as an adapter ({error}); restore the file") from None
        component = self.config.component
        values = self._peft_config.to_dict()
        expected = {key: values[key] for key in ("r", "lora_alpha", "use_dora", "rank_pattern", "alpha_pattern")}
        for key, value in expected.items():
            found = header.get(f"{component}.{key}")
            if found != value:
                raise CheckpointError(f"{path}: {key} is {found} there and {value} in this run; use the same adapter")
        if fused != [entry.sha256 for entry in self._fused]:
            raise CheckpointError(f"{path}: was trained on base weights with other fused adapters; use the same ones")
        try:
            self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def train(self, mode: bool = True) -> None:
        """See :meth:`Adapter.train`."""
        for layer in self._layers.values():
            layer.train(mode)

    @contextmanager
    def enabled(self, mode: bool) -> Iterator[None]:
        """See :meth:`Adapter.enabled`; contexts nest."""
        before = self._enabled
        self._switch(mode)
        try:
            yield
        finally:
            self._switch(before)

    def merge(self) -> None:
        """See :meth:`Adapter.merge`."""
        with torch.no_grad():
            for layer in self._layers.values():
                layer.merge(safe_merge=True)
        self.remove()

    def remove(self) -> None:
        """See :meth:`Adapter.remove`."""
        _lora_host(self._component).unload_lora()
        for layer in self._layers.values():
            layer.get_base_layer().requires_grad_(False)
        self._layers, self._dora, self._parameters = {}, {}, []

    def _switch(self, mode: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(mode)
        self._enabled = mode

    def _parts(self, name: str, layer: PeftLayer) -> list[tuple[str, nn.Parameter]]:
        prefix = f"{self.config.component}.{name}"
        parts = [(f"{prefix}.{part}.weight", _part(layer, part)) for part in ("lora_A", "lora_B")]
        if self.config.kind == "dora":
            parts.append((f"{prefix}.lora_magnitude_vector", _part(layer, "lora_magnitude_vector")))
        return parts


def _lora_host(component: nn.Module) -> PeftAdapterMixin:
    if not isinstance(component, PeftAdapterMixin):
        raise ConfigError(f"adapter.component: diffusers puts no adapters into {type(component).__name__}")
    return component


def _part(layer: PeftLayer, part: str) -> nn.Parameter:
    return layer.get_parameter(f"{part}.{ADAPTER_NAME}.weight")


def _peft_config(config: AdapterConfig, component: nn.Module, targets: dict[str, nn.Linear]) -> LoraConfig:
    """peft's configuration of an adapter on ``targets``; raises ConfigError for a rank that is too large."""
    ranks = values_by_layer("adapter.ranks", config.ranks, targets)
    alphas = values_by_layer("adapter.alphas", config.alphas, targets)
    for name, module in targets.items():
        rank, limit = ranks.get(name, config.rank), min(module.in_features, module.out_features)
        if rank > limit:
            key = "adapter.ranks" if name in ranks else "adapter.rank"
            raise ConfigError(
                f"{key}: {rank} is more than {limit}, the smallest side of {name}; lower the rank or leave that layer "
                "out of adapter.targets"
            )
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] (peft only divides it by the rank)
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        exclude_modules=also_matched(component, targets) or None,
        use_dora=config.kind == "dora",
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != config.rank},
        alpha_pattern={f"^{re.escape(name)}": alpha for name, alpha in alphas.items() if alpha != config.alpha},
    )


def _prepare_base(family: Family, config: AdapterConfig) -> AdapterSource | None:
    """Fuse what ``init_from`` asks for; the adapter whose weights are continued, None where there is none."""
    if config.init_from is None:
        return None
    path, alpha = config.init_from.path, config.init_from.alpha
    if config.init_from.mode == "fuse":
        fuse(family, config.component, path, alpha)
        return None
    source = read_adapter(path, alpha)
    if source.component != config.component:
        raise CheckpointError(f"{source.file}: adapts {source.component}, adapter.component is {config.component}")
    fuse_all(family, config.component, source.fused)
    return source


def _fitting_state(source: AdapterSource, adapter: "LowRankAdapter", config: AdapterConfig) -> dict[str, Tensor]:
    """The source's weights by our names; raises CheckpointError naming the first difference to the recipe."""
    hint = "set them alike or use adapter.init_from.mode=fuse"
    if source.kind != config.kind:
        raise CheckpointError(f"{source.file}: is a {source.kind}, adapter.kind is {config.kind}; {hint}")
    ours, theirs = adapter.scalings(), source.layers
    if ours.keys() != theirs.keys():
        differences = [f"lacks {_some(ours.keys() - theirs.keys())}"] if ours.keys() - theirs.keys() else []
        if theirs.keys() - ours.keys():
            differences.append(f"also adapts {_some(theirs.keys() - ours.keys())}")
        raise CheckpointError(f"{source.file}: {' and '.join(differences)}; set adapter.targets alike, or {hint}")
    state = {}
    for name, (rank, alpha) in ours.items():
        update = theirs[name]
        for what, value, other in (("rank", rank, update.rank), ("alpha", alpha, update.alpha)):
            if value != other:
                raise CheckpointError(f"{source.file}: {what} of {name} is {other:g} there and {value:g} here; {hint}")
        prefix = f"{config.component}.{name}"
        state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"] = update.down, update.up
        if update.magnitude is not None:
            state[f"{prefix}.lora_magnitude_vector"] = update.magnitude
    return state


def _refuse_empty_rows(targets: dict[str, nn.Linear]) -> None:
    for name, module in targets.items():
        weight = plain_weight(module)
        if weight.is_meta:  # a forecast: shapes without values
            continue
        empty = int((weight == 0).all(dim=1).sum())
        if empty:
            raise ConfigError(
                f"adapter.kind: dora needs a direction in every row, but {empty} of {module.out_features} rows of "
                f"{name} are zero; leave that layer out of adapter.targets or use kind lora"
            )


def _file_bytes(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose header is sorted: the library writes metadata in random order.

    Metadata that follows ModelSpec gets its ``hash_sha256``, of all that comes after the header.
    """
    data = serialize(state)
    start = 8 + int.from_bytes(data[:8], "little")
    if "modelspec.sai_model_spec" in metadata:
        metadata = {**metadata, "modelspec.hash_sha256": f"0x{hashlib.sha256(data[start:]).hexdigest()}"}
    tensors = json.loads(data[8:start])
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **tensors}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def _plain(value: Any) -> Any:
    """peft's configuration values as JSON: sets sorted, enumerations by value (they are strings)."""
    if isinstance(value, set):
        return sorted(value)
    return value


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
