"""Reading an adapter that training starts from: where its file is, and what update it is to which layer.

The format is diffusers' own (``COMPONENT.LAYER.lora_A.weight``), written by flowgrain or by another trainer. An update
is only defined with its alpha. diffusers takes alpha = rank where a file does not say; here that is an error.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from flowgrain.adapters.adapter_file import FusedAdapter, read_adapter_file, read_fused
from flowgrain.adapters.base import FULL_NAME, WEIGHTS_NAME
from flowgrain.errors import CheckpointError

_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
}
_FLAT_PREFIX = "text_model."


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one layer: s B A with s = alpha / rank, and the row lengths of DoRA.

    ``down`` and ``up`` are matrices, or the kernels of a convolution: (r, in, k, k) and (out, r, 1, 1).
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None
    """A length for each output feature, (out)."""
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it is added to."""
        return (self.up.shape[0], *self.down.shape[1:])

    def merged(self, weight: Tensor) -> Tensor:
        """W + s B A, or its rows scaled to the lengths of DoRA, in float32 on the weight's device and in its shape."""
        down, up = self.down.to(weight.device).flatten(1), self.up.to(weight.device).flatten(1)
        rows = torch.addmm(weight.float().flatten(1), up, down, alpha=self.alpha / self.rank)
        if self.magnitude is not None:
            rows *= (self.magnitude.to(weight.device) / torch.linalg.vector_norm(rows, dim=1))[:, None]
        return rows.view(weight.shape)


@dataclass(frozen=True)
class AdapterSource:
    """An adapter file."""

    file: Path
    sha256: str
    components: dict[str, dict[str, LayerUpdate]]
    """Component -> layer as the file names it -> update."""
    fused: tuple[FusedAdapter, ...]

    @property
    def kind(self) -> str:
        """``lora`` or ``dora``."""
        updates = [update for layers in self.components.values() for update in layers.values()]
        return "dora" if any(update.magnitude is not None for update in updates) else "lora"


def init_digest(path: Path) -> str:
    """SHA-256 of the adapter that ``path`` means: part of what decides a run that starts from it.

    Of a fully fine-tuned one it is over the digests of its files. Raises CheckpointError as :func:`locate_adapter`.
    """
    found = locate_adapter(path)
    if found.is_file():
        return _digest(found)
    files = sorted(file for file in found.rglob("*") if file.is_file())
    text = "\n".join(f"{file.relative_to(found)} {_digest(file)}" for file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def locate_adapter(path: Path) -> Path:
    """The adapter of a run folder (its newest complete checkpoint), checkpoint folder, adapter folder or file.

    It is a file, or the folder of fully fine-tuned components. Raises CheckpointError where there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such adapter; give a run, checkpoint or adapter folder or a file")
    own = _in_folder(path)
    if own is not None:
        return own
    own = _in_folder(path / "adapter")
    if own is not None:
        if not (path / "COMPLETE").exists():
            raise CheckpointError(f"{path}: unfinished checkpoint; choose one with a COMPLETE file")
        return own
    complete = [marker.parent for marker in path.glob("checkpoints/update-*/COMPLETE")]
    if complete:
        newest = max(complete, key=lambda folder: (len(folder.name), folder.name)) / "adapter"
        return _in_folder(newest) or newest / WEIGHTS_NAME
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    what = f"{len(files)} safetensors files, name one of them" if files else "no complete checkpoint and no adapter"
    raise CheckpointError(f"{path}: {what}; give a run, checkpoint or adapter folder or a .safetensors file")


def recorded_fusions(path: Path) -> tuple[FusedAdapter, ...]:
    """What the adapter that ``path`` means was trained on top of; weights that were trained whole hold it themselves.

    Raises CheckpointError as :func:`read_adapter`.
    """
    found = locate_adapter(path)
    return read_fused(found) if found.is_file() else ()


def read_adapter(path: Path, alpha: float | None = None) -> AdapterSource:
    """Read the low-rank adapter that ``path`` means; ``alpha`` is for a file that does not say its own.

    Raises CheckpointError for a file that is damaged, of another format, or without alpha.
    """
    file = locate_adapter(path)
    if not file.is_file():
        raise CheckpointError(
            f"{file}: holds whole weights (adapter.kind full), a low-rank adapter is needed; merge them into a model "
            "and train on that"
        )
    content = read_adapter_file(file)
    components = {
        component: {
            name: _layer(file, component, name, parts, content.described, alpha) for name, parts in layers.items()
        }
        for component, layers in _split(file, content.tensors).items()
    }
    return AdapterSource(file, _digest(file), components, content.fused)


def read_recorded(entry: FusedAdapter) -> AdapterSource:
    """An adapter that another one was trained on top of; raises CheckpointError where it is gone or was changed."""
    if not Path(entry.path).is_file():
        raise CheckpointError(f"{entry.path}: this adapter was trained on top of it, and it is gone; restore it")
    found = read_adapter(Path(entry.path), entry.alpha)
    if found.sha256 != entry.sha256:
        raise CheckpointError(
            f"{entry.path}: SHA-256 {found.sha256[:12]}..., but the adapter was trained on top of "
            f"{entry.sha256[:12]}...; restore that file"
        )
    return found


def layer_names(updates: dict[str, LayerUpdate], there: set[str]) -> dict[str, str]:
    """A file's layer names -> the component's own; files name CLIP's layers with a level that it may not have.

    Names that the component does not have stay as they are.
    """
    return {
        name: name.removeprefix(_FLAT_PREFIX)
        if name not in there and name.removeprefix(_FLAT_PREFIX) in there
        else name
        for name in updates
    }


def _in_folder(folder: Path) -> Path | None:
    if (folder / WEIGHTS_NAME).is_file():
        return folder / WEIGHTS_NAME
    return folder if (folder / FULL_NAME).is_file() else None


def _split(file: Path, tensors: dict[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Tensors by component, layer and part."""
    components: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        component, _, rest = name.partition(".")
        suffix = next((part for part in _PARTS if rest.endswith(f".{part}")), None)
        if suffix is None:
            raise CheckpointError(
                f"{file}: '{name}' is no tensor of a LoRA or DoRA in diffusers' format "
                "(COMPONENT.LAYER.lora_A.weight); convert the file first"
            )
        layers = components.setdefault(component, {})
        layers.setdefault(rest.removesuffix(f".{suffix}"), {})[_PARTS[suffix]] = tensor
    if not components:
        raise CheckpointError(f"{file}: holds weights of nothing; an adapter is needed")
    return components


def _layer(
    file: Path, component: str, name: str, parts: dict[str, Tensor], described: dict[str, Any], given: float | None
) -> LayerUpdate:
    down, up, magnitude = parts.get("down"), parts.get("up"), parts.get("magnitude")
    if down is None or up is None or not _fit(down, up):
        raise CheckpointError(f"{file}: lora_A and lora_B of {name} are missing or do not fit; restore the file")
    if magnitude is not None and magnitude.numel() != up.shape[0]:
        raise CheckpointError(f"{file}: lora_magnitude_vector of {name} has another length than lora_B; restore it")
    settings = {key.removeprefix(f"{component}."): value for key, value in described.items()}
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
    lengths = None if magnitude is None else magnitude.float().flatten()
    return LayerUpdate(down.float(), up.float(), lengths, alpha)


def _fit(down: Tensor, up: Tensor) -> bool:
    """Whether B A is an update: of a linear layer, or of a convolution whose B is 1x1."""
    if down.ndim != up.ndim or down.ndim not in (2, 4) or up.shape[1] != down.shape[0]:
        return False
    return down.ndim == 2 or up.shape[2:] == (1, 1)


def _stated_alpha(name: str, parts: dict[str, Tensor], settings: dict[str, Any]) -> float | None:
    if "alpha" in parts:
        return float(parts["alpha"])
    patterns = settings.get("alpha_pattern") or {}
    keys = (get_pattern_key(list(patterns), own) for own in (name, name.removeprefix(_FLAT_PREFIX)))
    alpha = next((patterns[key] for key in keys if key in patterns), settings.get("lora_alpha"))
    return None if alpha is None else float(alpha)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
