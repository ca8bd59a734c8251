"""Presets of decompositions: one YAML file each, named by the model and resolution it is for."""

import difflib
from pathlib import Path

from flowgrain.errors import ConfigError

DEFAULT_PRESET = "flux-1024"


def preset_names() -> list[str]:
    """Names of the packaged presets, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The preset's file. Raises :class:`ConfigError` with the nearest name for an unknown one."""
    known = preset_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"presets: {', '.join(known)}"
        raise ConfigError(f"no preset '{name}'; {hint}")
    return Path(__file__).parent / f"{name}.yaml"
