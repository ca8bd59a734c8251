"""Presets of decompositions: what the slices are for (a model and its resolution), and what is in the pictures.

One YAML file each. One of either kind may be named; the size is read first, so that the subject's detectors stand on
its buckets and captions.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from flowgrain.errors import ConfigError

DEFAULT_PRESET = "flux-1024"
KINDS = ("sizes", "subjects")
_FOLDER = Path(__file__).parent
LEVELS_PATH = _FOLDER / "levels.yaml"
"""The default levels, on which every size stands."""


def preset_names(kind: str | None = None) -> list[str]:
    """Names of the packaged presets of a kind, or of all, sorted."""
    kinds = KINDS if kind is None else (kind,)
    return sorted(path.stem for each in kinds for path in (_FOLDER / each).glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The preset's file. Raises :class:`ConfigError` with the nearest name for an unknown one."""
    for kind in KINDS:
        if name in preset_names(kind):
            return _FOLDER / kind / f"{name}.yaml"
    known = preset_names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"presets: {', '.join(known)}"
    raise ConfigError(f"no preset '{name}'; {hint}")


def preset_files(names: Sequence[str]) -> list[Path]:
    """The files of presets in the order in which they are read; a subject alone stands on the default size.

    Raises :class:`ConfigError` for an unknown name and for two of one kind.
    """
    chosen: dict[str, str] = {}
    for name in names:
        kind = preset_path(name).parent.name
        if chosen.setdefault(kind, name) != name:
            what = "both say what the slices are for" if kind == "sizes" else "both say what is in the pictures"
            raise ConfigError(f"presets '{chosen[kind]}' and '{name}' {what}; name one")
    if chosen and "sizes" not in chosen:
        chosen["sizes"] = DEFAULT_PRESET
    return [preset_path(chosen[kind]) for kind in KINDS if kind in chosen]
