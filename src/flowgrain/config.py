"""Configuration: YAML in, frozen pydantic models out, every value with its origin.

Layers, weakest first: defaults, then the files of an ``extends:`` chain (one path or several, later ones win), then
``key=value`` overrides.
Maps merge, lists replace, ``null`` sets to none. Unknown keys are errors that name the nearest valid key.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flowgrain.errors import ConfigError
from flowgrain.layers import OVERRIDE_ORIGIN as OVERRIDE_ORIGIN
from flowgrain.layers import Layered as Layered
from flowgrain.layers import merge_layers as merge_layers
from flowgrain.layers import merged as merged
from flowgrain.layers import parse_layer as parse_layer
from flowgrain.layers import printable as printable
from flowgrain.layers import read_layers as read_layers
from flowgrain.layers import shorten
from flowgrain.layers import show as show

DEFAULT_ORIGIN = "default"
_MOST_PROBLEMS = 20


class Config(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def without_nulls(entries: Any) -> Any:
    """For maps of patterns: null takes an entry of an extended file away, null for all takes away all of them."""
    if entries is None:
        return {}
    return {key: value for key, value in entries.items() if value is not None} if isinstance(entries, dict) else entries


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(
    schema: type[ConfigT], path: Path | Sequence[Path] | None, overrides: list[str]
) -> tuple[ConfigT, Layered]:
    """Read ``path`` (of several, later ones win) with its ``extends`` chain, apply ``key=value`` overrides, validate.

    Raises :class:`ConfigError` for a missing or malformed file, a cycle, an unknown key or an invalid value.
    """
    layered = read_layers([path] if isinstance(path, Path) else path or [], overrides)
    return build_config(schema, layered), layered


def build_config(schema: type[ConfigT], layered: Layered) -> ConfigT:
    """Validate merged values; the error lists every problem with its key, value and origin, one a line."""
    for key, value in _texts(layered.values, (), set()):
        if "\0" in value or not _is_unicode(value):
            where = _where(layered, key)
            raise ConfigError(
                printable(f"{where}{key or '(top level)'}: {show(value)} holds a character that no file can hold")
            )
    try:
        return schema.model_validate(layered.values)
    except ValidationError as error:
        lines = _describe_all(schema, layered, error)
        more = len(lines) - _MOST_PROBLEMS
        shown = [*lines[:_MOST_PROBLEMS], f"... and {more} more problems"] if more > 0 else lines
        raise ConfigError("\n".join(map(printable, shown))) from None


def describe_origins(config: Config, layered: Layered) -> list[tuple[str, Any, str]]:
    """(dotted key, value, origin) of every leaf of a resolved configuration, for ``--print-config``."""
    return [
        (key, value, _set_by(layered, key) or DEFAULT_ORIGIN) for key, value in _leaves(config.model_dump(mode="json"))
    ]


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _leaves(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*prefix, str(key)))
    else:
        yield ".".join(prefix), value


def _origin(origins: dict[str, str], key: str) -> str | None:
    """Origin of a key or of the nearest enclosing map that was set as a whole."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return None


def _set_by(layered: Layered, key: str) -> str | None:
    """Origin of the value of a key: its own, or that of an enclosing value that is no map; None for a default."""
    values: Any = layered.values
    parts = key.split(".")
    for index, part in enumerate(parts):
        if not isinstance(values, dict):
            return _origin(layered.origins, ".".join(parts[:index]))
        if part not in values:
            return None
        values = values[part]
    return _origin(layered.origins, key)


def _where(layered: Layered, key: str) -> str:
    origin = _origin(layered.origins, key)
    return f"{origin}: " if origin else ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(value: Any, prefix: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in the values, each object once: aliases share them."""
    if isinstance(value, str):
        yield ".".join(prefix), value
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                yield ".".join(prefix), str(key)
            yield from _texts(item, (*prefix, str(key)), seen)


def _describe_all(schema: type[Config], layered: Layered, error: ValidationError) -> list[str]:
    """One line a problem: what the branches of a union say of one value is one problem."""
    problems = [
        (problem, _existing(layered.values, [str(part) for part in problem["loc"]])) for problem in error.errors()
    ]
    found: dict[tuple[str, ...], list[Any]] = {}
    for problem, key in problems:
        deeper = any(other[: len(key)] == key and len(other) > len(key) for _, other in problems)
        if key and deeper and isinstance(problem["input"], dict) and problem["type"] != "missing":
            continue  # another branch of the union got further and says what is wrong inside
        if deeper and problem["type"] == "too_short":
            continue  # pydantic counts the valid items alone: the list is as long as it should be
        kind = (".".join(map(str, problem["loc"])),) if problem["type"] in ("missing", "extra_forbidden") else ()
        found.setdefault((*key, "", *kind), []).append(problem)
    return [_describe(schema, layered, same) for same in found.values()]


def _describe(schema: type[Config], layered: Layered, problems: list[Any]) -> str:
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "union_tag_invalid":
        location += [problem["ctx"]["discriminator"].strip("'")]
    # pydantic adds the tag of a union's branch to the location: keep the parts that exist in the input
    key = shorten(".".join(_existing(layered.values, location))) or "(top level)"
    where = _where(layered, ".".join(_existing(layered.values, location)))
    if problem["type"] == "extra_forbidden":
        valid = sorted(_field_names(schema, location[:-1]))
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"valid keys here: {', '.join(valid)}"
        return f"{where}unknown key '{key}'; {hint}"
    messages = dict.fromkeys(_message(item) for item in problems)
    message = ", or ".join(text[:1].lower() + text[1:] for text in messages)
    shown = problem["input"]
    if problem["type"] == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        close = difflib.get_close_matches(tag, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
        return f"{where}{key}: '{shorten(tag)}' is none that there is; {hint}"
    got = "" if problem["type"] in ("missing", "value_error") or isinstance(shown, dict) else f" (got {show(shown)})"
    if problem["type"] == "missing":
        inside = (origin for name, origin in layered.origins.items() if name.startswith(f"{key}."))
        where = f"{own}: " if (own := layered.origins.get(key) or next(inside, None)) else where
        key = f"{key}.{location[-1]}" if len(location) > 1 else location[-1]
    return f"{where}{key}: {message}{got}"


def _message(problem: Any) -> str:
    """pydantic's message without the names of classes."""
    if problem["type"] in ("model_type", "dict_type"):
        return "expected a map of settings"
    return problem["msg"].removeprefix("Value error, ").removesuffix(" for <class 'pathlib.Path'>")


def _existing(values: Any, location: list[str]) -> list[str]:
    found: list[str] = []
    for part in location:
        if isinstance(values, dict) and part in values:
            values = values[part]
            found.append(part)
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
            found.append(part)
    return found


def _field_names(schema: type[Config], location: list[str]) -> set[str]:
    models = {schema}
    for part in location:
        deeper = set()
        for model in models:
            field = model.model_fields.get(part)
            if field is not None:
                deeper |= set(_models_in(field.annotation))
            elif part in {m.__name__ for m in models} or not part.isidentifier():
                deeper.add(model)
        models = deeper or models
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Config):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
