"""The optimizer of the trainable parameters.

AdamW (Loshchilov and Hutter 2019) is torch's. ``adamw8bit`` keeps its two moments in 8 bits with a scale a block of
256 (Dettmers et al. 2022, bitsandbytes). Lion (Chen et al. 2023) steps by the sign of one moment. Prodigy
(Mishchenko and Defazio 2024) estimates the step size itself; its ``lr`` is a factor on that estimate, normally 1.
"""

from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from flowgrain.config import Config
from flowgrain.errors import ConfigError, MissingExtraError

OptimizerName = Literal["adamw", "adamw8bit", "lion", "prodigy"]

_OWN_DEFAULTS: dict[str, dict[str, Any]] = {"lion": {"betas": (0.9, 0.99)}, "prodigy": {"lr": 1.0}}
"""Defaults that differ from AdamW's: those of the papers."""

_NOT_READ: dict[OptimizerName, tuple[str, ...]] = {
    "adamw": (),
    "adamw8bit": ("fused",),
    "lion": ("eps", "fused"),
    "prodigy": ("fused",),
}

_EIGHT_BIT_BLOCK = 256
_EIGHT_BIT_SMALLEST = 4096
"""bitsandbytes keeps float32 moments for parameters with fewer values."""


class OptimizerConfig(Config):
    """The optimizer of the adapter's parameters."""

    name: OptimizerName = "adamw"
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate; prodigy: factor on its own, default 1")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay of the moments; lion: (0.9, 0.99)")
    eps: float = Field(default=1e-8, gt=0, description="added to the root of the second moment; not read by lion")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled, times the learning rate")
    fused: bool | None = Field(
        default=None, description="one kernel for all parameters (adamw); null: on CUDA, where runs repeat bit for bit"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_optimizer(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            return values
        return {**_OWN_DEFAULTS.get(values["name"], {}), **values}

    @field_validator("betas")
    @classmethod
    def _unit_interval(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}")
        return betas

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "OptimizerConfig":
        # compared by value: the resolved recipe of a run spells out every key and must stay valid
        for key in _NOT_READ[self.name]:
            if getattr(self, key) != type(self).model_fields[key].default:
                readers = ", ".join(name for name, keys in _NOT_READ.items() if key not in keys)
                raise ValueError(
                    f"optimizer.{key} is not read by {self.name}: remove it or use one that reads it ({readers})"
                )
        return self


def build_optimizer(
    config: OptimizerConfig, parameters: list[tuple[str, nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of ``parameters``, which are on ``device``.

    A run that is saved and resumed through its ``state_dict`` continues bit for bit. Raises MissingExtraError where
    the optimizer's package is not installed and ConfigError for ``fused`` on a device without such a kernel.
    """
    tensors = [parameter for _, parameter in parameters]
    lr, betas, decay = config.lr, config.betas, config.weight_decay
    if config.name == "adamw":
        fused = _fused(config, device)
        return torch.optim.AdamW(tensors, lr=lr, betas=betas, eps=config.eps, weight_decay=decay, fused=fused)
    if config.name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtraError("bitsandbytes", "gpu", "optimizer.name 'adamw8bit'") from None
        return AdamW8bit(tensors, lr=lr, betas=betas, eps=config.eps, weight_decay=decay)
    try:
        from pytorch_optimizer import Lion, Prodigy
    except ImportError:
        raise MissingExtraError("pytorch-optimizer", "optimizers", f"optimizer.name '{config.name}'") from None
    if config.name == "lion":
        return Lion(tensors, lr=lr, betas=betas, weight_decay=decay)
    return Prodigy(tensors, lr=lr, betas=betas, eps=config.eps, weight_decay=decay)


def state_bytes(name: OptimizerName, parameters: list[tuple[str, nn.Parameter]]) -> int:
    """Bytes of the optimizer's state for float32 parameters, from their sizes alone.

    AdamW two moments, Lion one, Prodigy two moments, the start and a running sum; 8 bits: two codes and their
    scales.
    """
    if name == "adamw8bit":
        return sum(_eight_bit_state(parameter.numel()) for _, parameter in parameters)
    copies = {"adamw": 2, "lion": 1, "prodigy": 4}[name]
    return sum(copies * 4 * parameter.numel() for _, parameter in parameters)


def _eight_bit_state(values: int) -> int:
    if values < _EIGHT_BIT_SMALLEST:
        return 8 * values
    return 2 * (values + 4 * -(-values // _EIGHT_BIT_BLOCK))


def _fused(config: OptimizerConfig, device: torch.device) -> bool:
    if config.fused is None:
        return device.type == "cuda"
    if config.fused and device.type not in ("cuda", "cpu"):
        raise ConfigError(f"optimizer.fused: {device.type} has no fused AdamW; use cuda or cpu, or remove the key")
    return config.fused
