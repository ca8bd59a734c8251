"""The optimizer of the trainable parameters.

AdamW (Loshchilov and Hutter 2019) is torch's. ``adamw8bit`` keeps its two moments in 8 bits with a scale a block of
256 (Dettmers et al. 2022, bitsandbytes). Lion (Chen et al. 2023) steps by the sign of one moment. Prodigy
(Mishchenko and Defazio 2024) estimates the step size itself; its ``lr`` is a factor on that estimate, normally 1.
"""

import difflib
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import nn

from flowgrain.config import Config, without_nulls
from flowgrain.errors import ConfigError, MissingExtraError

OptimizerName = Literal["adamw", "adamw8bit", "lion", "prodigy"]

_OWN_DEFAULTS: dict[str, dict[str, Any]] = {"lion": {"betas": (0.9, 0.99)}, "prodigy": {"lr": 1.0}}
"""Defaults that differ from AdamW's: those of the papers."""

_NOT_READ: dict[OptimizerName, tuple[str, ...]] = {
    "adamw": (),
    "adamw8bit": ("fused",),
    "lion": ("eps", "fused"),
    "prodigy": ("fused", "lrs"),  # it estimates one step size for all parameters
}

_EIGHT_BIT_BLOCK = 256
_EIGHT_BIT_SMALLEST = 4096
"""bitsandbytes keeps float32 moments for parameters with fewer values."""


class OptimizerConfig(Config):
    """The optimizer of the adapter's parameters."""

    name: OptimizerName = "adamw"
    lr: float = Field(default=1e-4, gt=0, description="peak learning rate; prodigy: factor on its own, default 1")
    lrs: Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(without_nulls)] = Field(
        default_factory=dict,
        description="peak learning rate of the parameters whose names a pattern with * matches, in place of lr "
        "(text_encoder*); null takes an entry of an extended recipe away; not read by prodigy",
    )
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
            if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                readers = ", ".join(name for name, keys in _NOT_READ.items() if key not in keys)
                raise ValueError(
                    f"optimizer.{key} is not read by {self.name}: remove it or use one that reads it ({readers})"
                )
        return self


def build_optimizer(
    config: OptimizerConfig, parameters: list[tuple[str, nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of ``parameters``, which are on ``device``.

    A run that is saved and resumed through its ``state_dict`` continues bit for bit. Each group keeps its peak rate
    as ``initial_lr``, torch's name for it. Raises MissingExtraError where the optimizer's package is not installed and
    ConfigError for ``fused`` on a device without such a kernel, or for ``lrs`` that match nothing or contradict.
    """
    tensors = _groups(config, parameters)
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


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its peak rate times ``factor``, the schedule's."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _groups(config: OptimizerConfig, parameters: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Parameter groups by rate, in the order in which the parameters come; raises ConfigError as build_optimizer."""
    rates = _rates(config, [name for name, _ in parameters])
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault(rates.get(name, config.lr), []).append(parameter)
    return [{"params": members, "lr": rate, "initial_lr": rate} for rate, members in groups.items()]


def _rates(config: OptimizerConfig, names: list[str]) -> dict[str, float]:
    """Rates of the parameters that have one of their own."""
    rates: dict[str, float] = {}
    origins: dict[str, str] = {}
    for pattern, rate in config.lrs.items():
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ConfigError(
                f"optimizer.lrs: '{pattern}' matches no trained parameter; {_examples(pattern, names)}; "
                f"{removal(pattern)}"
            )
        for name in matches:
            if rates.setdefault(name, rate) != rate:
                raise ConfigError(
                    f"optimizer.lrs: {name} gets {rates[name]:g} from '{origins[name]}' and {rate:g} from '{pattern}'; "
                    "let one pattern match it"
                )
            origins.setdefault(name, pattern)
    return rates


def removal(pattern: str) -> str:
    """How to take an entry of ``lrs`` away."""
    return f"remove it (on the command line: 'optimizer.lrs={{{pattern}: null}}')"


def _examples(pattern: str, names: list[str]) -> str:
    """What else the pattern may mean, and one parameter of each component."""
    first = {name.partition(".")[0]: name for name in reversed(names)}
    close = difflib.get_close_matches(pattern.strip("*.").partition(".")[0], first, n=1)
    hint = f"did you mean '{close[0]}.*'? " if close else ""
    return f"{hint}there are for example {', '.join(sorted(first.values()))}"


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
