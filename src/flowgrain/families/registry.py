"""From a model's name to a loaded family."""

import difflib
import json
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch

from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.base import Capabilities, Family, Quantization

EMBEDDED_MODELS = ("tiny-flux",)
"""Models that the package carries; a folder of the same name is reached as ``./tiny-flux``."""


def _flux() -> type[Family]:
    from transformers.utils import logging

    # diffusers imports image processors that no family uses; transformers would warn that they lack torchvision
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        from flowgrain.families.flux import Flux
    finally:
        logging.set_verbosity(level)
    return Flux


_FAMILIES: dict[str, Callable[[], type[Family]]] = {"flux": _flux}
_PIPELINES = {"FluxPipeline": "flux"}


def load_family(
    model: str,
    family: str | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
) -> Family:
    """Load ``model``: a name of EMBEDDED_MODELS, a diffusers folder or a hub id, frozen and in eval mode.

    ``family`` None reads it from the pipeline class in model_index.json. Raises ConfigError for an unknown family,
    ModelError for a model that cannot be found, read or matched to a family, and MissingExtraError where the
    library of ``quantization`` is not installed.
    """
    kind, location = _find_family(model, family)
    return kind.load(location, dtype, device, quantization)


def load_skeleton(model: str, family: str | None, dtype: torch.dtype) -> Family:
    """As :func:`load_family`, from configuration files and tokenizers alone, with all weights on the meta device."""
    kind, location = _find_family(model, family)
    return kind.skeleton(location, dtype)


def _find_family(model: str, family: str | None) -> tuple[type[Family], str]:
    if family is not None and family not in _FAMILIES:
        close = difflib.get_close_matches(family, _FAMILIES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known families: {', '.join(_FAMILIES)}"
        raise ConfigError(f"unknown model family '{family}'; {hint}")
    location = resolve_model(model)
    detected = _detect_family(model, location)
    if family is not None and family != detected:
        raise ModelError(f"{model} is a {detected} model, the configuration says '{family}'; correct or remove it")
    return _FAMILIES[detected](), location


def read_capabilities(model: str) -> Capabilities:
    """Capabilities of a model from its configuration files, without its weights; raises as :func:`load_family`."""
    kind, location = _find_family(model, None)
    return kind.read_capabilities(location)


def resolve_model(model: str) -> str:
    """The folder of an embedded model, any other name unchanged."""
    if model not in EMBEDDED_MODELS:
        return model
    return str(Path(str(resources.files("flowgrain"))) / "assets" / model)


def _detect_family(model: str, location: str) -> str:
    local = Path(location).exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None
    index_path = Path(location) / "model_index.json" if local else _hub_index(model)
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{model}: no model_index.json here; give a folder in diffusers layout (save_pretrained), "
            f"a hub id (owner/name) or an embedded model; {_suggestion(model)}"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{index_path}: cannot be read as JSON ({error}); restore the file") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in _PIPELINES:
        raise ModelError(
            f"{index_path}: pipeline class {name!r} is of no supported family; supported: {', '.join(_PIPELINES)}"
        )
    return _PIPELINES[name]


def _hub_index(model: str) -> Path:
    """Download (or find in the local hub cache) a hub model's index."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, "model_index.json"))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{model}: neither a folder nor a hub model that can be reached ({type(error).__name__}: {reason}); "
            f"{_suggestion(model)}"
        ) from None


def _suggestion(model: str) -> str:
    close = difflib.get_close_matches(model, EMBEDDED_MODELS, n=1)
    return f"did you mean '{close[0]}'?" if close else f"embedded models: {', '.join(EMBEDDED_MODELS)}"
