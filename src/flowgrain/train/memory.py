"""The switches that lower memory; ``docs/memory.md`` says what each saves and costs."""

import torch
from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.families.autoencoder import VaeTiling
from flowgrain.families.base import Quantization


class MemoryConfig(Config):
    """What is given up for memory: time (checkpointing, offloading, compilation at the start) or bits (quantize)."""

    gradient_checkpointing: bool = Field(
        default=False, description="compute each block again in the backward pass: same gradients, about a third slower"
    )
    compile: bool = Field(default=False, description="torch.compile of the repeated blocks: faster after a slow start")
    offload_encoders: bool | None = Field(
        default=None, description="text encoders and autoencoder on the CPU while training; null: where both are cached"
    )
    quantize: Quantization = Field(
        default="none", description="bits of the frozen backbone's linear layers: none, int8, fp8 or nf4"
    )

    vae_tiling: VaeTiling = Field(
        default="auto",
        description="how the autoencoder passes large pictures: auto (exact tiles above 6 GiB a pass), exact, blended "
        "(diffusers' own tiles, another picture), off",
    )

    @model_validator(mode="after")
    def _eight_bits_need_checkpointing(self) -> "MemoryConfig":
        if self.quantize in ("int8", "fp8") and not self.gradient_checkpointing:
            raise ValueError(
                f"memory.quantize {self.quantize} saves nothing without memory.gradient_checkpointing, because the "
                "backward pass would keep every weight unpacked: set it to true, or use nf4"
            )
        return self

    def offloads(self, cached: bool, device: torch.device) -> bool:
        """Whether the encoders leave the device once the caches are filled; never where the device is the CPU."""
        return device.type != "cpu" and cached and self.offload_encoders is not False
