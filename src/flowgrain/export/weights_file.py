"""Adapter files of any program: their tensors and header, read and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowgrain.adapters.adapter_file import FUSED_KEY, HASH_KEY, file_bytes, reading
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_bytes

COLUMNS_KEY = "flowgrain_columns"
"""Header entry: which columns of a joined module's B belong to which of our layers."""
IMPLEMENTATION_KEY = "modelspec.implementation"
_OF_THE_LAYOUT = ("format", LORA_ADAPTER_METADATA_KEY, FUSED_KEY, COLUMNS_KEY, HASH_KEY)
"""Entries that describe a file's layout or bytes, hence are not those of another file."""


@dataclass(frozen=True)
class WeightsFile:
    """What is in a file."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]


def read_weights(path: Path) -> WeightsFile:
    """Read a file; raises CheckpointError where it is damaged or no safetensors file (pickles are never opened)."""
    with reading(path), safe_open(path, framework="pt") as stream:
        return WeightsFile(path, {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {})


def about_the_adapter(header: dict[str, str]) -> dict[str, str]:
    """The entries that say what an adapter is, whatever its layout: modelspec, ss_* and flowgrain's own."""
    return {key: value for key, value in header.items() if key not in _OF_THE_LAYOUT}


def write_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a file; the same inputs give the same bytes. A header of ModelSpec gets the hash of the tensors."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with writing(path):
        atomic_write_bytes(path, file_bytes(whole, {**header, "format": "pt"}))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of writing ``path`` (a full disk, a folder without permission) into one clear CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be written ({reason}); mend it and try again") from None


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in ``dtype``; raises CheckpointError where a value is beyond its range."""
    found = tensor.to(dtype)
    if not bool(torch.isfinite(found).all()):
        largest = float(tensor.abs().max())
        raise CheckpointError(
            f"{name}: its largest value is {largest:g}, which {str(dtype).removeprefix('torch.')} cannot hold; use "
            "--dtype float32 or bfloat16"
        )
    return found
