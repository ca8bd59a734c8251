"""What flow-matching families read of diffusers' FlowMatchEulerDiscreteScheduler."""

import math
from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from flowgrain.errors import ModelError
from flowgrain.flow.time_laws import LinearShift


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
            f"{source}: scheduler {type(scheduler).__name__} is not supported, only FlowMatchEulerDiscreteScheduler"
        )
    if scheduler.config["use_dynamic_shifting"] and scheduler.config["time_shift_type"] != "exponential":
        raise ModelError(
            f"{source}: scheduler time_shift_type '{scheduler.config['time_shift_type']}' is not supported, only "
            "'exponential'"
        )
