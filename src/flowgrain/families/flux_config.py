"""What can be known of a FLUX model from its configuration files alone."""

import math
from collections.abc import Mapping
from typing import Any

from flowgrain.families.base import Capabilities
from flowgrain.flow.time_laws import LinearShift


def capabilities_of(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Capabilities:
    """What a model with these configurations can be asked for."""
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    return Capabilities(
        guidance="embedded" if transformer["guidance_embeds"] else "none",
        pixel_multiple=2 * scale,
        latent_channels=vae["latent_channels"],
        latent_scale=scale,
        native_size=vae["sample_size"],
    )


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
