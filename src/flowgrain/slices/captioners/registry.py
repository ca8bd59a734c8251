"""Every captioner by its kind. A new one is a module of its own and a line here."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from flowgrain.slices.captioners.vlm import VlmCaptionsConfig


def _spelled_out(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


OneCaptioner = Annotated[VlmCaptionsConfig, BeforeValidator(_spelled_out)]
"""The configuration of a captioner: a map, or its ``kind``."""
