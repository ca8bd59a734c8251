"""From a model's name to a loaded family."""

import difflib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.autoencoder_folder import autoencoder_folder
from flowgrain.families.base import Capabilities, Family, Quantization
from flowgrain.families.embedded import EMBEDDED_MODELS, resolve_model

_FAMILIES = {
    "flux": ("flux", "Flux"),
    "sdxl": ("sdxl", "StableDiffusionXL"),
    "stable-diffusion": ("stable_diffusion", "StableDiffusion"),
    "sd3": ("sd3", "StableDiffusion3"),
    "auraflow": ("auraflow", "AuraFlow"),
    "pixart-alpha": ("pixart", "PixArtAlpha"),
    "pixart-sigma": ("pixart", "PixArtSigma"),
    "flux2": ("flux2", "Flux2"),
    "flux2-klein": ("flux2", "Flux2Klein"),
    "qwen-image": ("qwen_image", "QwenImage"),
    "z-image": ("z_image", "ZImage"),
}
"""Family -> (module of this package, class)."""

_PIPELINES = {
    "FluxPipeline": "flux",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusion3Pipeline": "sd3",
    "AuraFlowPipeline": "auraflow",
    "PixArtAlphaPipeline": "pixart-alpha",
    "PixArtSigmaPipeline": "pixart-sigma",
    "Flux2Pipeline": "flux2",
    "Flux2KleinPipeline": "flux2-klein",
    "QwenImagePipeline": "qwen-image",
    "ZImagePipeline": "z-image",
}
"""Pipeline class of model_index.json -> family."""


def _open(family: str) -> type[Family]:
    """The family's class."""
    module, name = _FAMILIES[family]
    return getattr(_import(module), name)


def _import(module: str) -> ModuleType:
    from transformers.utils import logging

    # diffusers imports image processors that no family uses; transformers would warn that they lack torchvision
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return import_module(f"flowgrain.families.{module}")
    finally:
        logging.set_verbosity(level)


def load_family(
    model: str,
    family: str | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
    config: str | None = None,
    vae: str | None = None,
) -> Family:
    """Load ``model``: a name of EMBEDDED_MODELS, a diffusers folder, hub id or single file, frozen and in eval mode.

    ``family`` None reads it from the pipeline class in model_index.json, or from a single file's header. ``config``
    names the diffusers folder or hub id that describes a single file, None is the package's own. ``vae`` names an
    autoencoder that takes the place of the model's own. Raises ConfigError for an unknown family and for a ``config``
    that nothing reads, ModelError for a model that cannot be found, read or matched to a family, and MissingExtraError
    where the library of ``quantization`` is not installed.
    """
    file = _single_file(model, family, config)
    if file is not None:
        kind = _open(file.family)
        loaded = _import("single_file").load_single_file(kind, file, model, dtype, device, quantization)
    else:
        kind, location = _find_family(model, family)
        loaded = kind.load(location, dtype, device, quantization)
    return _over(loaded, vae)


def load_skeleton(
    model: str, family: str | None, dtype: torch.dtype, config: str | None = None, vae: str | None = None
) -> Family:
    """As :func:`load_family`, from configuration files and tokenizers alone, with all weights on the meta device."""
    file = _single_file(model, family, config)
    if file is not None:
        with file.configuration() as folder:
            return _over(_open(file.family).skeleton(folder, dtype), vae)
    kind, location = _find_family(model, family)
    return _over(kind.skeleton(location, dtype), vae)


def _over(family: Family, vae: str | None) -> Family:
    return family if vae is None else family.with_autoencoder(autoencoder_folder(vae, "model.vae"))


def _single_file(model: str, family: str | None, config: str | None) -> Any:
    """The SingleFile where ``model`` names a file, None where it does not."""
    _check_known(family)
    single_file = _import("single_file")
    if not single_file.is_single_file(model):
        if config is not None:
            raise ConfigError(f"model.config describes single-file checkpoints, {model} is none; remove it")
        return None
    file = single_file.open_single_file(model, config)
    _check_agreement(model, family, file.family)
    return file


def _find_family(model: str, family: str | None) -> tuple[type[Family], str]:
    location = resolve_model(model)
    detected = _detect_family(model, location)
    _check_agreement(model, family, detected)
    return _open(detected), location


def _check_known(family: str | None) -> None:
    if family is not None and family not in _FAMILIES:
        close = difflib.get_close_matches(family, _FAMILIES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known families: {', '.join(_FAMILIES)}"
        raise ConfigError(f"unknown model family '{family}'; {hint}")


def _check_agreement(model: str, family: str | None, detected: str) -> None:
    if family is not None and family != detected:
        raise ModelError(f"{model} is a {detected} model, the configuration says '{family}'; correct or remove it")


def read_capabilities(model: str, config: str | None = None, vae: str | None = None) -> Capabilities:
    """Capabilities of a model from its configuration files, without its weights; raises as :func:`load_family`."""
    if vae is not None:
        return load_skeleton(model, None, torch.float32, config, vae).capabilities
    file = _single_file(model, None, config)
    if file is not None:
        with file.configuration() as folder:
            return _open(file.family).read_capabilities(folder)
    kind, location = _find_family(model, None)
    return kind.read_capabilities(location)


@contextmanager
def configuration_folder(model: str, config: str | None = None) -> Iterator[Path | None]:
    """The folder of a model's configuration files and tokenizers, None where a hub model's are not here.

    A single file's may be temporary. Raises as :func:`load_family`.
    """
    file = _single_file(model, None, config)
    if file is not None:
        with file.configuration() as folder:
            yield Path(folder)
        return
    location = Path(resolve_model(model))
    yield location if location.is_dir() else None


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
