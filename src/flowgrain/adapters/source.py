"""Reading an adapter that training starts from: where its file is, and what update it is to which layer.

The format is diffusers' own (``COMPONENT.LAYER.lora_A.weight``), written by flowgrain or by another trainer. An update
is only defined with its alpha. diffusers takes alpha = rank where a file does not say; here that is an error.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowgrain.adapters.base import WEIGHTS_NAME
from flowgrain.errors import CheckpointError

FUSED_KEY = "flowgrain_fused"
"""Header entry: the adapters that were fused into the base weights before this one was trained, in order."""

_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
}


@dataclass(frozen=True)
class FusedAdapter:
    """An adapter that is part of the base weights, as the header of the adapter on top records it."""

    path: str
    sha256: str
    alpha: float | None
    """The alpha that its user gave, None where its file says."""


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one layer: s B A with s = alpha / rank, and the row lengths of DoRA."""

    down: Tensor
    up: Tensor
    magnitude: Tensor | None
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]


@dataclass(frozen=True)
class AdapterSource:
    """An adapter file."""

    file: Path
    sha256: str
    component: str
    layers: dict[str, LayerUpdate]
    fused: tuple[FusedAdapter, ...]

    @property
    def kind(self) -> str:
        """``lora`` or ``dora``."""
        return "dora" if any(layer.magnitude is not None for layer in self.layers.values()) else "lora"


def init_digest(path: Path) -> str:
    """SHA-256 of the adapter file that ``path`` means: part of what decides a run that starts from it.

    Raises CheckpointError as :func:`locate_adapter`.
    """
    return _digest(locate_adapter(path))


def locate_adapter(path: Path) -> Path:
    """The adapter file of a run folder (its newest complete checkpoint), checkpoint folder, adapter folder or file.

    Raises CheckpointError where there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such adapter; give a run, checkpoint or adapter folder or a file")
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    if (path / "adapter" / WEIGHTS_NAME).is_file():
        if not (path / "COMPLETE").exists():
            raise CheckpointError(f"{path}: unfinished checkpoint; choose one with a COMPLETE file")
        return path / "adapter" / WEIGHTS_NAME
    complete = [marker.parent for marker in path.glob("checkpoints/update-*/COMPLETE")]
    if complete:
        return max(complete, key=lambda folder: (len(folder.name), folder.name)) / "adapter" / WEIGHTS_NAME
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    what = f"{len(files)} safetensors files, name one of them" if files else "no complete checkpoint and no adapter"
    raise CheckpointError(f"{path}: {what}; give a run, checkpoint or adapter folder or a .safetensors file")


def read_adapter(path: Path, alpha: float | None = None) -> AdapterSource:
    """Read the adapter that ``path`` means; ``alpha`` is for a file that does not say its own.

    Raises CheckpointError for a file that is damaged, of another format, of several components, or without alpha.
    """
    file = locate_adapter(path)
    try:
        with safe_open(file, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}
        described = json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
        fused = tuple(FusedAdapter(**entry) for entry in json.loads(header.get(FUSED_KEY, "[]")))
        digest = _digest(file)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: cannot be read as an adapter ({reason}); restore the file") from None
    component, parts = _split(file, tensors)
    settings = {key.removeprefix(f"{component}."): value for key, value in described.items()}
    layers = {name: _layer(file, name, parts[name], settings, alpha) for name in parts}
    return AdapterSource(file, digest, component, layers, fused)


def fused_header(fused: tuple[FusedAdapter, ...]) -> dict[str, str]:
    """The header entry of an adapter trained on top of ``fused``; empty where there is none."""
    return {FUSED_KEY: json.dumps([asdict(entry) for entry in fused])} if fused else {}


def _split(file: Path, tensors: dict[str, Tensor]) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """Tensors by layer and part; all must be of one component."""
    layers: dict[str, dict[str, Tensor]] = {}
    components = set()
    for name, tensor in tensors.items():
        component, _, rest = name.partition(".")
        suffix = next((part for part in _PARTS if rest.endswith(f".{part}")), None)
        if suffix is None:
            raise CheckpointError(
                f"{file}: '{name}' is no tensor of a LoRA or DoRA in diffusers' format "
                "(COMPONENT.LAYER.lora_A.weight); convert the file first"
            )
        components.add(component)
        layers.setdefault(rest.removesuffix(f".{suffix}"), {})[_PARTS[suffix]] = tensor
    if len(components) != 1:
        found = ", ".join(sorted(components)) or "nothing"
        raise CheckpointError(f"{file}: holds weights of {found}; an adapter of one component is needed")
    return components.pop(), layers


def _layer(
    file: Path, name: str, parts: dict[str, Tensor], settings: dict[str, Any], given: float | None
) -> LayerUpdate:
    down, up, magnitude = parts.get("down"), parts.get("up"), parts.get("magnitude")
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise CheckpointError(f"{file}: lora_A and lora_B of {name} are missing or do not fit; restore the file")
    if magnitude is not None and magnitude.shape != up.shape[:1]:
        raise CheckpointError(f"{file}: lora_magnitude_vector of {name} has another length than lora_B; restore it")
    rank, stated = down.shape[0], _stated_alpha(name, parts, settings)
    if settings.get("use_rslora") and stated is not None and "alpha" not in parts:
        stated *= math.sqrt(rank)  # there s = alpha / sqrt(rank)
    if stated is None and given is None:
        raise CheckpointError(
            f"{file}: does not say its alpha, and diffusers would silently take alpha = rank ({rank}); set "
            "adapter.init_from.alpha to the value it was trained with"
        )
    if stated is not None and given is not None and stated != given:
        raise CheckpointError(
            f"{file}: alpha of {name} is {stated:g} there, adapter.init_from.alpha is {given:g}; remove the key"
        )
    alpha = stated if stated is not None else given
    if alpha is None or not (math.isfinite(alpha) and alpha > 0):
        raise CheckpointError(f"{file}: alpha of {name} is {alpha}, it must be positive; restore the file")
    return LayerUpdate(down.float(), up.float(), None if magnitude is None else magnitude.float(), alpha)


def _stated_alpha(name: str, parts: dict[str, Tensor], settings: dict[str, Any]) -> float | None:
    if "alpha" in parts:
        return float(parts["alpha"])
    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), name), settings.get("lora_alpha"))
    return None if alpha is None else float(alpha)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
