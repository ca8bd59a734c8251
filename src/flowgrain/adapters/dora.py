"""DoRA's forward pass without materialising W + s B A.

DoRA (Liu et al. 2024) scales the rows of W + s B A to trained lengths m. The row lengths follow from rank-r products:

    |W + s B A|^2 = |W|^2 + 2 s rowsum(W A^T * B) + s^2 rowsum(B (A A^T) * B)

They count as constants in the backward pass (section 4.3), so they are computed without gradient and once an update:
neither the micro-batches of an update nor the recomputation of a checkpointed block changes A, B or W. With
g = m / |W + s B A| the output is then

    b + g (x W^T + s (x A^T) B^T)  =  y + (g - 1) (y - b) + (x A^T) (s g B)^T        y = x W^T + b, the base layer's

The right-hand side never rounds g itself to bfloat16, whose steps near 1 are larger than what m learns in an update.

A convolution's weight is the matrix (out, in k k), its update the product of the kernels as matrices; the same formulas
hold at every place of the picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora.variants import DoraConv2dVariant, DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook

SHORTEST = 2.0**-8
"""A row never counts as shorter than this part of the base row.

Where the update cancels a row, float32 cannot tell what is left of it: the squared length is off by about 1e-6 of
|W|^2. At this limit that is a few per cent, below it noise.
"""

PeftLayer = Any
"""peft's wrapper of a linear layer, plain or quantised, or of a convolution: both a Module and a LoraLayer, which no
one type says."""

_CHUNK = 4_194_304
"""Elements of a weight that are converted to float32 at a time (16 MiB)."""


class _UpdateClock:
    """Counts the optimizer steps of this process.

    An optimizer may write through ``.data`` or its own kernels, which leaves a tensor's version counter as it was.
    """

    def __init__(self):
        self.steps = 0

    def tick(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.steps += 1


_CLOCK = _UpdateClock()
register_optimizer_step_post_hook(_CLOCK.tick)


@dataclass(frozen=True)
class _Coefficients:
    """What the output needs of the parameters alone: the same for every micro-batch of an update."""

    factor: Tensor
    """s g, (out, 1)"""
    scaled: Tensor
    """s g B, (out, r), in the dtype of the products"""
    excess: Tensor
    """g - 1, (out), in the dtype of the products"""
    shift: Tensor | None
    """-(g - 1) b, (out)"""

    @staticmethod
    def of(
        up: Tensor, magnitude: Tensor, norms: Tensor, bias: Tensor | None, scaling: float, dtype: torch.dtype
    ) -> "_Coefficients":
        gain = magnitude / norms
        excess, factor = gain - 1, (scaling * gain)[:, None]
        shift = None if bias is None else (bias * -excess).to(dtype)
        return _Coefficients(factor, (factor * up).to(dtype), excess.to(dtype), shift)


class _RowNorms:
    """Row lengths of one layer, remembered as long as what they are made of."""

    def __init__(self):
        self._squares_key: tuple[Any, ...] = ()
        self._squares = torch.empty(0)
        self.key: tuple[Any, ...] = ()
        self._norms = torch.empty(0)

    def of(self, layer: PeftLayer, adapter: str) -> Float[Tensor, "out"]:
        """Lengths of the rows of W + s B A in float32, from memory where A, B, s and W are as they were."""
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        base, scaling = layer.get_base_layer(), layer.scaling[adapter]
        if torch.compiler.is_compiling():  # a memory would break the graph
            with _exactly(up):
                weight = plain_weight(base).flatten(1)
                return factored_row_norms(weight, row_squares(weight), down.flatten(1), up.flatten(1), scaling)
        mode = torch.is_inference_mode_enabled()
        squares_key = (_stamp(base.weight), mode)
        key = (squares_key, _stamp(down), _stamp(up), scaling, _CLOCK.steps)
        if key != self.key:
            with _exactly(up):
                weight = plain_weight(base).flatten(1)
                if squares_key != self._squares_key:
                    self._squares, self._squares_key = row_squares(weight), squares_key
                self._norms = factored_row_norms(weight, self._squares, down.flatten(1), up.flatten(1), scaling)
                self.key = key
        return self._norms


class _Factored:
    """What both variants share beside peft's merging."""

    def __init__(self):
        self._norms = _RowNorms()

    def row_norms(self, layer: PeftLayer, adapter: str) -> Float[Tensor, "out"]:
        """Lengths of the rows (kernels) of W + s B A in float32, from memory where A, B, s and W are as they were."""
        return self._norms.of(layer, adapter)


class FactoredDora(_Factored, DoraLinearVariant):
    """A linear layer's DoRA: takes the place of peft's variant in ``layer.lora_variant``; merging stays peft's."""

    def __init__(self):
        super().__init__()
        self._coefficients_key: tuple[Any, ...] = ()
        self._coefficients: _Coefficients | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (peft calls it on the instance)
        self, module: PeftLayer, active_adapter: str, x: Tensor, result: Tensor, alora_offsets: Any = None
    ) -> Tensor:
        """The adapted output given the base layer's; dropout acts on the whole change, as in peft."""
        base_layer = module.get_base_layer()
        down, up = module.lora_A[active_adapter], module.lora_B[active_adapter].weight
        x, base = _dropped(module, active_adapter, x, result)
        magnitude, norms = module.lora_magnitude_vector[active_adapter].weight, self.row_norms(module, active_adapter)
        scaling, hidden = module.scaling[active_adapter], down(x)
        coefficients = self._of_update(up, magnitude, norms, base_layer.bias, scaling, hidden.dtype)
        return _DoraOutput.apply(
            result,
            None if base is result else base,
            hidden,
            up,
            magnitude,
            norms,
            base_layer.bias,
            scaling,
            coefficients,
        )

    def _of_update(
        self, up: Tensor, magnitude: Tensor, norms: Tensor, bias: Tensor | None, scaling: float, dtype: torch.dtype
    ) -> _Coefficients:
        """Coefficients from memory where nothing that they are made of has changed."""
        if torch.compiler.is_compiling():
            with _exactly(up):
                return _Coefficients.of(up, magnitude, norms, bias, scaling, dtype)
        stamp = None if bias is None else _stamp(bias)
        key = (self._norms.key, _stamp(magnitude), stamp, dtype)
        if self._coefficients is None or key != self._coefficients_key:
            with _exactly(up):
                self._coefficients = _Coefficients.of(up, magnitude, norms, bias, scaling, dtype)
            self._coefficients_key = key
        return self._coefficients


class FactoredConvolutionDora(_Factored, DoraConv2dVariant):
    """A convolution's DoRA, as :class:`FactoredDora`; peft's would round g to bfloat16 under autocast."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (peft calls it on the instance)
        self, module: PeftLayer, active_adapter: str, x: Tensor, result: Tensor, alora_offsets: Any = None
    ) -> Tensor:
        """The adapted output given the base layer's; dropout acts on the whole change, as in peft."""
        x, base = _dropped(module, active_adapter, x, result)
        bias = module.get_base_layer().bias
        if bias is not None:
            base = base - bias[:, None, None]
        magnitude, norms = module.lora_magnitude_vector[active_adapter].weight, self.row_norms(module, active_adapter)
        gain = magnitude.flatten() / norms
        kernels = (module.scaling[active_adapter] * gain)[:, None, None, None] * module.lora_B[active_adapter].weight
        update = F.conv2d(module.lora_A[active_adapter](x), kernels)
        return result + update + (gain - 1)[:, None, None].to(result.dtype) * base


class _DoraOutput(torch.autograd.Function):
    """y + (g - 1) (y' - b) + h (s g B)^T with g = m / norms: the formula of this module, h = x A^T.

    ``base`` is y' where dropout makes it another than y (``result``). Written out because autograd's version takes
    twice the operations, which small models feel. h's dtype is that of the matrix products, as autocast chose it;
    the gradients of m and B are as exact as these products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        base: Tensor | None,
        hidden: Tensor,
        up: Tensor,
        magnitude: Tensor,
        norms: Tensor,
        bias: Tensor | None,
        scaling: float,
        coefficients: _Coefficients,
    ) -> Tensor:
        factor, scaled, excess = coefficients.factor, coefficients.scaled, coefficients.excess
        update = F.linear(hidden, scaled, coefficients.shift)
        ctx.dropped, ctx.scaling = base is not None, scaling
        base = result if base is None else base
        ctx.save_for_backward(base, hidden, up, norms, bias, excess, factor, scaled)
        if update.dtype != result.dtype:
            return torch.addcmul(update + result, base, excess)
        return update.add_(result).addcmul_(base, excess)  # in place: the same bits without two more allocations

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (one output, hence one gradient)
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        base, hidden, up, norms, bias, excess, factor, scaled = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        products = rows.to(hidden.dtype)
        d_hidden = (products @ scaled).view_as(hidden)
        d_scaled = (products.T @ hidden.flatten(0, -2)).to(up.dtype)
        d_gain = (rows * base.flatten(0, -2)).sum(dim=0) + ctx.scaling * (d_scaled * up).sum(dim=1)
        if bias is not None:
            d_gain = d_gain - bias * rows.sum(dim=0)
        d_result = grad if ctx.dropped else torch.addcmul(grad, grad, excess)
        d_base = grad * excess if ctx.dropped else None
        return d_result, d_base, d_hidden, factor * d_scaled, d_gain / norms, None, None, None, None


def _dropped(module: PeftLayer, adapter: str, x: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the change and the base layer's output for it: after dropout, or ``x`` and ``result`` themselves."""
    dropout = module.lora_dropout[adapter]
    if not (module.training and isinstance(dropout, nn.Dropout)):
        return x, result
    x = dropout(x)
    return x, module.get_base_layer()(x.to(result.dtype))


@contextmanager
def _exactly(tensor: Tensor) -> Iterator[None]:
    """Without gradient and in the dtypes as they are."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


def plain_weight(layer: nn.Linear | nn.Conv2d) -> Float[Tensor, "out ..."]:
    """A layer's weight as floating-point numbers; a copy where it is quantised."""
    if type(layer.weight) is nn.Parameter:
        return layer.weight
    return dequantize_module_weight(layer)


def row_squares(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out"]:
    """Squared lengths of the rows in float32, without a float32 copy of the weight."""
    return torch.cat([torch.linalg.vector_norm(part.float(), dim=1) for part in _rows(weight)]).square()


def factored_row_norms(
    weight: Float[Tensor, "out in"],
    squares: Float[Tensor, "out"],
    down: Float[Tensor, "r in"],
    up: Float[Tensor, "out r"],
    scaling: float,
) -> Float[Tensor, "out"]:
    """Lengths of the rows of W + s B A in float32, ``squares`` being |W|^2 by rows.

    The relative error is below 1e-6 (|W|^2 + |s |B| |A||^2) / |W + s B A|^2; no row is shorter than
    :data:`SHORTEST` |W|.
    """
    down, up = down.float(), up.float()
    transposed = down.T
    blocks = [part.float() @ transposed for part in _rows(weight)]
    projected = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    cross = torch.addmm(projected, up, down @ transposed, beta=2.0, alpha=scaling)  # 2 W A^T + s B (A A^T)
    lengths = squares + scaling * (cross * up).sum(dim=1)
    return torch.maximum(lengths, squares * SHORTEST**2).sqrt()


def _rows(weight: Tensor) -> tuple[Tensor, ...]:
    """A weight in blocks of rows, in one block where it needs no conversion to float32."""
    if weight.dtype == torch.float32:
        return (weight,)
    return weight.split(max(1, _CHUNK // weight.shape[1]))


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    """Changes whenever torch knows that a tensor's values, storage, dtype or device changed."""
    storage = tensor.data_ptr() if type(tensor) is nn.Parameter else id(tensor)  # quantised ones may have no pointer
    return storage, tensor._version, tensor.dtype, tensor.device
