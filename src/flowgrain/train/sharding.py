"""Frozen weights in shards over the processes of a run: FSDP2.

Only what is frozen is sharded, block by block. The adapter's parameters stay whole, ordinary tensors in every process,
so that the gradient's sum, the optimizer, the moving average, checkpoints and resuming are those of unsharded runs.
A forward or backward pass gathers one block's weights at a time, bit for bit what they were before, and lets them go.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flowgrain.adapters.base import AdapterConfig
from flowgrain.errors import ConfigError
from flowgrain.families.base import Family
from flowgrain.train.memory import MemoryConfig


def check_shardable(memory: MemoryConfig, adapter: AdapterConfig) -> None:
    """Raise ConfigError for settings that do not go together with shards."""
    if adapter.kind == "full":
        raise ConfigError(
            "adapter.kind: full trains all weights, and FSDP shards those that are frozen: none; use lora or dora, or "
            "launch without FSDP (every process then holds the whole model, its gradients and optimizer state)"
        )
    if memory.quantize != "none":
        raise ConfigError(
            f"memory.quantize: weights in {memory.quantize} cannot be sharded; set it to none, or launch without FSDP"
        )
    if memory.compile:
        raise ConfigError("memory.compile: not supported with FSDP; set it to false, or launch without FSDP")


def shard_frozen(family: Family, trainable: list[nn.Parameter], device: torch.device, world: int) -> None:
    """Shard the family's backbone in place over all processes and move everything to ``device``.

    The family is loaded on the CPU; one block at a time is whole on the device. All processes must then make the same
    number of passes through the backbone.
    """
    mesh = init_device_mesh(device.type, (world,))
    whole = set(trainable)
    for parameter in trainable:
        parameter.data = parameter.data.to(device)
    for block in family.blocks():
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(family.backbone, mesh=mesh, ignored_params=whole)  # embedders and final layers, gathered all the time
    for encoder in family.encoders().values():
        encoder.to(device)
