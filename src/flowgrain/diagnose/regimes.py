"""How far an adapter has moved the model: in effective weights, exactly, and relative to what it adapts.

Semantic Granularity Alignment, Fig. 3, orders the regimes of fine-tuning by a distance that it does not define. The
norm of the factors means nothing, (c A, B / c) is the same adapter; what counts is the change of the weights:

* LoRA: |s B A|_F from r x r products (:func:`flowgrain.geometry.regimes.low_rank_change`);
* DoRA: the row w becomes m (w + d) / |w + d| with d its row of s B A, so that the row's change squared is
  m^2 - 2 m (|w|^2 + w.d) / |w + d| + |w|^2, all from rank-r products: no weight is materialised;
* full: the difference to the base weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from flowgrain.adapters.dora import SHORTEST, plain_weight
from flowgrain.adapters.lora import ADAPTER_NAME
from flowgrain.diagnose.opened import OpenedRun
from flowgrain.geometry.regimes import low_rank_change


@dataclass(frozen=True)
class WeightChange:
    """The effective change of all adapted weights."""

    change: float
    """|W' - W|_F over all adapted layers."""
    base: float
    """|W|_F of the same layers."""
    kind: str
    """lora, dora or full."""

    @property
    def relative(self) -> float:
        """Change over base."""
        return self.change / self.base if self.base > 0 else math.nan


@torch.no_grad()
def weight_change(opened: OpenedRun) -> WeightChange:
    """Of the adapter at its present weights against the weights under it (fused adapters included)."""
    if opened.recipe.adapter.kind == "full":
        return _full_change(opened)
    change = base = 0.0
    for layer in _layers(opened):
        weight = plain_weight(layer.get_base_layer()).flatten(1)
        down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
        scale = float(layer.scaling[ADAPTER_NAME])
        if opened.recipe.adapter.kind == "dora":
            magnitude = layer.lora_magnitude_vector[ADAPTER_NAME].weight.flatten()
            change += dora_change(weight, down.flatten(1), up.flatten(1), magnitude, scale) ** 2
        else:
            change += low_rank_change(down, up, scale) ** 2
        base += weight.double().square().sum().item()
    return WeightChange(math.sqrt(change), math.sqrt(base), opened.recipe.adapter.kind)


def dora_change(
    weight: Float[Tensor, "out in"],
    down: Float[Tensor, "r in"],
    up: Float[Tensor, "out r"],
    magnitude: Float[Tensor, " out"],
    scale: float,
) -> float:
    """|m (W + s B A) / |W + s B A| - W|_F by rows, without the product, float64."""
    w, a, b, m = weight.double(), down.double(), up.double(), magnitude.double()
    own = w.square().sum(dim=1)
    across = scale * ((w @ a.T) * b).sum(dim=1)
    added = scale**2 * ((b @ (a @ a.T)) * b).sum(dim=1)
    length = torch.maximum(own + 2 * across + added, own * SHORTEST**2).sqrt()
    # the direction w + d is shorter than `length` where that was raised to the shortest allowed
    turned = m.square() * (own + 2 * across + added) / length.square()
    return math.sqrt(max((turned - 2 * m * (own + across) / length + own).sum().item(), 0.0))


def _layers(opened: OpenedRun) -> Iterator[Any]:
    for component in opened.family.components().values():
        for layer in component.modules():
            if isinstance(layer, LoraLayer) and ADAPTER_NAME in layer.lora_A:
                yield layer


def _full_change(opened: OpenedRun) -> WeightChange:
    parameters = opened.adapter.parameters()
    now = [parameter.detach().to("cpu", copy=True) for _, parameter in parameters]
    with opened.without_adapter():
        pairs = [(value, parameter.detach().cpu()) for value, (_, parameter) in zip(now, parameters, strict=True)]
        change = sum((value.double() - was.double()).square().sum().item() for value, was in pairs)
        base = sum(was.double().square().sum().item() for _, was in pairs)
    return WeightChange(math.sqrt(change), math.sqrt(base), "full")
