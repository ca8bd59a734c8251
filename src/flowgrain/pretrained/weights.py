"""Finding, fingerprinting and reading weights that the user names: folders, hub ids and single files.

Nothing here runs code from a file: pickles are read with ``weights_only``, and no remote code is trusted.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flowgrain.errors import ConfigError, ModelError

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
"""What transformers and diffusers raise for folders that are incomplete, damaged or of another model."""

SIDE_FILES = ("*.json", "*.txt", "*.model")
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
WEIGHT_FILES = (*SAFETENSORS, *PICKLES)
"""What a folder in transformers layout keeps its weights in; the first pattern that matches is taken."""


def model_folder(model: str, revision: str | None = None, safetensors_only: bool = False) -> Path:
    """The folder of a model: ``model`` itself, or the local copy of a hub id, downloaded unless HF_HUB_OFFLINE is set.

    With ``safetensors_only`` no pickle is downloaded. Raises :class:`ModelError` for what is neither a folder nor a hub
    model that can be reached, or lacks the safetensors asked for, :class:`ConfigError` for a folder with a revision.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision: {model} is a folder; a revision belongs to a hub id, remove it")
    elif folder.exists():
        raise ModelError(f"{model}: a file; give the folder of the model (config.json, weights, tokenizer) or a hub id")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None:
        raise ModelError(f"{model}: no such folder; give a folder in transformers layout or a hub id (owner/name)")
    else:
        folder = _snapshot(model, revision, safetensors_only)
    if safetensors_only and not _holds(folder, SAFETENSORS):
        what = "only pickled weights, which are never opened" if _holds(folder, PICKLES) else "no weights"
        raise ModelError(f"{model}: {what}; model.safetensors is needed, as save_pretrained writes it")
    return folder


def model_label(model: str) -> str:
    """What a model is called in tables: its hub id, or the name of its folder."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def model_files(folder: Path) -> list[Path]:
    """Configurations, tokenizer and safetensors of a folder: all that is read of a model without pickles."""
    return sorted({path for pattern in (*SIDE_FILES, *SAFETENSORS) for path in folder.glob(pattern) if path.is_file()})


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that its weights are read from. Raises :class:`ModelError` where there are none."""
    for pattern in WEIGHT_FILES:
        if found := sorted(folder.glob(pattern)):
            return found
    raise ModelError(f"{folder}: no weights here; expected {' or '.join(WEIGHT_FILES)}")


def fingerprint(files: Sequence[Path]) -> str:
    """First 12 hex digits of a file's SHA-256; of several files, of the SHA-256 of theirs in order.

    Raises :class:`ModelError` where one cannot be read.
    """
    digests = [_sha256(path) for path in files]
    joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return joined[:12]


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of :func:`model_files`.

    Bytes and not times, so that another machine's copy, or one downloaded again, counts as the same model. Raises
    :class:`ModelError` where a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(path.name.encode() + bytes.fromhex(_sha256(path)))
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises :class:`ModelError` where it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give a complete folder in transformers layout") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({one_line(error)}); restore the file") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object; restore the file")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a ``.safetensors`` file or of a pickle (also under the key ``state_dict``), on the CPU.

    Raises :class:`ModelError` for a file that is missing, damaged, or holds anything else than tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes raises almost anything (struct.error, IndexError, ...)
        raise ModelError(
            f"{path}: cannot be read as weights ({type(error).__name__}: {one_line(error)}); download it again, and if "
            "it holds more than tensors, save its state dict alone"
        ) from None
    nested = content.get("state_dict") if isinstance(content, Mapping) else None
    tensors = content if nested is None else nested
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ModelError(f"{path}: holds no state dict (names and tensors); give the file of the weights alone")
    return dict(tensors)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must have exactly the module's names and shapes.

    Raises :class:`ModelError` that names the first difference.
    """
    own = module.state_dict()
    kind = type(module).__name__
    for names, what in ((own.keys() - tensors.keys(), "are missing"), (tensors.keys() - own.keys(), "are unknown")):
        if names:
            raise ModelError(f"{source}: not the weights of {kind}: {len(names)} {what}, for example {min(names)}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise ModelError(
                f"{source}: not the weights of {kind}: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    module.load_state_dict(tensors)


def one_line(error: BaseException) -> str:
    """The message of an error, shortened to one line."""
    return " ".join(str(error).split())[:300]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _snapshot(model: str, revision: str | None, safetensors_only: bool) -> Path:
    """Local copy of a hub model; only models without safetensors have their pickles downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=[*SIDE_FILES, *SAFETENSORS]))
        if not safetensors_only and not _holds(folder, SAFETENSORS):
            snapshot_download(model, revision=revision, allow_patterns=list(PICKLES))
        return folder
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ModelError(
            f"{model}: neither a folder nor a hub model that can be reached ({type(error).__name__}: "
            f"{one_line(error)}); download it and give its folder"
        ) from None
