"""Time of a training step: our DoRA and peft's DoRA, each against LoRA.

Forward, backward, clip and optimizer step on the embedded model with identical batches, in interleaved pairs; each
ratio's median and a bootstrap interval are printed. ``dora_over_lora`` is ours, ``peft_dora_over_lora`` the same
adapter with peft's own forward pass, which materialises W + s B A. ``difference`` is the largest relative difference
between the two DoRAs' gradients, by parameter, in the benchmark's precision.

The default update is the paper's: 8 roots with a slice of each of three levels, in micro-batches of 8. Ours measures
the row lengths once an update, so fewer micro-batches raise its ratio.

    python benchmarks/dora.py [--quick] [--precision bf16|fp32] [--micro-batches 3] [--batch 8]
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from interleaved import ratio
from peft.tuners.lora.variants import DoraLinearVariant

from flowgrain.adapters.base import Adapter, AdapterConfig
from flowgrain.adapters.lora import ADAPTER_NAME
from flowgrain.adapters.low_rank import inject
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.families.registry import load_family

CAPTIONS = ["a red fox", "an apple", "a green tractor", "a cake with candles"]


@dataclass(frozen=True)
class Contender:
    """A family with its adapter and optimizer."""

    family: Family
    adapter: Adapter
    optimizer: torch.optim.Optimizer


def contender(base: Family, kind: Literal["lora", "dora"], rank: int, peft_forward: bool) -> Contender:
    """A copy of the model with a warm adapter: B is no longer zero."""
    family = copy.deepcopy(base)
    adapter = inject(family, AdapterConfig(kind=kind, rank=rank), seed=0)
    if peft_forward:
        for module in family.components()["transformer"].modules():
            variants = getattr(module, "lora_variant", {})
            if ADAPTER_NAME in variants:
                variants[ADAPTER_NAME] = DoraLinearVariant()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    parameters = [parameter for _, parameter in adapter.parameters()]
    return Contender(family, adapter, torch.optim.AdamW(parameters, lr=0.0))


def backward(run: Contender, batches: list[tuple], precision: str) -> None:
    """Gradients of one update."""
    for x, t, inputs, target in batches:
        with torch.autocast(x.device.type, torch.bfloat16, precision == "bf16"):
            output = run.family.predict(x, t, run.family.condition(inputs)).prediction
            loss = (output.float() - target).square().mean() / len(batches)
        loss.backward()


def step(run: Contender, batches: list[tuple], precision: str) -> None:
    """One update."""
    backward(run, batches, precision)
    torch.nn.utils.clip_grad_norm_([parameter for _, parameter in run.adapter.parameters()], 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_batches(family: Family, micro_batches: int, size: int, device: torch.device) -> list[tuple]:
    """Random latents of 128-pixel pictures with captions."""
    generator = torch.Generator().manual_seed(0)
    text = family.embed_text([CAPTIONS[index % len(CAPTIONS)] for index in range(size)])
    batches = []
    for _ in range(micro_batches):
        x, target = (torch.randn(size, 16, 16, 16, generator=generator).to(device) for _ in range(2))
        t = torch.rand(size, 1, generator=generator).to(device)
        batches.append((x, t, ConditionInputs(None, text, 1.0), target))
    return batches


def gradient_difference(ours: Contender, theirs: Contender, batches: list[tuple], precision: str) -> float:
    """Largest relative difference of the gradients, over parameters."""
    differences = []
    for run in (ours, theirs):
        backward(run, batches, precision)
    for (_, one), (_, other) in zip(ours.adapter.parameters(), theirs.adapter.parameters(), strict=True):
        if one.grad is None or other.grad is None:
            raise RuntimeError("a parameter has no gradient")
        differences.append(float((one.grad - other.grad).norm() / other.grad.norm()))
    for run in (ours, theirs):
        run.optimizer.zero_grad(set_to_none=True)
    return max(differences)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Time of a training step: our DoRA and peft's against LoRA.")
    parser.add_argument("--quick", action="store_true", help="a few pairs only")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="slices per micro-batch")
    parser.add_argument("--micro-batches", type=int, default=3, help="per update")
    options = parser.parse_args()
    pairs = 8 if options.quick else 40
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_family("tiny-flux", None, torch.float32, device)
    lora = contender(base, "lora", options.rank, False)
    ours, theirs = (contender(base, "dora", options.rank, peft_forward) for peft_forward in (False, True))
    batches = make_batches(base, options.micro_batches, options.batch, device)
    precision = options.precision
    difference = gradient_difference(ours, theirs, batches, precision)

    def work(run: Contender) -> Callable[[], None]:
        return lambda: step(run, batches, precision)

    rows = {
        "dora_over_lora": ratio(work(ours), work(lora), pairs, warm_up=2),
        "peft_dora_over_lora": ratio(work(theirs), work(lora), pairs, warm_up=2),
    }
    for name, (median, low, high) in rows.items():
        print(f"{name:24s} {median:.3f}  [{low:.3f}, {high:.3f}]  {pairs} pairs")
    print(f"{'difference':24s} {difference:.1e}")
    result = {name: round(value[0], 4) for name, value in rows.items()}
    settings = {"precision": precision, "rank": options.rank, "batch": options.batch, "device": device.type}
    settings["micro_batches"] = options.micro_batches
    print(json.dumps({"benchmark": "dora", **settings, **result, "difference": difference}))


if __name__ == "__main__":
    main()
