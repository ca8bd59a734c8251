"""The option ``--size WxH`` of commands that draw or plan pictures."""

import re

from flowgrain.errors import ConfigError


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels; raises ConfigError for anything but WIDTHxHEIGHT."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise ConfigError(f"--size {text}: expected WIDTHxHEIGHT in pixels, for example 1024x768")
    return int(match[1]), int(match[2])
