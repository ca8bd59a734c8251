"""kohya's training command, as typed or as a script has it, taken apart into options."""

import re
import shlex
from typing import Any, Literal

from flowgrain.errors import ConfigError

Architecture = Literal["flux", "sdxl", "sd"]
"""FLUX.1, SDXL and its derivatives, Stable Diffusion 1 and 2."""

SCRIPTS: dict[str, Architecture] = {
    "flux_train_network.py": "flux",
    "sdxl_train_network.py": "sdxl",
    "train_network.py": "sd",
}
"""The scripts whose options can be converted."""

_SCRIPT = re.compile(r"(^|[/\\])\w*train\w*\.py$")
_LISTS = (
    "network_args",
    "optimizer_args",
    "lr_scheduler_args",
    "base_weights",
    "base_weights_multiplier",
    "text_encoder_lr",
)
_WINDOWS_PATH = re.compile(r"[A-Za-z]:\\|\.\\")


def parse_command(command: str) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """(what is trained, options of accelerate launch, options of the script), values as text, flags as True.

    Raises :class:`ConfigError` for text that is no command of one of :data:`SCRIPTS`.
    """
    tokens = _split(command)
    places = [index for index, token in enumerate(tokens) if _SCRIPT.search(token)]
    if not places:
        raise ConfigError(f"the command names no training script; it should contain one of {', '.join(SCRIPTS)}")
    script = re.split(r"[/\\]", tokens[places[0]])[-1]
    if script not in SCRIPTS:
        raise ConfigError(f"the command runs {script}; those that can be converted are {', '.join(SCRIPTS)}")
    return SCRIPTS[script], _options(tokens[: places[0]]), _options(tokens[places[0] + 1 :])


def _split(command: str) -> list[str]:
    joined = re.sub(r"[\\^`][ \t]*\r?\n", " ", command)
    if _WINDOWS_PATH.search(joined):
        joined = joined.replace("\\", "\\\\")
    try:
        return shlex.split(joined, comments=True)
    except ValueError as error:
        raise ConfigError(f"the command cannot be taken apart: {error}; check its quotation marks") from None


def _options(tokens: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    current = None
    for token in tokens:
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            current = name.replace("-", "_")
            found[current] = [value] if equals else []
        elif current is not None:
            found[current].append(token)
    return {name: _value(name, values) for name, values in found.items()}


def _value(name: str, values: list[str]) -> Any:
    if name in _LISTS:
        return values
    if len(values) > 1:
        raise ConfigError(f"the command gives --{name} {len(values)} values ({' '.join(values)}); it takes one")
    return values[0] if values else True
