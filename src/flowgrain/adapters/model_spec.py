"""What a saved adapter says about itself: ModelSpec 1.0.0 and the training metadata that kohya's tools read.

ModelSpec (github.com/Stability-AI/ModelSpec) names what a file is; interfaces show its title, trigger phrase and
resolution. The ``ss_*`` keys are those of kohya's sd-scripts. All values are strings, as safetensors headers demand.
Nothing here reads a clock: the same inputs give the same bytes. ``modelspec.hash_sha256`` depends on the tensors and is
added where they are saved (:meth:`flowgrain.adapters.base.Adapter.save`).
"""

import json
from dataclasses import dataclass

from flowgrain import __version__
from flowgrain.adapters.base import AdapterConfig
from flowgrain.families.base import Family


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
    spec = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{described.architecture}/lora",
        "implementation": "diffusers",
        "title": described.title,
        "date": described.date,
        "resolution": resolution,
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
    return family.name


def _training_metadata(described: ModelDescription) -> dict[str, str]:
    adapter = described.adapter
    values = {
        "ss_base_model_version": "flux1" if described.architecture.startswith("flux-1") else described.architecture,
        "ss_sd_model_name": described.base_model,
        "ss_output_name": described.title,
        "ss_network_module": "flowgrain.adapters.low_rank",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(adapter.alpha),
        "ss_network_dropout": str(adapter.dropout),
        "ss_network_args": json.dumps({"use_dora": adapter.kind == "dora"}),
        "ss_learning_rate": str(described.learning_rate),
        "ss_steps": str(described.steps),
        "ss_num_train_images": str(described.images),
        "ss_total_batch_size": str(described.batch_size),
        "ss_seed": str(described.seed),
        "ss_training_comment": f"flowgrain {__version__}",
    }
    if described.resolution is not None:
        values["ss_resolution"] = str(described.resolution)
    if described.tag_frequency is not None:
        values["ss_tag_frequency"] = json.dumps(described.tag_frequency, ensure_ascii=False, sort_keys=True)
    return values
