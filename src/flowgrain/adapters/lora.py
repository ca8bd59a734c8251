"""LoRA and DoRA in one component through peft, saved as diffusers loads them.

LoRA (Hu et al. 2022): W' = W + s B A with s = alpha / rank, B = 0 at the start.
DoRA (Liu et al. 2024): W' = m (W + s B A) / |W + s B A|, norms over each row (output feature), m trained from |W|.
The norm counts as a constant in the backward pass (their section 4.3). Other trainers differ in both choices, so the
saved header names them (``dora.norm_axis``, ``dora.detach_norm``).

A convolution's A is a convolution of its own size and stride to rank channels, its B a 1x1 one back (LoCon); the update
is B A of the kernels as matrices, (out, r) (r, in k k).
"""

import math
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from flowgrain import rng
from flowgrain.adapters.adapter_file import AdapterFile, FusedAdapter, described, read_adapter_file, write_adapter_file
from flowgrain.adapters.base import WEIGHTS_NAME, Adapter, AdapterConfig
from flowgrain.adapters.dora import FactoredConvolutionDora, FactoredDora, PeftLayer
from flowgrain.adapters.plan import LowRankPlan
from flowgrain.errors import CheckpointError
from flowgrain.families.peft_layers import add_adapter, remove_adapters

ADAPTER_NAME = "flowgrain"
DORA_VARIANT = {"dora.norm_axis": "output", "dora.detach_norm": "true"}


class LowRankAdapter(Adapter):
    """A LoRA or DoRA adapter in one component; made by :func:`flowgrain.adapters.low_rank.inject`."""

    def __init__(self, plan: LowRankPlan, config: AdapterConfig, fused: tuple[FusedAdapter, ...]):
        """Put peft's layers into the component; ``fused`` is what its weights hold."""
        self.config = config
        self.fused = fused
        self.component = plan.component
        self._peft_config = plan.peft
        add_adapter(plan.component.module, plan.peft, ADAPTER_NAME)
        # a file's layers are those of its tensors, peft warns of needless exclusions
        plan.peft.exclude_modules = None
        self._layers: dict[str, PeftLayer] = {
            name: module for name, module in plan.component.module.named_modules() if isinstance(module, LoraLayer)
        }
        self._dora: dict[str, FactoredDora | FactoredConvolutionDora] = {}
        if config.kind == "dora":
            self._dora = {name: _dora_variant(layer) for name, layer in self._layers.items()}
        for name, variant in self._dora.items():
            self._layers[name].lora_variant[ADAPTER_NAME] = variant
        self._parameters = [part for name, layer in self._layers.items() for part in self._parts(name, layer)]
        for _, parameter in self._parameters:
            parameter.data = parameter.data.float()

    @property
    def trains_text(self) -> bool:
        """See :attr:`Adapter.trains_text`."""
        return self.component.is_text

    def initialise(self, seed: int) -> None:
        """A uniform in +-1 / sqrt(inputs of an output) (Kaiming, a = sqrt 5), B zero, magnitudes the rows' norms."""
        for name, layer in self._layers.items():
            down = _part(layer, "lora_A")
            fresh = torch.empty(down.shape)
            # the backbone's layers go by their own names, as in the first release
            identity = self.file_name(name) if self.component.is_text else name
            nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=rng.generator(seed, "lora_A", identity))
            with torch.no_grad():
                down.copy_(fresh)
                _part(layer, "lora_B").zero_()
        for name, variant in self._dora.items():
            lengths, magnitude = variant.row_norms(self._layers[name], ADAPTER_NAME), self._magnitude(name)
            with torch.no_grad():
                magnitude.copy_(lengths.view(magnitude.shape))

    def file_name(self, layer: str) -> str:
        """What files call a layer: the component's name first."""
        return f"{self.component.file_prefix}{layer}"

    def magnitude_name(self, layer: str) -> str:
        """What files call a layer's magnitudes: diffusers and transformers, which load them, expect different names."""
        suffix = "lora_magnitude_vector.weight" if self.component.is_text else "lora_magnitude_vector"
        return f"{self.file_name(layer)}.{suffix}"

    def scalings(self) -> dict[str, tuple[int, float]]:
        """Rank and alpha of each layer."""
        return {name: (layer.r[ADAPTER_NAME], layer.lora_alpha[ADAPTER_NAME]) for name, layer in self._layers.items()}

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Adapter.parameters`."""
        return list(self._parameters)

    def save(self, folder: Path, metadata: dict[str, str]) -> None:
        """See :meth:`Adapter.save`; one file, ``pytorch_lora_weights.safetensors``.

        Where ``metadata`` follows ModelSpec (:mod:`flowgrain.adapters.model_spec`) the hash of the tensors joins it.
        """
        save_parts([self], folder, metadata)

    def load(self, folder: Path) -> None:
        """See :meth:`Adapter.load`; kind and alpha / rank must be this adapter's too."""
        load_parts(self, [self], folder)

    def settings(self) -> dict[str, Any]:
        """The component's part of the file's header."""
        return described(self.component.name, self._peft_config)

    def check_settings(self, path: Path, found: AdapterFile) -> None:
        """Raise CheckpointError where a file's kind, ranks or alphas are not this adapter's."""
        values = self._peft_config.to_dict()
        expected = {key: values[key] for key in ("r", "lora_alpha", "use_dora", "rank_pattern", "alpha_pattern")}
        for key, value in expected.items():
            theirs = found.described.get(f"{self.component.name}.{key}")
            if theirs != value:
                raise CheckpointError(f"{path}: {key} is {theirs} there and {value} in this run; use the same adapter")

    def train(self, mode: bool = True) -> None:
        """See :meth:`Adapter.train`."""
        for layer in self._layers.values():
            layer.train(mode)

    def merge(self) -> None:
        """See :meth:`Adapter.merge`."""
        with torch.no_grad():
            for layer in self._layers.values():
                layer.merge(safe_merge=True)
        self.remove()

    def remove(self) -> None:
        """See :meth:`Adapter.remove`."""
        remove_adapters(self.component.module)
        for layer in self._layers.values():
            layer.get_base_layer().requires_grad_(False)
        self._layers, self._dora, self._parameters = {}, {}, []

    def _switch(self, mode: bool) -> None:
        for layer in self._layers.values():
            layer.enable_adapters(mode)

    def _magnitude(self, name: str) -> nn.Parameter:
        return _part(self._layers[name], "lora_magnitude_vector")

    def _parts(self, name: str, layer: PeftLayer) -> list[tuple[str, nn.Parameter]]:
        prefix = self.file_name(name)
        parts = [(f"{prefix}.{part}.weight", _part(layer, part)) for part in ("lora_A", "lora_B")]
        if self.config.kind == "dora":
            parts.append((self.magnitude_name(name), self._magnitude(name)))
        return parts


def save_parts(parts: list[LowRankAdapter], folder: Path, metadata: dict[str, str]) -> None:
    """Write the adapters of one model's components into one file."""
    tensors = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
    settings = {key: value for part in parts for key, value in part.settings().items()}
    variant = DORA_VARIANT if parts[0].config.kind == "dora" else {}
    write_adapter_file(folder, tensors, settings, parts[0].fused, {**metadata, **variant})


def load_parts(whole: Adapter, parts: list[LowRankAdapter], folder: Path) -> None:
    """Set ``whole``, which is made of ``parts``, from a file of :func:`save_parts`.

    Raises CheckpointError where the file is of another adapter.
    """
    path = folder / WEIGHTS_NAME
    found = read_adapter_file(path)
    for part in parts:
        part.check_settings(path, found)
    if [entry.sha256 for entry in found.fused] != [entry.sha256 for entry in parts[0].fused]:
        raise CheckpointError(f"{path}: was trained on base weights with other fused adapters; use the same ones")
    try:
        whole.load_state_dict(found.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _dora_variant(layer: PeftLayer) -> FactoredDora | FactoredConvolutionDora:
    return FactoredDora() if isinstance(layer.get_base_layer(), nn.Linear) else FactoredConvolutionDora()


def _part(layer: PeftLayer, part: str) -> nn.Parameter:
    return layer.get_parameter(f"{part}.{ADAPTER_NAME}.weight")
