"""The settings that everyone shares who asks a model about the pictures of a data set."""

from abc import ABC
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from flowgrain.config import Config
from flowgrain.vlm.config import AskingConfig, BudgetConfig, EndpointConfig
from flowgrain.vlm.images import PictureConfig

_FORMAT = "jpeg"
"""Of pictures that are sent by the million: several times smaller than png, and what is asked about is no noise."""


class AskingSettings(Config, ABC):
    """Which model, how pictures are sent, how persistently it is asked, what that may cost."""

    endpoint: EndpointConfig | None = Field(
        default=None, description="the model and where it is; null: that of the data set's vlm settings"
    )
    pictures: PictureConfig = Field(default=PictureConfig(format=_FORMAT), description="how pictures are sent")
    asking: AskingConfig = Field(default_factory=AskingConfig, description="of each worker process by itself")
    budget: BudgetConfig = Field(
        default_factory=BudgetConfig, description="its max_cost holds for all that is kept in one folder of answers"
    )
    retry_failed: bool = Field(default=False, description="ask refused, unusable and rejected questions again")

    @field_validator("pictures", mode="before")
    @classmethod
    def _small(cls, value: Any) -> Any:
        return {"format": _FORMAT, **value} if isinstance(value, dict) else value


class VlmConfig(AskingSettings):
    """What the vlm detectors and the captioner of a data set share where they say nothing themselves."""


SHARED = tuple(AskingSettings.model_fields)


def shared_with(settings: AskingSettings, shared: VlmConfig | None) -> dict[str, Any]:
    """What ``settings`` takes from ``shared``: every setting that it does not set itself."""
    if shared is None:
        return {}
    return {key: getattr(shared, key) for key in SHARED if key not in settings.model_fields_set}


def decisive(dumped: Any) -> Any:
    """Dumped settings without what changes no answer: addresses, waits, concurrency, prices and caps.

    For digests of whole configurations: a map that holds asking settings, at any depth, loses ``budget`` and
    ``asking``, and its endpoint keeps the model and how it is sampled.
    """
    if isinstance(dumped, Mapping):
        kept = dict(dumped)
        if {"endpoint", "budget", "asking"} <= kept.keys():
            del kept["budget"], kept["asking"]
            if kept["endpoint"] is not None:
                kept["endpoint"] = EndpointConfig.model_validate(kept["endpoint"]).identity()
        return {key: decisive(value) for key, value in kept.items()}
    return [decisive(value) for value in dumped] if isinstance(dumped, list | tuple) else dumped
