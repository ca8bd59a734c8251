"""Load FLUX pipelines and adapters so that whatever is missing or does not fit is one clear error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from transformers.utils import logging as transformers_logging

from flowgrain.errors import ModelError

_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)


def load_pipeline(model: str, dtype: torch.dtype) -> FluxPipeline:
    """A pipeline with every weight read from its files; the libraries themselves only warn of missing ones.

    Raises ModelError for a folder or hub id that cannot be loaded or lacks weights.
    """
    try:
        with _quiet_loading():
            return _load_parts(model, dtype)
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{model}: cannot be loaded as a FLUX model in diffusers layout ({type(error).__name__}: {_line(error)}); "
            "give a complete folder with model_index.json or a hub id"
        ) from None


def skeleton_pipeline(model: str, dtype: torch.dtype) -> FluxPipeline:
    """A pipeline whose models have the shapes and dtype of the configuration files and no values (meta device).

    Tokenizers and scheduler are the real ones. Raises ModelError for a folder or hub id without these files.
    """
    try:
        with _quiet_loading():
            return _skeleton_parts(model, dtype)
    except _LOAD_ERRORS as error:
        raise ModelError(
            f"{model}: its configuration cannot be read as that of a FLUX model in diffusers layout "
            f"({type(error).__name__}: {_line(error)}); give a complete folder with model_index.json or a hub id"
        ) from None


def load_adapter(pipeline: FluxPipeline, folder: Path) -> None:
    """Load an adapter folder into a pipeline; raises ModelError when it cannot be read or does not fit."""
    try:
        with _without_text_encoder_notice():
            pipeline.load_lora_weights(str(folder))
    except _LOAD_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as a FLUX adapter ({_line(error)}); give another") from None


def check_parts(pipeline: FluxPipeline, source: str) -> None:
    """Raise ModelError for a pipeline that lacks a part or whose parts do not fit."""
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    missing = [part for part in parts if pipeline.components[part] is None]
    if missing:
        raise ModelError(f"{source}: the FLUX model has no {', '.join(missing)}; give a complete diffusers folder")
    packed, latent = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
    if packed != 4 * latent:
        raise ModelError(
            f"{source}: the transformer takes {packed} channels, the autoencoder gives {latent} times 4 packed; only "
            "text-to-image FLUX models are supported (no Fill, Control or Depth variants)"
        )
    scheduler = pipeline.scheduler.config
    if scheduler.use_dynamic_shifting and scheduler.time_shift_type != "exponential":
        raise ModelError(
            f"{source}: scheduler time_shift_type '{scheduler.time_shift_type}' is not supported, only 'exponential'"
        )


def _load_parts(model: str, dtype: torch.dtype) -> FluxPipeline:
    encoders = {}
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", T5EncoderModel)):
        loaded: Any = kind.from_pretrained(model, subfolder=part, dtype=dtype, output_loading_info=True)
        encoders[part], info = loaded
        _refuse_missing(model, part, info["missing_keys"])
    pipeline = FluxPipeline.from_pretrained(model, dtype=dtype, **encoders)
    for part in ("transformer", "vae"):
        state = pipeline.components[part].state_dict()
        _refuse_missing(model, part, {name for name, tensor in state.items() if tensor.is_meta})
    return pipeline


def _skeleton_parts(model: str, dtype: torch.dtype) -> FluxPipeline:
    transformer: Any = FluxTransformer2DModel.load_config(model, subfolder="transformer")
    vae: Any = AutoencoderKL.load_config(model, subfolder="vae")
    clip = CLIPTextConfig.from_pretrained(model, subfolder="text_encoder")
    t5 = T5Config.from_pretrained(model, subfolder="text_encoder_2")
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler")
    with torch.device("meta"):
        parts: dict[str, Any] = {
            "transformer": FluxTransformer2DModel.from_config(transformer),
            "vae": AutoencoderKL.from_config(vae),
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5),
        }
    return FluxPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=AutoTokenizer.from_pretrained(model, subfolder="tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(model, subfolder="tokenizer_2"),
        scheduler=scheduler,
    )


def _refuse_missing(model: str, part: str, names: set[str]) -> None:
    if names:
        first = ", ".join(sorted(names)[:3])
        raise ModelError(f"{model}/{part}: {len(names)} weights are missing ({first}); restore or download it again")


@contextmanager
def _quiet_loading() -> Iterator[None]:
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


@contextmanager
def _without_text_encoder_notice() -> Iterator[None]:
    """diffusers warns that an adapter holds nothing for CLIP, which is so for every adapter of ours."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated to CLIPTextModel")

    logger = logging.getLogger("diffusers.loaders.lora_base")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
