"""How much memory a forward and backward pass takes, found by running it on tensors without values.

The training step itself runs on the meta device: shapes, dtypes and what autograd keeps are real, numbers are not
there, so 12 billion parameters cost nothing. A dispatch mode sees every storage come and go. Two things that depend
on the device are imitated: attention runs as a fused kernel (it keeps q, k, v, its output and a row of log-sum-exps,
never the matrix of all pairs), and autocast, which has no meta backend, is played back from PyTorch's operator lists.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

_LOWERED = {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, torch.addmm, torch.einsum}
_LOWERED |= {F.conv2d, torch.conv2d, torch.mv, torch.baddbmm, F.scaled_dot_product_attention}
_RAISED_ON_CUDA = {F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm, F.group_norm, torch.group_norm}
_RAISED_ON_CUDA |= {torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp, F.mse_loss}
"""The operators of ATen/autocast_mode.h that image models use; on CPU autocast raises none of them."""


@dataclass(frozen=True)
class PassMemory:
    """Bytes of one forward and backward pass, beside what was there before it."""

    kept: int
    """Alive between forward and backward: what autograd keeps, and the loss."""
    peak: int
    """Most at any moment."""


def trace_pass(
    step: Callable[[], Tensor], before: Iterable[Tensor], device: Literal["cuda", "cpu"], bf16: bool
) -> PassMemory:
    """Memory of ``step()`` (a forward pass that returns the loss) and the loss's backward pass, on meta tensors.

    ``before`` are the tensors that are there already: weights, gradients, the batch. ``bf16`` imitates the
    autocast of ``device``.
    """
    meter = _Meter(before)
    with meter, on_meta(device, bf16):
        loss = step()
        kept = meter.live
        # Tensor.backward is a torch function too: it would leave the mode while it runs, recomputed blocks included
        _engine_run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
    return PassMemory(kept, meter.peak)


@contextmanager
def on_meta(device: Literal["cuda", "cpu"] = "cpu", bf16: bool = False) -> Iterator[None]:
    """A context in which code for ``device`` runs on meta tensors.

    Attention and autocast behave as there, and a question about a value (``.item()``) is answered with 0.
    """
    behaviour, genuine = _DeviceBehaviour(device, bf16), torch.autocast

    def autocast(device_type: str, *args: Any, enabled: bool = True, **kwargs: Any) -> AbstractContextManager[Any]:
        if device_type == "meta":
            return behaviour.casting(enabled)
        return genuine(device_type, *args, enabled=enabled, **kwargs)

    torch.autocast = autocast  # pyright: ignore[reportAttributeAccessIssue] (torch's has no meta backend and raises)
    try:
        with behaviour, _ZeroScalars():
            yield
    finally:
        torch.autocast = genuine


class _ZeroScalars(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        return func(*args, **(kwargs or {}))


class _Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, until they are freed."""

    def __init__(self, before: Iterable[Tensor]):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in before:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = True
        weakref.finalize(storage, self._freed, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _freed(self, size: int) -> None:
        self.live -= size


class _DeviceBehaviour(TorchFunctionMode):
    """Fused attention, and the casts that autocast to bfloat16 would do."""

    def __init__(self, device: Literal["cuda", "cpu"], bf16: bool):
        super().__init__()
        self._bf16 = bf16
        self._raised = _RAISED_ON_CUDA if device == "cuda" else set()

    @contextmanager
    def casting(self, enabled: bool) -> Iterator[None]:
        """A context with or without autocast's casts."""
        before, self._bf16 = self._bf16, enabled
        try:
            yield
        finally:
            self._bf16 = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._bf16 and func in _LOWERED:
            args, kwargs = tree_map(_cast(torch.bfloat16), (args, kwargs))
        elif self._bf16 and func in self._raised:
            args, kwargs = tree_map(_cast(torch.float32), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention with the signature of torch's; meta tensors alone would take the kernel that keeps all pairs."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _cast(dtype: torch.dtype) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return cast
