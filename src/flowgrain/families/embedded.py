"""The models that the package carries."""

from importlib import resources
from pathlib import Path

EMBEDDED_MODELS = ("tiny-flux", "tiny-sdxl")
"""Models that the package carries; a folder of the same name is reached as ``./tiny-flux``."""


def resolve_model(model: str) -> str:
    """The folder of an embedded model, any other name unchanged."""
    if model not in EMBEDDED_MODELS:
        return model
    return str(Path(str(resources.files("flowgrain"))) / "assets" / model)
