"""Every upscaler by its kind. A new one is a module of its own and a line here."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from flowgrain.slices.shorthand import spelled_out
from flowgrain.slices.upscalers.base import UpscalerConfig
from flowgrain.slices.upscalers.esrgan import EsrganConfig
from flowgrain.slices.upscalers.lanczos import LanczosConfig
from flowgrain.slices.upscalers.ncnn import NcnnConfig

KINDS: dict[str, type[UpscalerConfig]] = {
    "lanczos": LanczosConfig,
    "ncnn": NcnnConfig,
    "esrgan": EsrganConfig,
}
_SHORT_KEYS = {kind: config.short_key for kind, config in KINDS.items()}

OneUpscaler = Annotated[
    Annotated[LanczosConfig | NcnnConfig | EsrganConfig, Field(discriminator="kind")],
    BeforeValidator(lambda value: spelled_out(value, _SHORT_KEYS, "upscaler")),
]
"""The configuration of an upscaler: a map, or ``kind``, or ``kind:value``."""
