"""Models that wait on the CPU and come to the device when they are called."""

import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from torch import nn


class EncoderOffload:
    """Parks modules on the CPU. Calling one moves it to ``device`` and the one before it in the list back.

    The hooks are accelerate's, which diffusers' pipelines respect: they find their device in them and trigger them
    for an autoencoder's ``encode`` and ``decode`` too.
    """

    def __init__(self, modules: list[nn.Module], device: torch.device):
        self._hooks: list[UserCpuOffloadHook] = []
        for module in modules:
            _, hook = cpu_offload_with_hook(module, device, self._hooks[-1] if self._hooks else None)
            self._hooks.append(hook)

    def park(self) -> None:
        """Move all modules to the CPU."""
        for hook in self._hooks:
            hook.offload()
