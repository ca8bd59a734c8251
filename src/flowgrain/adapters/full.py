"""Fine-tuning of all weights of a component, behind the contract of adapters.

The weights train in float32 whatever dtype they were loaded in: at 0.05 a bfloat16 number moves in steps of 0.00024,
so that updates of usual size would be lost. Autocast still multiplies in bfloat16. The base weights stay on the CPU in
their own dtype, for :meth:`FullAdapter.enabled` and :meth:`FullAdapter.remove`.

A saved folder holds ordinary component folders (``unet/config.json`` and safetensors weights) that
``UNet2DConditionModel.from_pretrained`` and its like load, and ``full.json``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flowgrain.adapters.base import FULL_NAME, Adapter, AdapterConfig
from flowgrain.adapters.plan import Component
from flowgrain.errors import CheckpointError, ConfigError, ModelError
from flowgrain.families.loading import load_component
from flowgrain.files import atomic_directory, atomic_write_text


class FullAdapter(Adapter):
    """All weights of one or several components; made by :func:`flowgrain.adapters.low_rank.inject`."""

    def __init__(self, config: AdapterConfig, components: list[Component]):
        """Make the weights trainable, in float32; raises ConfigError where they are quantised."""
        self.config = config
        self._components = tuple(components)
        self._weights = {
            f"{component.name}.{name}": parameter
            for component in components
            for name, parameter in component.module.named_parameters()
        }
        for name, parameter in self._weights.items():
            _refuse_quantised(name, parameter)
        buffers = [buffer for component in components for buffer in component.module.buffers()]
        self._buffers = [(buffer, buffer.dtype) for buffer in buffers if buffer.is_floating_point()]
        self._base = {name: _on_cpu(parameter) for name, parameter in self._weights.items()}
        self._waiting: dict[str, Tensor] | None = None
        for tensor in (*self._weights.values(), *(buffer for buffer, _ in self._buffers)):
            tensor.data = tensor.data.float()
        for parameter in self._weights.values():
            parameter.requires_grad_(True)

    @property
    def trains_text(self) -> bool:
        """See :attr:`Adapter.trains_text`."""
        return any(component.is_text for component in self._components)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Adapter.parameters`."""
        return list(self._weights.items())

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """See :meth:`Adapter.save`; the weights are written in float32, ``metadata`` into ``full.json``."""
        for component in self._components:
            module: Any = component.module  # both libraries' models, which share no type
            with atomic_directory(folder / component.name) as temporary:
                try:
                    module.save_pretrained(temporary)
                except SafetensorError as error:  # how the library reports a full disk
                    raise OSError(f"{component.name}: {error}") from None
        marker = {"components": [component.name for component in self._components], "metadata": metadata}
        atomic_write_text(folder / FULL_NAME, json.dumps(marker, indent=2, sort_keys=True) + "\n")

    def load(self, folder: Path) -> None:
        """See :meth:`Adapter.load`."""
        path, ours = folder / FULL_NAME, [component.name for component in self._components]
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))["components"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path}: cannot be read as that of whole weights ({reason}); give another") from None
        if theirs != ours:
            raise CheckpointError(
                f"{path}: holds {', '.join(theirs)}, this run trains {', '.join(ours)}; set adapter.component and "
                "adapter.text_encoders alike"
            )
        state: dict[str, Tensor] = {}
        for component in self._components:
            try:
                loaded = load_component(folder / component.name, component.module)
            except ModelError as error:
                raise CheckpointError(str(error)) from None
            state |= {f"{component.name}.{name}": value for name, value in loaded.named_parameters()}
        try:
            self.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def train(self, mode: bool = True) -> None:
        """See :meth:`Adapter.train`: there is no dropout; the models stay in eval mode, as when they are sampled."""

    def merge(self) -> None:
        """See :meth:`Adapter.merge`: the weights stay, rounded to the dtype that they were loaded in."""
        for name, parameter in self._weights.items():
            self._freeze(parameter, parameter.data.to(self._base[name].dtype))
        self._forget()

    def remove(self) -> None:
        """See :meth:`Adapter.remove`."""
        for name, parameter in self._weights.items():
            self._freeze(parameter, self._base[name].to(parameter.device))
        self._forget()

    def _switch(self, mode: bool) -> None:
        """See :meth:`Adapter.enabled`: base weights act in float32 arithmetic, and the trained ones wait on the CPU."""
        if mode == (self._waiting is None):
            return
        values = self._base if self._waiting is None else self._waiting
        self._waiting = None if mode else {name: _on_cpu(weight) for name, weight in self._weights.items()}
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(values[name])
                # torch multiplies by weights that require a gradient in another order: the base model's is without
                parameter.requires_grad_(mode)

    def _freeze(self, parameter: nn.Parameter, values: Tensor) -> None:
        parameter.requires_grad_(False)
        parameter.grad = None
        parameter.data = values

    def _forget(self) -> None:
        for buffer, dtype in self._buffers:
            buffer.data = buffer.data.to(dtype)
        self._weights, self._base, self._buffers, self._waiting = {}, {}, [], None


def _on_cpu(tensor: Tensor) -> Tensor:
    """A copy on the CPU; of a forecast's tensor, which has no values, the tensor."""
    return tensor.detach() if tensor.is_meta else tensor.detach().to("cpu", copy=True)


def _refuse_quantised(name: str, parameter: nn.Parameter) -> None:
    if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
        raise ConfigError(
            f"adapter.kind: full trains the weights themselves, and {name} is quantised; set memory.quantize to none, "
            "or use kind lora or dora"
        )
