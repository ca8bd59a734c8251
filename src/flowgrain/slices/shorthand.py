"""Parts that a configuration names by ``kind``: how they may be written in one word."""

from collections.abc import Mapping
from typing import Any


def spelled_out(value: Any, short_keys: Mapping[str, str | None], what: str) -> Any:
    """``kind`` and ``kind:value`` as maps; the value goes to the kind's short key. Anything but a text stays as it is.

    Raises ValueError, for pydantic, where a kind takes nothing after the colon; ``what`` names the part in it.
    """
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    if not colon or kind not in short_keys:
        return {"kind": value}
    key = short_keys[kind]
    if key is None:
        raise ValueError(f"{what} '{kind}' takes nothing after a colon; write it as a map of its settings")
    return {"kind": kind, key: rest}
