"""Whether the parts of a loaded pipeline are those that a family needs."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from flowgrain.errors import ModelError


def refuse_incomplete(pipeline: Any, names: Sequence[str], family: str, source: str) -> None:
    """Raise ModelError for a pipeline that lacks one of the parts ``names``."""
    missing = [name for name in names if pipeline.components.get(name) is None]
    if missing:
        raise ModelError(f"{source}: the {family} model has no {', '.join(missing)}; give a complete diffusers folder")


def refuse_other_backbone(pipeline: Any, name: str, kind: type[nn.Module], family: str, source: str) -> None:
    """Raise ModelError where the part ``name`` is of another class."""
    backbone = pipeline.components[name]
    if not isinstance(backbone, kind):
        raise ModelError(
            f"{source}: the {name} of a {family} model is a {kind.__name__}, this one is a {type(backbone).__name__}"
        )


def refuse_other_channels(name: str, takes: int, latent: int, packed: int, source: str) -> None:
    """Raise ModelError unless the backbone ``takes`` the channels of ``packed`` cells of ``latent`` channels each."""
    if takes != packed * latent:
        gives = f"{latent}" if packed == 1 else f"{latent} times {packed} packed"
        raise ModelError(
            f"{source}: the {name} takes {takes} channels, the autoencoder gives {gives}; "
            "only text-to-image models are supported (no inpainting, control or depth variants)"
        )
