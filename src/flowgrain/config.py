"""Configuration: YAML in, frozen pydantic models out, every value with its origin.

Layers, weakest first: defaults, then the files of an ``extends:`` chain (one path or several, later ones win), then
``key=value`` overrides.
Maps merge, lists replace, ``null`` sets to none. Unknown keys are errors that name the nearest valid key.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flowgrain.errors import ConfigError

DEFAULT_ORIGIN = "default"
OVERRIDE_ORIGIN = "command line"


class Config(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Layered:
    """Merged raw values and, for each dotted key, the file and line (or command line) that set it."""

    values: dict[str, Any]
    origins: dict[str, str]


def load_config(
    schema: type[ConfigT], path: Path | Sequence[Path] | None, overrides: list[str]
) -> tuple[ConfigT, Layered]:
    """Read ``path`` (of several, later ones win) with its ``extends`` chain, apply ``key=value`` overrides, validate.

    Raises :class:`ConfigError` for a missing or malformed file, a cycle, an unknown key or an invalid value.
    """
    layered = Layered({}, {})
    for file in [path] if isinstance(path, Path) else path or []:
        layered = _merge(layered, _read_chain(file, ()))
    for override in overrides:
        layered = _merge(layered, _parse_override(override))
    return build_config(schema, layered), layered


def build_config(schema: type[ConfigT], layered: Layered) -> ConfigT:
    """Validate merged values; the error lists every problem with its key, value and origin."""
    try:
        return schema.model_validate(layered.values)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(schema, layered, problem) for problem in error.errors())) from None


def describe_origins(config: Config, layered: Layered) -> list[tuple[str, Any, str]]:
    """(dotted key, value, origin) of every leaf of a resolved configuration, for ``--print-config``."""
    return [
        (key, value, _origin(layered.origins, key) or DEFAULT_ORIGIN)
        for key, value in _leaves(config.model_dump(mode="json"))
    ]


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Layered:
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{path}: 'extends' goes round in a circle ({chain})")
    own = _read_file(path)
    parents = own.values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        where = own.origins["extends"]
        raise ConfigError(f"{where}: 'extends' must be a path or a list of paths of YAML files, got {parents!r}")
    merged = Layered({}, {})
    for parent in parents:
        merged = _merge(merged, _read_chain(path.parent / parent, (*seen, path)))
    return _merge(merged, own)


def _read_file(path: Path) -> Layered:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        return Layered({}, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a map of settings, got {type(values).__name__}")
    return Layered(values, dict(_locate(node, (), path)))


def _locate(node: yaml.Node, prefix: tuple[str, ...], path: Path) -> Iterator[tuple[str, str]]:
    """Dotted key -> file:line for every map entry; refuses duplicate keys, which YAML silently overwrites."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(f"{path}:{line}: key '{'.'.join((*prefix, key))}' was already set at line {seen[key]}")
        seen[key] = line
        yield ".".join((*prefix, key)), f"{path}:{line}"
        yield from _locate(value_node, (*prefix, key), path)


def _parse_override(text: str) -> Layered:
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override '{text}': expected key=value, for example optimizer.lr=1e-4")
    try:
        value = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override '{text}': value is not valid YAML: {' '.join(str(error).split())}") from None
    for part in reversed(parts):
        value = {part: value}
    return Layered(value, {key.strip(): OVERRIDE_ORIGIN})


def _merge(below: Layered, above: Layered) -> Layered:
    return Layered(_merge_maps(below.values, above.values), {**below.origins, **above.origins})


def _merge_maps(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge_maps(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


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


def _describe(schema: type[Config], layered: Layered, problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    # pydantic adds the tag of a union's branch to the location: keep the parts that exist in the input
    key = ".".join(_existing(layered.values, location)) or "(top level)"
    origin = _origin(layered.origins, key)
    where = f"{origin}: " if origin else ""
    if problem["type"] == "extra_forbidden":
        valid = sorted(_field_names(schema, location[:-1]))
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"valid keys here: {', '.join(valid)}"
        return f"{where}unknown key '{key}'; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = problem["input"]
    got = "" if problem["type"] in ("missing", "value_error") or isinstance(shown, dict) else f" (got {shown!r})"
    name = ".".join(location) if problem["type"] == "missing" else key
    return f"{where}{name}: {message}{got}"


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
