"""A run's real model as a function of its adapter's parameters, in a form that has forward-mode derivatives.

The matrix-free kernel J J' w needs J' w (ordinary backward) and J p (forward mode). Two things in the way of the
second: the fused attention of PyTorch, for which ``geometry.kernel`` takes the plain one, and the DoRA layers, whose
written-out backward pass is fast and has no forward mode. Here they compute the same formula in plain operations.

Row lengths of DoRA count as constants, as in training (Liu et al. 2024, section 4.3): J is the Jacobian that training
uses, not that of the function with moving lengths.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.adapters.dora import FactoredConvolutionDora, FactoredDora, PeftLayer
from flowgrain.adapters.lora import ADAPTER_NAME
from flowgrain.diagnose.opened import OpenedRun
from flowgrain.families.base import Conditioning
from flowgrain.geometry.gradients import gradient_gram
from flowgrain.geometry.kernel import Predict


class _PlainDora:
    """b + g (W x + s B A x) with g = m / lengths, in operations that every mode of differentiation knows."""

    def __init__(self, lengths: Float[Tensor, " out"], convolution: bool):
        self._lengths, self._convolution = lengths, convolution

    def forward(
        self, module: PeftLayer, active_adapter: str, x: Tensor, result: Tensor, alora_offsets: Any = None
    ) -> Tensor:
        """The adapted output given the base layer's, without dropout."""
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter].weight
        gain = module.lora_magnitude_vector[active_adapter].weight.flatten() / self._lengths
        scaled = module.scaling[active_adapter] * gain
        bias = module.get_base_layer().bias
        shape = (-1, 1, 1) if self._convolution else (-1,)
        base = result if bias is None else result - bias.view(shape)
        factors = scaled.view(-1, *[1] * (up.ndim - 1)) * up
        update = F.conv2d(down(x), factors) if self._convolution else F.linear(down(x), factors)
        return result + (gain - 1).view(shape) * base + update


@contextmanager
def differentiable(opened: OpenedRun) -> Iterator[None]:
    """A block in which the model at its present weights has forward-mode derivatives: no checkpointing, plain DoRA."""
    replaced: list[tuple[PeftLayer, Any]] = []
    for layer in opened.family.backbone.modules():
        variants = getattr(layer, "lora_variant", None)
        own = variants.get(ADAPTER_NAME) if isinstance(variants, dict) else None
        if isinstance(own, FactoredDora | FactoredConvolutionDora) and isinstance(variants, dict):
            lengths = own.row_norms(layer, ADAPTER_NAME).detach().clone()
            replaced.append((layer, own))
            variants[ADAPTER_NAME] = _PlainDora(lengths, isinstance(own, FactoredConvolutionDora))
    checkpointed = opened.recipe.memory.gradient_checkpointing
    if checkpointed:
        opened.family.gradient_checkpointing(False)
    try:
        yield
    finally:
        for layer, own in replaced:
            layer.lora_variant[ADAPTER_NAME] = own
        if checkpointed:
            opened.family.gradient_checkpointing(True)


class _Holder(nn.Module):
    """Gives the backbone's parameters names by which they can be replaced for a call."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, opened: OpenedRun, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """What the family predicts."""
        return opened.family.predict(x, times, conditioning).prediction


def adapter_function(
    opened: OpenedRun, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], captions: Sequence[str], rows: Sequence[int]
) -> tuple[Predict, dict[str, Tensor]]:
    """(prediction of fixed inputs as a function of parameters, the adapter's parameters in the backbone).

    Of training slices ``rows`` with the given captions. Without autocast: the kernel is of the model in its own dtype.
    Text encoders count as fixed.
    """
    holder = _Holder(opened.family.backbone)
    trained = {id(parameter) for _, parameter in opened.adapter.parameters()}
    parameters = {name: parameter.detach() for name, parameter in holder.named_parameters() if id(parameter) in trained}
    x, t = x.to(opened.device, torch.float32), t.to(opened.device, torch.float64)
    times = opened.path(x, x, t).times
    with torch.no_grad():
        conditioning = opened.family.condition(opened.inputs(opened.train, rows, list(captions)))

    def predict(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(holder, values, (opened, x, times, conditioning))

    return predict, parameters


def level_products(
    predict: Predict, parameters: dict[str, Tensor], residuals: Float[Tensor, "g *output"]
) -> Float[Tensor, "g g"]:
    """Delta_a' Theta Delta_b (Eq. 45) in float64: :func:`flowgrain.geometry.kernel.level_matrix` in bounded memory.

    The gradients J' Delta stay in the model's dtype and are promoted one parameter tensor at a time.
    """
    own = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        output = predict(own)
    lifted = {}
    for index, residual in enumerate(residuals):
        lifted[str(index)] = torch.autograd.grad(
            output,
            list(own.values()),
            residual.to(output).reshape(output.shape),
            retain_graph=index + 1 < len(residuals),
            allow_unused=True,
        )
    return torch.from_numpy(gradient_gram(lifted))
