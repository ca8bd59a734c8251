"""What a saved adapter says about itself: ModelSpec 1.0.0 and the training metadata that kohya's tools read.

ModelSpec (github.com/Stability-AI/ModelSpec) names what a file is; interfaces show its title, trigger phrase and
resolution. The ``ss_*`` keys are those of kohya's sd-scripts. All values are strings, as safetensors headers demand.
Nothing here reads a clock: the same inputs give the same bytes. ``modelspec.hash_sha256`` depends on the tensors and is
added where they are saved (:meth:`flowgrain.adapters.base.Adapter.save`).
"""

import json
from dataclasses import dataclass
from typing import Any

from flowgrain import __version__
from flowgrain.adapters.base import AdapterConfig
from flowgrain.families.base import Family
from flowgrain.flow.variance_preserving import VariancePreserving

_ARCHITECTURES = {"sdxl": "stable-diffusion-xl-v1-base", "sd3": "stable-diffusion-3"}
_KOHYA_BASE_MODELS = {
    "flux-1-dev": "flux1",
    "flux-1-schnell": "flux1",
    "stable-diffusion-v1": "sd_v1",
    "stable-diffusion-v2-512": "sd_v2",
    "stable-diffusion-v2-768-v": "sd_v2_v",
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "stable-diffusion-3": "sd3",
}
_PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}
"""diffusers' name -> ModelSpec's, which has no others."""
_SECOND_GENERATION_WIDTH = 1024
"""Width of the text that Stable Diffusion 2 reads; 1 reads 768."""


@dataclass(frozen=True)
class ModelDescription:
    """Inputs of :func:`model_spec`; what is None is left out."""

    title: str
    architecture: str
    """ModelSpec's id of the base model, see :func:`base_architecture`."""
    base_model: str
    """The base model as the recipe names it."""
    adapter: AdapterConfig
    date: str
    """ISO 8601, from the caller."""
    steps: int
    """Updates taken."""
    images: int
    """Different root images trained on."""
    learning_rate: float
    batch_size: int
    """Roots per update."""
    seed: int
    learning_rates: dict[str, float] | None = None
    """Rates of single parameters, by pattern."""
    prediction_type: str | None = None
    """What a model of discrete noise levels predicts, in diffusers' words."""
    zero_terminal_snr: bool | None = None
    """Whether the last of these noise levels is noise alone."""
    resolution: tuple[int, int] | None = None
    """Width and height in pixels that the model is meant for."""
    trigger_phrase: str | None = None
    description: str | None = None
    author: str | None = None
    license: str | None = None
    tag_frequency: dict[str, dict[str, int]] | None = None
    """How often each caption tag occurs, by data folder."""


def model_spec(described: ModelDescription) -> dict[str, str]:
    """Header entries of a saved adapter, for ``metadata`` of :meth:`flowgrain.adapters.base.Adapter.save`."""
    resolution = None if described.resolution is None else "x".join(str(side) for side in described.resolution)
    whole = described.adapter.kind == "full"
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": described.architecture if whole else f"{described.architecture}/lora",
        "implementation": "diffusers",
        "title": described.title,
        "date": described.date,
        "resolution": resolution,
        "prediction_type": _PREDICTION_TYPES.get(described.prediction_type or ""),
        "trigger_phrase": described.trigger_phrase,
        "usage_hint": None if described.trigger_phrase is None else f"Trigger word: {described.trigger_phrase}",
        "description": described.description,
        "author": described.author,
        "license": described.license,
    }
    entries = {f"modelspec.{key}": value for key, value in spec.items() if value is not None}
    return {**entries, **_training_metadata(described)}


def base_architecture(family: Family) -> str:
    """ModelSpec's id of a family's base model; a family without a registered one goes by its own name."""
    if family.name == "flux":
        return "flux-1-dev" if family.capabilities.guidance == "embedded" else "flux-1-schnell"
    if family.name == "stable-diffusion":
        backbone: Any = family.backbone
        if backbone.config.cross_attention_dim != _SECOND_GENERATION_WIDTH:
            return "stable-diffusion-v1"
        path = family.default_path()
        velocity = isinstance(path, VariancePreserving) and path.prediction == "v_prediction"
        return "stable-diffusion-v2-768-v" if velocity else "stable-diffusion-v2-512"
    return _ARCHITECTURES.get(family.name, family.name)


def _training_metadata(described: ModelDescription) -> dict[str, str]:
    adapter = described.adapter
    values = {
        "ss_base_model_version": _KOHYA_BASE_MODELS.get(described.architecture, described.architecture),
        "ss_sd_model_name": described.base_model,
        "ss_output_name": described.title,
        "ss_learning_rate": str(described.learning_rate),
        "ss_steps": str(described.steps),
        "ss_num_train_images": str(described.images),
        "ss_total_batch_size": str(described.batch_size),
        "ss_seed": str(described.seed),
        "ss_training_comment": f"flowgrain {__version__}",
    }
    if adapter.kind != "full":
        values |= _network(adapter)
    if described.learning_rates:
        values["ss_learning_rates"] = json.dumps(described.learning_rates, sort_keys=True)
    if described.zero_terminal_snr is not None:
        values["ss_zero_terminal_snr"] = str(described.zero_terminal_snr)
    if described.resolution is not None:
        values["ss_resolution"] = str(described.resolution)
    if described.tag_frequency is not None:
        values["ss_tag_frequency"] = json.dumps(described.tag_frequency, ensure_ascii=False, sort_keys=True)
    return values


def _network(adapter: AdapterConfig) -> dict[str, str]:
    """The low-rank network; a convolution's rank and alpha as LyCORIS names them."""
    arguments: dict[str, Any] = {"use_dora": adapter.kind == "dora"}
    if adapter.conv_rank is not None:
        arguments |= {"conv_dim": adapter.conv_rank, "conv_alpha": adapter.resolved_conv_alpha}
    return {
        "ss_network_module": "flowgrain.adapters.low_rank",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha),
        "ss_network_dropout": str(adapter.dropout),
        "ss_network_args": json.dumps(arguments),
    }
