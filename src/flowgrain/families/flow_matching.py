"""What flow-matching families read of diffusers' FlowMatchEulerDiscreteScheduler."""

import math
from collections.abc import Mapping
from typing import Any

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
