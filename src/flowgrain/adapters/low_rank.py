"""LoRA and DoRA through peft, saved as diffusers loads them.

LoRA (Hu et al. 2022): W' = W + s B A with s = alpha / rank, B = 0 at the start.
DoRA (Liu et al. 2024): W' = m (W + s B A) / |W + s B A|, norms over each row (output feature), m trained from |W|.
The norm counts as a constant in the backward pass (their section 4.3). Other trainers differ in both choices, so the
saved header names them (``dora.norm_axis``, ``dora.detach_norm``).
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from flowgrain import rng
from flowgrain.adapters.base import WEIGHTS_NAME, Adapter, AdapterConfig
from flowgrain.adapters.targets import find_targets
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.families.base import Family
from flowgrain.files import atomic_write_bytes

ADAPTER_NAME = "flowgrain"
DORA_VARIANT = {"dora.norm_axis": "output", "dora.detach_norm": "true"}


def inject(family: Family, config: AdapterConfig, seed: int) -> "LowRankAdapter":
    """Put a fresh adapter into ``config.component``; predictions stay bitwise what they were.

    The initial values depend on ``seed`` and the layers' names alone, not on dtype, device or order. Raises
    ConfigError for an unknown component or target, a rank above the smallest side of a target, or a DoRA target
    with an all-zero row (its direction is 0 / 0).
    """
    components = family.components()
    if config.component not in components:
        raise ConfigError(f"adapter.component: '{config.component}' is unknown; choose one of {', '.join(components)}")
    component = components[config.component]
    host = _lora_host(component)
    if host._hf_peft_config_loaded:
        raise ConfigError(f"adapter: {config.component} carries an adapter already; remove or merge it first")
    targets = find_targets(component, config.targets or family.adapter_targets(config.component))
    _check(config, targets)
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] (peft only divides it by the rank)
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        use_dora=config.kind == "dora",
    )
    host.add_adapter(peft_config, adapter_name=ADAPTER_NAME)
    adapter = LowRankAdapter(component, config, peft_config)
    adapter.initialise(seed)
    adapter.train(True)
    return adapter


class LowRankAdapter(Adapter):
    """A LoRA or DoRA adapter in a diffusers model; made by :func:`inject`."""

    def __init__(self, component: nn.Module, config: AdapterConfig, peft_config: LoraConfig):
        self.config = config
        self._component = component
        self._peft_config = peft_config
        self._layers: dict[str, LoraLinear] = {
            name: module for name, module in component.named_modules() if isinstance(module, LoraLinear)
        }
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
                if self.config.kind == "dora":
                    weight = layer.get_base_layer().get_parameter("weight").float()
                    _part(layer, "lora_magnitude_vector").copy_(torch.linalg.norm(weight, dim=1))

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
        """See :meth:`Adapter.save`; one file, ``pytorch_lora_weights.safetensors``."""
        peft_values = self._peft_config.to_dict().items()
        described = {f"{self.config.component}.{key}": _plain(value) for key, value in peft_values}
        header = {
            **metadata,
            **(DORA_VARIANT if self.config.kind == "dora" else {}),
            "format": "pt",
            LORA_ADAPTER_METADATA_KEY: json.dumps(described, sort_keys=True),
        }
        atomic_write_bytes(folder / WEIGHTS_NAME, serialize(self.state_dict(), metadata=header))

    def load(self, folder: Path) -> None:
        """See :meth:`Adapter.load`; kind and alpha / rank must be this adapter's too."""
        path = folder / WEIGHTS_NAME
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
                state = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as an adapter ({error}); restore the file") from None
        component = self.config.component
        expected = {"r": self.config.rank, "lora_alpha": self.config.alpha, "use_dora": self.config.kind == "dora"}
        for key, value in expected.items():
            found = header.get(f"{component}.{key}")
            if found != value:
                raise CheckpointError(f"{path}: {key} is {found} there and {value} in this run; use the same adapter")
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
        self._layers, self._parameters = {}, []

    def _switch(self, mode: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(mode)
        self._enabled = mode

    def _parts(self, name: str, layer: LoraLinear) -> list[tuple[str, nn.Parameter]]:
        prefix = f"{self.config.component}.{name}"
        parts = [(f"{prefix}.{part}.weight", _part(layer, part)) for part in ("lora_A", "lora_B")]
        if self.config.kind == "dora":
            parts.append((f"{prefix}.lora_magnitude_vector", _part(layer, "lora_magnitude_vector")))
        return parts


def _lora_host(component: nn.Module) -> PeftAdapterMixin:
    if not isinstance(component, PeftAdapterMixin):
        raise ConfigError(f"adapter.component: diffusers puts no adapters into {type(component).__name__}")
    return component


def _part(layer: LoraLinear, part: str) -> nn.Parameter:
    return layer.get_parameter(f"{part}.{ADAPTER_NAME}.weight")


def _check(config: AdapterConfig, targets: dict[str, nn.Linear]) -> None:
    name, smallest = min(targets.items(), key=lambda item: min(item[1].weight.shape))
    limit = min(smallest.weight.shape)
    if config.rank > limit:
        raise ConfigError(
            f"adapter.rank: {config.rank} is more than {limit}, the smallest side of {name}; lower the rank or leave "
            "that layer out of adapter.targets"
        )
    if config.kind == "dora":
        for name, module in targets.items():
            empty = int((module.weight == 0).all(dim=1).sum())
            if empty:
                raise ConfigError(
                    f"adapter.kind: dora needs a direction in every row, but {empty} of {module.out_features} rows of "
                    f"{name} are zero; leave that layer out of adapter.targets or use kind lora"
                )


def _plain(value: Any) -> Any:
    """peft's configuration values as JSON: sets sorted, enumerations by value (they are strings)."""
    if isinstance(value, set):
        return sorted(value)
    return value


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
