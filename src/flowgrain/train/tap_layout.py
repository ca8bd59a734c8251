"""How wide and how coarse the features of a model's blocks are, found without weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

import torch

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.train.activations import on_meta


@dataclass(frozen=True)
class TapLayout:
    """Features of one block."""

    width: int
    """Channels."""
    cells: int
    """Latent cells along a side for each place: 2 for FLUX's tokens, 1 to 8 for the maps of a U-Net."""


def tap_layouts(skeleton: Family, taps: Iterable[str]) -> dict[str, TapLayout]:
    """Layouts of the blocks ``taps`` of a model on the meta device.

    Raises ModelError naming the blocks that there are for a tap that is none of them.
    """
    names = tuple(dict.fromkeys(taps))
    capabilities = skeleton.capabilities
    side = 2 * capabilities.pixel_multiple // capabilities.latent_scale
    with on_meta(), torch.no_grad():
        latents = torch.empty(1, capabilities.latent_channels, side, side, device="meta")
        conditioning = skeleton.condition(ConditionInputs(None, skeleton.embed_text([""]), guidance=1.0))
        found = skeleton.predict(latents, torch.full((1, 1), 0.5, device="meta"), conditioning, names).taps
    return {name: TapLayout(found[name].shape[2], _cells(name, side, found[name].shape[1])) for name in names}


def _cells(name: str, side: int, places: int) -> int:
    along = isqrt(places)
    if along * along != places or side % along:
        raise ModelError(f"tap '{name}': its {places} features of {side} x {side} latents form no map; choose another")
    return side // along
