"""What flow-matching families do alike: a rectified flow over the levels of a FlowMatchEulerDiscreteScheduler."""

import math
from abc import ABC
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.flow.paths import Path, RectifiedFlow
from flowgrain.flow.time_laws import LinearShift


class FlowMatchingFamily(DiffusersFamily, ABC):
    """A family that predicts the velocity of a rectified flow and whose captions have a length of one's choice."""

    max_sequence_length: int
    """Tokens of a caption, the pipeline's argument of this name; families set it when they are made."""

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`."""
        return RectifiedFlow()

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`."""
        return shift_of(self._pipeline.scheduler.config)

    def pipeline_options(self) -> dict[str, Any]:
        """See :meth:`Family.pipeline_options`."""
        return {"max_sequence_length": self.max_sequence_length}

    def _text_length(self) -> int:
        return self.max_sequence_length

    def _rounded_level(self, times: Float[Tensor, "b g"]) -> Float[Tensor, " b"]:
        """t as FLUX's and Qwen-Image's pipelines hand it on: times 1000 in the model's dtype, divided by 1000."""
        return (times[:, 0].to(self.device, torch.float32) * 1000).to(self._backbone.dtype) / 1000

    def _check_parts(self) -> None:
        super()._check_parts()
        check_scheduler(self._pipeline.scheduler, self._source)


def shift_of(scheduler: Mapping[str, Any]) -> LinearShift | None:
    """The resolution shift of a scheduler; a static shift s is the constant mu = ln s, s = 1 is none."""
    if scheduler["use_dynamic_shifting"]:
        return LinearShift(
            base_tokens=scheduler["base_image_seq_len"],
            max_tokens=scheduler["max_image_seq_len"],
            base_shift=scheduler["base_shift"],
            max_shift=scheduler["max_shift"],
        )
    if scheduler["shift"] == 1.0:
        return None
    mu = math.log(scheduler["shift"])
    return LinearShift(base_shift=mu, max_shift=mu)


def check_scheduler(scheduler: Any, source: str) -> None:
    """Raise ModelError for a scheduler that :func:`shift_of` does not describe; ``source`` names the model."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise ModelError(
            f"{source}: scheduler {type(scheduler).__name__} is not supported; name FlowMatchEulerDiscreteScheduler in "
            "model_index.json"
        )
    if scheduler.config["use_dynamic_shifting"] and scheduler.config["time_shift_type"] != "exponential":
        raise ModelError(
            f"{source}: scheduler time_shift_type '{scheduler.config['time_shift_type']}' is not supported; set "
            "time_shift_type to exponential in scheduler/scheduler_config.json, or use_dynamic_shifting to false"
        )
