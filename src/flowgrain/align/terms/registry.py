"""All kinds of alignment terms. A new one is a module of its own and a line here."""

from typing import Annotated

from pydantic import Field

from flowgrain.align.terms.gram import GramConfig
from flowgrain.align.terms.gram_anchor import GramAnchorConfig
from flowgrain.align.terms.irepa import IrepaConfig
from flowgrain.align.terms.repa import RepaConfig
from flowgrain.align.terms.trd import TrdConfig
from flowgrain.align.terms.vf import VfConfig

TermConfig = Annotated[
    GramConfig  # Spatial Gram Alignment
    | GramAnchorConfig  # DINOv3
    | RepaConfig
    | IrepaConfig
    | VfConfig  # VA-VAE
    | TrdConfig,  # VideoREPA
    Field(discriminator="kind"),
]
"""The configuration of a term."""
