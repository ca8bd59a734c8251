"""Load diffusers pipelines and adapters so that whatever is missing or does not fit is one clear error."""

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from flowgrain.errors import ModelError
from flowgrain.families.peft_layers import carries_adapter, remove_adapters
from flowgrain.pretrained.transformers_loading import quiet, refuse_missing
from flowgrain.pretrained.weights import LOAD_ERRORS, one_line


def load_pipeline(
    kind: type[DiffusionPipeline],
    model: str,
    dtype: torch.dtype,
    without: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> Any:
    """A pipeline with every weight read from safetensors files; the libraries themselves only warn of missing ones.

    ``without`` names optional parts that are left out (a safety checker), ``optional`` parts that are left out where
    the model does not have them. Pickled weights are never read. Raises ModelError for a folder or hub id that cannot
    be loaded or lacks weights.
    """
    try:
        with quiet_libraries():
            return _load_parts(kind, model, dtype, without + _lacking(kind, model, optional))
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{model}: cannot be loaded as a {_title(kind)} model in diffusers layout ({type(error).__name__}: "
            f"{one_line(error)}); give a complete folder with model_index.json and safetensors weights, or a hub id"
        ) from None


def skeleton_pipeline(
    kind: type[DiffusionPipeline],
    model: str,
    dtype: torch.dtype,
    without: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> Any:
    """A pipeline whose models have the shapes and dtype of the configuration files and no values (meta device).

    Tokenizers and scheduler are the real ones; ``without`` and ``optional`` as in :func:`load_pipeline`. Raises
    ModelError for a folder or hub id without these files.
    """
    try:
        with quiet_libraries():
            without += _lacking(kind, model, optional)
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
        with quiet_libraries():
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
    """Load an adapter folder into a pipeline; raises ModelError when it cannot be read or does not fit.

    Whole components in the folder (``unet/config.json``) take the place of the pipeline's own. Pipelines without a
    loader of their own (PixArt) get peft's layers directly.
    """
    whole = [name for name in pipeline.components if (folder / name / "config.json").is_file()]
    if whole:
        parts = {name: load_component(folder / name, getattr(pipeline, name)) for name in whole}
        pipeline.register_modules(**parts)
        return
    try:
        if issubclass(type(pipeline), LoraBaseMixin):
            with _without_notices():
                pipeline.load_lora_weights(str(folder))
        else:
            _load_layers(pipeline, folder)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a {_title(type(pipeline))} adapter ({one_line(error)}); give another"
        ) from None


def unload_adapter(pipeline: Any) -> None:
    """Take an adapter's layers out of a pipeline's parts again; whole components stay, they are the pipeline's own."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and carries_adapter(part):
            remove_adapters(part)


def load_component(folder: Path, like: Any) -> Any:
    """A model of the class, dtype and device of ``like`` from its own folder, frozen and in eval mode.

    Raises ModelError where it cannot be read, lacks weights or is of another shape.
    """
    kind: Any = type(like)
    try:
        with quiet_libraries():
            if isinstance(like, PreTrainedModel):
                loaded, info = kind.from_pretrained(
                    folder, dtype=like.dtype, output_loading_info=True, use_safetensors=True
                )
                missing = info["missing_keys"]
            else:
                loaded = kind.from_pretrained(folder, dtype=like.dtype, use_safetensors=True)
                missing = {key for key, tensor in loaded.state_dict().items() if tensor.is_meta}
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as a {kind.__name__} ({one_line(error)}); restore it") from None
    refuse_missing(str(folder), missing)
    return loaded.to(like.device).requires_grad_(False).eval()


def skeleton_component(folder: Path, like: Any) -> Any:
    """As :func:`load_component` of a diffusers model, from its configuration alone, on the meta device."""
    kind: Any = type(like)
    try:
        with quiet_libraries(), torch.device("meta"):
            return kind.from_config(kind.load_config(folder)).to(like.dtype).requires_grad_(False).eval()
    except LOAD_ERRORS as error:
        raise ModelError(f"{folder}: no configuration of a {kind.__name__} ({one_line(error)}); restore it") from None


def load_part(kind: Any, model: str, name: str, dtype: torch.dtype) -> Any:
    """A pipeline's model from the subfolder ``name``; raises ModelError for missing weights, else as the libraries."""
    part, info = kind.from_pretrained(
        model, subfolder=name, dtype=dtype, output_loading_info=True, use_safetensors=True
    )
    refuse_missing(f"{model}/{name}", info["missing_keys"])
    return part


def part_class(library: str, name: str) -> Any:
    """The class of a pipeline's part as model_index.json names it."""
    return getattr(importlib.import_module(library), name)


def quiet_libraries() -> AbstractContextManager[None]:
    """No progress bars and no warnings of the libraries: missing weights are errors here, and nothing else matters."""
    return quiet(diffusers_logging, transformers_logging)


def _load_parts(kind: type[DiffusionPipeline], model: str, dtype: torch.dtype, without: tuple[str, ...]) -> Any:
    models = {}
    for name, (library, class_name) in _parts(kind, model).items():
        if name in without:
            continue
        found = part_class(library, class_name)
        if issubclass(found, PreTrainedModel | ModelMixin):
            models[name] = load_part(found, model, name, dtype)
    return kind.from_pretrained(
        model,
        dtype=dtype,
        use_safetensors=True,
        **models,
        **dict.fromkeys(without),
        **_settings(kind, model, without),
    )


def _parts(kind: type[DiffusionPipeline], model: str) -> dict[str, tuple[str, str]]:
    """(library, class) of each part that model_index.json names."""
    index: Any = kind.load_config(model)
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and len(entry) == 2 and entry[0] is not None and entry[1] is not None
    }


def _lacking(kind: type[DiffusionPipeline], model: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of ``names`` that model_index.json does not name, or whose folder is not in a local model."""
    named, folder = _parts(kind, model), Path(model)
    return tuple(name for name in names if name not in named or (folder.is_dir() and not (folder / name).is_dir()))


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


@contextmanager
def _without_notices() -> Iterator[None]:
    """No progress bars, and no warning that an adapter holds nothing for a text encoder: most hold nothing."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to")

    logger, bars = logging.getLogger("diffusers.loaders.lora_base"), transformers_logging.is_progress_bar_enabled()
    logger.addFilter(wanted)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(wanted)
        if bars:
            transformers_logging.enable_progress_bar()


def _load_layers(pipeline: Any, folder: Path) -> None:
    """What diffusers' loaders do: the layers and ranks of the file's header, then its tensors."""
    with safe_open(folder / LORA_WEIGHT_NAME_SAFE, framework="pt") as stream:
        settings = json.loads((stream.metadata() or {})[LORA_ADAPTER_METADATA_KEY])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}
    for name in {key.partition(".")[0] for key in tensors}:
        part, prefix = pipeline.components[name], f"{name}."
        own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        layers = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        inject_adapter_in_model(LoraConfig(**own), part, "default_0")
        unexpected = set_peft_model_state_dict(part, layers, "default_0").unexpected_keys
        if unexpected:
            raise ValueError(f"{name} has no layer for {', '.join(sorted(unexpected)[:3])}")
        part.to(part.device, part.dtype).requires_grad_(False).eval()


def _title(kind: type[DiffusionPipeline]) -> str:
    return kind.__name__.removesuffix("Pipeline")
