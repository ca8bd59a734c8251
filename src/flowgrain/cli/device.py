"""The ``--device`` option."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def open_device(name: str) -> "torch.device":
    """The device of a name: auto, cpu, cuda or cuda:N; raises ConfigError for others and for what is not there."""
    import torch

    from flowgrain.errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise ConfigError(f"--device {name}: no such device; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return device
