"""The low-rank adapter's file: diffusers' tensors, and a header that says what they mean.

Names are ``COMPONENT.LAYER.lora_A.weight``; one file holds the layers of all components. The header's
``lora_adapter_metadata`` is peft's configuration of each component, without which diffusers takes alpha = rank.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from flowgrain.adapters.base import WEIGHTS_NAME
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_bytes

SPEC_KEY, HASH_KEY = "modelspec.sai_model_spec", "modelspec.hash_sha256"
FUSED_KEY = "flowgrain_fused"
"""Header entry: the adapters that were fused into the base weights before this one was trained, in order."""


@dataclass(frozen=True)
class FusedAdapter:
    """An adapter that is part of the base weights, as the header of the adapter on top records it."""

    path: str
    sha256: str
    alpha: float | None
    """The alpha that its user gave, None where its file says."""


@dataclass(frozen=True)
class AdapterFile:
    """What is in a file."""

    tensors: dict[str, Tensor]
    described: dict[str, Any]
    """peft's settings, ``COMPONENT.KEY``; empty where the file has none."""
    fused: tuple[FusedAdapter, ...]


def described(component: str, config: LoraConfig) -> dict[str, Any]:
    """A component's part of the header."""
    return {f"{component}.{key}": _plain(value) for key, value in config.to_dict().items()}


def write_adapter_file(
    folder: Path,
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    fused: tuple[FusedAdapter, ...],
    metadata: dict[str, str],
) -> None:
    """Write ``pytorch_lora_weights.safetensors``; the same inputs give the same bytes.

    Where ``metadata`` follows ModelSpec (:mod:`flowgrain.adapters.model_spec`) the hash of the tensors joins it.
    """
    header = {
        **metadata,
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True),
        **({FUSED_KEY: json.dumps([vars(entry) for entry in fused])} if fused else {}),
    }
    atomic_write_bytes(folder / WEIGHTS_NAME, file_bytes(tensors, header))


def read_adapter_file(path: Path) -> AdapterFile:
    """Read a file; raises CheckpointError where it is damaged or of another format."""
    with reading(path), safe_open(path, framework="pt") as stream:
        header = stream.metadata() or {}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        return AdapterFile(tensors, json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}")), _fused(header))


def read_header(path: Path) -> dict[str, str]:
    """A file's header alone; raises as :func:`read_adapter_file`."""
    with reading(path), safe_open(path, framework="pt") as stream:
        return stream.metadata() or {}


def read_fused(path: Path) -> tuple[FusedAdapter, ...]:
    """What the adapter in a file was trained on top of, from its header alone; raises as :func:`read_adapter_file`."""
    with reading(path):
        return _fused(read_header(path))


def _fused(header: dict[str, str]) -> tuple[FusedAdapter, ...]:
    return tuple(FusedAdapter(**entry) for entry in json.loads(header.get(FUSED_KEY, "[]")))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of reading ``path`` into one clear CheckpointError; pickles are never opened."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: cannot be read as an adapter in a safetensors file ({reason}); restore it, or save it "
            "as safetensors"
        ) from None


def file_bytes(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose header is sorted: the library writes metadata in random order.

    Metadata that follows ModelSpec gets its ``hash_sha256``, of all that comes after the header.
    """
    data = serialize(state)
    start = 8 + int.from_bytes(data[:8], "little")
    if SPEC_KEY in metadata:
        metadata = {**metadata, HASH_KEY: f"0x{hashlib.sha256(data[start:]).hexdigest()}"}
    tensors = json.loads(data[8:start])
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **tensors}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[start:]


def _plain(value: Any) -> Any:
    """peft's configuration values as JSON: sets sorted, enumerations by value (they are strings)."""
    if isinstance(value, set):
        return sorted(value)
    return value
