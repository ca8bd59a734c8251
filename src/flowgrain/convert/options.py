"""The options of another trainer's file: read with their types, and with a record of which were read."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.config import show
from flowgrain.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "")
_LONGEST = 60


@dataclass(frozen=True)
class Cited:
    """An option as the report names it."""

    option: str
    written: str | None
    """As the file has it, None where it is left out."""
    defaults: Mapping[str, Any]
    """The trainer's defaults by option, as far as they have been asked for."""
    name: str

    @property
    def value(self) -> str:
        """As it was written, or ``default VALUE``."""
        return f"default {_short(self.defaults.get(self.name))}" if self.written is None else self.written

    @property
    def origin(self) -> str:
        """For the recipe's comment: the name, with the value where the trainer's default decided."""
        return f"{self.option} ({self.value})" if self.written is None else self.option


class Options:
    """Options by name. Each getter checks the type and marks the option as read; what is left over is unknown.

    ``labels`` give the full names for messages, for example ``datasets[0].subsets[1].num_repeats``.
    """

    def __init__(self, values: Mapping[str, Any], where: str, labels: Mapping[str, str] | None = None):
        self.where = where
        self._values = dict(values)
        self._labels = dict(labels or {})
        self._defaults: dict[str, Any] = {}
        self._read: set[str] = set()

    def given(self, name: str) -> bool:
        """Whether the file sets the option to something other than null."""
        return self._values.get(name) is not None

    def active(self, name: str) -> bool:
        """Whether the option is set to something other than off, zero or nothing."""
        value = self._values.get(name)
        return not (value is None or value in (False, 0, "", [], {}) or str(value).lower() in ("none", "false"))

    def unread(self) -> list[str]:
        """Names that no getter asked for, in the order of the file."""
        return [name for name in self._values if name not in self._read]

    def names_read(self) -> list[str]:
        """Names that a getter asked for, whether or not the file has them."""
        return sorted(self._read)

    def cite(self, name: str) -> Cited:
        """The option for the report; marks it as read."""
        self._read.add(name)
        written = _short(self._values[name]) if self.given(name) else None
        return Cited(self._labels.get(name, name), written, self._defaults, name)

    def raw(self, name: str) -> Any:
        """The value as the file has it, None where it is missing."""
        return self._get(name, None)

    def number(self, name: str, default: float | int | None = None) -> float | int | None:
        """A finite number; text is read as one."""
        value = self._get(name, default)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)):
            return value
        try:
            parsed = float(value) if isinstance(value, str) else math.nan
        except ValueError:
            parsed = math.nan
        if not math.isfinite(parsed):
            raise self._wrong(name, "a number", value)
        return parsed

    def integer(self, name: str, default: int | None = None) -> int | None:
        """A whole number; text is read as one."""
        value = self.number(name, default)
        if value is None:
            return None
        if value != int(value):
            raise self._wrong(name, "a whole number", self._values[name])
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false; the usual words are read as such."""
        value = self._get(name, default)
        if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
            return value.lower() in _TRUE
        if value in (0, 1):
            return bool(value)
        raise self._wrong(name, "true or false", value)

    def text(self, name: str, default: str | None = None) -> str | None:
        """Text; numbers are taken as written."""
        value = self._get(name, default)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise self._wrong(name, "text", value)

    def texts(self, name: str) -> list[str]:
        """A list of texts; one text is a list of one."""
        value = self._get(name, None)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float) for item in values):
            raise self._wrong(name, "a list of texts", value)
        return [str(item) for item in values]

    def pairs(self, name: str) -> dict[str, str]:
        """``key=value`` texts as a map."""
        found = {}
        for item in self.texts(name):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise self._wrong(name, "key=value", item)
            found[key.strip()] = value.strip()
        return found

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        self._defaults[name] = default
        return self._values[name] if self.given(name) else default

    def _wrong(self, name: str, wanted: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.where}: {self._labels.get(name, name)}: expected {wanted}, got {_short(value)}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises :class:`ConfigError` where it cannot be read."""
    text = _read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises :class:`ConfigError` where it cannot be read or sets a key twice."""
    text = _read_text(path)

    def one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(f"{path}: key '{key}' is set twice")
            found[key] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=one_of_each)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: a text in it is no valid Unicode (a lone surrogate)") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid JSON: nested too deeply") from None
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError, as is a path with a null byte
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else show(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
