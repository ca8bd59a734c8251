"""Linear layers of a frozen backbone in fewer bits; inputs, outputs and adapters keep their dtype.

int8 and fp8 keep the weight in 8 bits with one scale an output row (torchao, weight only). nf4 is the 4-bit normal
float of QLoRA (Dettmers et al. 2023) with quantised scales, one for 64 weights (bitsandbytes). In the forward pass a
weight is brought back to the model's dtype. torchao's layers keep that copy for the backward pass, so they save
memory only with gradient checkpointing, where one block's copies live at a time.
"""

import torch
from torch import nn

from flowgrain.errors import MissingExtraError
from flowgrain.families.base import Quantization

BYTES_PER_WEIGHT: dict[Quantization, float] = {
    "int8": 1.0,
    "fp8": 1.0,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),  # codes, 8-bit scales of 64 weights, float32 scales of 256 scales
}
"""Bytes a weight, without the few of int8's and fp8's row scales."""


def quantize_linears(blocks: list[nn.Module], quantization: Quantization, device: torch.device) -> None:
    """Quantise all linear layers inside ``blocks`` in place, moving them to ``device`` one after the other.

    Raises MissingExtraError where the library is not installed.
    """
    if quantization == "none":
        return
    if quantization == "nf4":
        _to_nf4(blocks, device)
    else:
        _to_eight_bits(blocks, quantization, device)


def quantized_bytes(blocks: list[nn.Module], quantization: Quantization) -> int:
    """Bytes that :func:`quantize_linears` takes off ``blocks``, from shapes and dtypes alone."""
    if quantization == "none":
        return 0
    weights = [module.weight for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    return int(sum(weight.numel() * (weight.element_size() - BYTES_PER_WEIGHT[quantization]) for weight in weights))


def unpacked_bytes(blocks: list[nn.Module], quantization: Quantization) -> int:
    """Bytes of the weights that a pass holds in the model's dtype at once: one weight (nf4), one block's (8 bits).

    The latter with gradient checkpointing, without which it is those of all blocks.
    """
    sizes = [
        [m.weight.numel() * m.weight.element_size() for m in block.modules() if isinstance(m, nn.Linear)]
        for block in blocks
    ]
    if quantization == "none":
        return 0
    return max(max(block) if quantization == "nf4" else sum(block) for block in sizes)


def _to_eight_bits(blocks: list[nn.Module], quantization: Quantization, device: torch.device) -> None:
    try:
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )
    except ImportError:
        raise MissingExtraError("torchao", "gpu", f"memory.quantize '{quantization}'") from None
    config = Int8WeightOnlyConfig if quantization == "int8" else Float8WeightOnlyConfig
    for block in blocks:
        quantize_(block, config(set_inductor_config=False), device=device)


def _to_nf4(blocks: list[nn.Module], device: torch.device) -> None:
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("bitsandbytes", "gpu", "memory.quantize 'nf4'") from None
    for block in blocks:
        linears = [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        for name, linear in linears:
            with torch.device("meta"):
                packed = Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=linear.weight.dtype,
                    quant_type="nf4",
                )
            # in eval mode bitsandbytes would repack a CPU's weight for a kernel that has no backward pass
            packed.support_avx512bf16_for_cpu = False
            # moving the parameter is what quantises it
            packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=packed).to(
                device
            )
            if linear.bias is not None:
                packed.bias = nn.Parameter(linear.bias.data.to(device), requires_grad=False)
            block.set_submodule(name, packed.requires_grad_(False).eval())
