"""Load diffusers pipelines and adapters so that whatever is missing or does not fit is one clear error."""

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from flowgrain.errors import ModelError

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


def load_pipeline(kind: type[DiffusionPipeline], model: str, dtype: torch.dtype, without: tuple[str, ...] = ()) -> Any:
    """A pipeline with every weight read from safetensors files; the libraries themselves only warn of missing ones.

    ``without`` names optional parts that are left out (a safety checker). Pickled weights are never read. Raises
    ModelError for a folder or hub id that cannot be loaded or lacks weights.
    """
    try:
        with quiet_loading():
            return _load_parts(kind, model, dtype, without)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{model}: cannot be loaded as a {_title(kind)} model in diffusers layout ({type(error).__name__}: "
            f"{one_line(error)}); give a complete folder with model_index.json and safetensors weights, or a hub id"
        ) from None


def skeleton_pipeline(
    kind: type[DiffusionPipeline], model: str, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> Any:
    """A pipeline whose models have the shapes and dtype of the configuration files and no values (meta device).

    Tokenizers and scheduler are the real ones. Raises ModelError for a folder or hub id without these files.
    """
    try:
        with quiet_loading():
            parts = {
                name: _skeleton_part(model, name, part_class(library, class_name), dtype)
                for name, (library, class_name) in _parts(kind, model).items()
                if name not in without
            }
            return kind(**parts, **dict.fromkeys(without), **_settings(kind, model, without))
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{model}: its configuration cannot be read as that of a {_title(kind)} model in diffusers layout "
            f"({type(error).__name__}: {one_line(error)}); give a complete folder with model_index.json or a hub id"
        ) from None


def read_configs(kind: type[DiffusionPipeline], model: str) -> dict[str, Mapping[str, Any]]:
    """The configuration of each diffusers model and of the scheduler of a pipeline, without weights.

    Raises ModelError where one cannot be read.
    """
    try:
        with quiet_loading():
            parts = {
                name: part_class(library, class_name)
                for name, (library, class_name) in _parts(kind, model).items()
                if library == "diffusers"
            }
            return {
                name: part.load_config(model, subfolder=name)
                for name, part in parts.items()
                if ConfigMixin in part.__mro__
            }
    except LOAD_ERRORS as error:
        raise ModelError(f"{model}: its configuration files cannot be read ({one_line(error)})") from None


def load_adapter(pipeline: Any, folder: Path) -> None:
    """Load an adapter folder into a pipeline; raises ModelError when it cannot be read or does not fit."""
    try:
        with _without_text_encoder_notice():
            pipeline.load_lora_weights(str(folder))
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a {_title(type(pipeline))} adapter ({one_line(error)}); give another"
        ) from None


def part_class(library: str, name: str) -> Any:
    """The class of a pipeline's part as model_index.json names it."""
    return getattr(importlib.import_module(library), name)


def one_line(error: BaseException) -> str:
    """An error's text on one line, cut short."""
    return " ".join(str(error).split())[:300]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and no warnings of the libraries: missing weights are errors here, and nothing else matters."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _load_parts(kind: type[DiffusionPipeline], model: str, dtype: torch.dtype, without: tuple[str, ...]) -> Any:
    encoders = {}
    for name, (library, class_name) in _parts(kind, model).items():
        found = part_class(library, class_name)
        if name in without or not issubclass(found, PreTrainedModel):
            continue
        loaded: Any = found.from_pretrained(
            model, subfolder=name, dtype=dtype, output_loading_info=True, use_safetensors=True
        )
        encoders[name], info = loaded
        _refuse_missing(model, name, info["missing_keys"])
    pipeline: Any = kind.from_pretrained(
        model,
        dtype=dtype,
        use_safetensors=True,
        **encoders,
        **dict.fromkeys(without),
        **_settings(kind, model, without),
    )
    for name, part in pipeline.components.items():
        if isinstance(part, ModelMixin):
            _refuse_missing(model, name, {key for key, tensor in part.state_dict().items() if tensor.is_meta})
    return pipeline


def _parts(kind: type[DiffusionPipeline], model: str) -> dict[str, tuple[str, str]]:
    """(library, class) of each part that model_index.json names."""
    index: Any = kind.load_config(model)
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and len(entry) == 2 and entry[0] is not None and entry[1] is not None
    }


def _settings(kind: type[DiffusionPipeline], model: str, without: tuple[str, ...]) -> dict[str, Any]:
    """Plain values of model_index.json that the pipeline's constructor takes."""
    index: Any = kind.load_config(model)
    settings = {
        name: value
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }
    if "safety_checker" in without:
        settings["requires_safety_checker"] = False
    return settings


def _skeleton_part(model: str, name: str, found: Any, dtype: torch.dtype) -> Any:
    kind: Any = found  # both libraries build these methods in ways that no type checker follows
    if issubclass(found, ModelMixin):
        config = kind.load_config(model, subfolder=name)
        with torch.device("meta"):
            return kind.from_config(config).to(dtype)
    if issubclass(found, PreTrainedModel):
        config = kind.config_class.from_pretrained(model, subfolder=name)
        with torch.device("meta"):
            return kind(config).to(dtype)
    return kind.from_pretrained(model, subfolder=name)


def _refuse_missing(model: str, part: str, names: set[str]) -> None:
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ModelError(f"{model}/{part}: {len(names)} weights are missing ({first}); restore or download it again")


@contextmanager
def _without_text_encoder_notice() -> Iterator[None]:
    """diffusers warns that an adapter holds nothing for a text encoder, which is so for most adapters of ours."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to")

    logger = logging.getLogger("diffusers.loaders.lora_base")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _title(kind: type[DiffusionPipeline]) -> str:
    return kind.__name__.removesuffix("Pipeline")
