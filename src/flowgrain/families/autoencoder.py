"""What an AutoencoderKL's configuration says of a model's latents."""

from collections.abc import Mapping
from typing import Any, Literal

from flowgrain.families.base import Capabilities


def cell_pixels(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell and side of an AutoencoderKL with this configuration."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def latent_capabilities(
    vae: Mapping[str, Any], guidance: Literal["embedded", "classifier_free", "none"], cells: int, native_size: int
) -> Capabilities:
    """Capabilities of a model over an AutoencoderKL whose latents' sides are multiples of ``cells`` cells."""
    return Capabilities(
        guidance=guidance,
        pixel_multiple=cells * cell_pixels(vae),
        latent_channels=vae["latent_channels"],
        latent_scale=cell_pixels(vae),
        native_size=native_size,
    )
