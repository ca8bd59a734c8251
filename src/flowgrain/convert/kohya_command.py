"""kohya's training command, as typed or as a script has it, taken apart into options."""

import re
import shlex
from typing import Any

from flowgrain.errors import ConfigError

FLUX_SCRIPT = "flux_train_network.py"
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


def parse_command(command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(options of accelerate launch, options of the script) by name, values as text, flags as True.

    Raises :class:`ConfigError` for text that is no command of :data:`FLUX_SCRIPT`.
    """
    tokens = _split(command)
    places = [index for index, token in enumerate(tokens) if _SCRIPT.search(token)]
    if not places:
        raise ConfigError(f"the command names no training script; it should contain {FLUX_SCRIPT} and its options")
    script = re.split(r"[/\\]", tokens[places[0]])[-1]
    if script != FLUX_SCRIPT:
        raise ConfigError(
            f"the command runs {script}; {FLUX_SCRIPT} (FLUX.1 LoRA) is the one that can be converted, "
            "because FLUX is the family that flowgrain trains"
        )
    return _options(tokens[: places[0]]), _options(tokens[places[0] + 1 :])


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
