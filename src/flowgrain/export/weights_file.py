"""Adapter files of any program: their tensors and header, read and written."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flowgrain.adapters.adapter_file import FUSED_KEY
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_bytes

COLUMNS_KEY = "flowgrain_columns"
"""Header entry: which columns of a joined module's B belong to which of our layers."""
SPEC_KEY, HASH_KEY = "modelspec.sai_model_spec", "modelspec.hash_sha256"
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
    try:
        with safe_open(path, framework="pt") as stream:
            return WeightsFile(path, {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {})
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be read as a safetensors file ({reason}); restore it, or save it as safetensors"
        ) from None


def read_header(path: Path) -> dict[str, str]:
    """A file's header alone; raises as :func:`read_weights`."""
    try:
        with safe_open(path, framework="pt") as stream:
            return stream.metadata() or {}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: cannot be read as a safetensors file ({reason}); restore it") from None


def about_the_adapter(header: dict[str, str]) -> dict[str, str]:
    """The entries that say what an adapter is, whatever its layout: modelspec, ss_* and flowgrain's own."""
    return {key: value for key, value in header.items() if key not in _OF_THE_LAYOUT}


def write_weights(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a file; the same inputs give the same bytes. A header of ModelSpec gets the hash of the tensors."""
    data = serialize({name: tensor.contiguous() for name, tensor in tensors.items()})
    start = 8 + int.from_bytes(data[:8], "little")
    entries = {**header, "format": "pt"}
    if SPEC_KEY in header:
        entries[HASH_KEY] = f"0x{hashlib.sha256(data[start:]).hexdigest()}"
    # the library writes metadata in random order
    text = json.dumps({"__metadata__": dict(sorted(entries.items())), **json.loads(data[8:start])}, ensure_ascii=False)
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing(path):
        atomic_write_bytes(path, len(encoded).to_bytes(8, "little") + encoded + data[start:])


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
