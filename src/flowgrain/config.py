"""Configuration: YAML in, frozen pydantic models out, every value with its origin.

Layers, weakest first: defaults, then the files of an ``extends:`` chain (one path or several, later ones win), then
``key=value`` overrides.
Maps merge, lists replace, ``null`` sets to none. Unknown keys are errors that name the nearest valid key.
"""

import difflib
import reprlib
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
_MOST_PROBLEMS = 20
_MOST_SETTINGS = 100_000
_LONGEST_TEXT = 300

# what PyYAML's constructors raise for values that an explicit tag or their look promises something else of
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


class Config(BaseModel):
    """Base of every configuration section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def without_nulls(entries: Any) -> Any:
    """For maps of patterns: null takes an entry of an extended file away, null for all takes away all of them."""
    if entries is None:
        return {}
    return {key: value for key, value in entries.items() if value is not None} if isinstance(entries, dict) else entries


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


def show(value: Any) -> str:
    """A value for a message: its representation, cut short where it is long, deep or refers to itself."""
    return _REPR.repr(value)


def printable(text: str) -> str:
    """One line of text with control characters, line breaks and broken Unicode written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Repr(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        """Python writes no integers of more than 4300 digits; YAML reads them from hexadecimal."""
        return super().repr_int(x, level) if abs(x) < 10**400 else f"an integer of {x.bit_length()} bits"


_REPR = _Repr()


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
    try:
        path = path.resolve()
    except ValueError as error:
        raise ConfigError(printable(f"{_shorten(str(path))}: no path of a file ({error})")) from None
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(printable(f"{path}: 'extends' goes round in a circle ({chain})"))
    own = _read_file(path)
    parents = own.values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        where = own.origins.get("extends", str(path))
        raise ConfigError(
            printable(f"{where}: 'extends' must be a path or a list of paths of YAML files, got {show(parents)}")
        )
    merged = Layered({}, {})
    for parent in parents:
        merged = _merge(merged, _read_chain(path.parent / parent, (*seen, path)))
    return _merge(merged, own)


def _read_file(path: Path) -> Layered:
    name = _shorten(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(printable(f"{name}: no such file")) from None
    except OSError as error:
        raise ConfigError(printable(f"{name}: cannot be read ({error.strerror})")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(printable(f"{name}: cannot be read as UTF-8 text ({error})")) from None
    try:
        node, located, values = _load_yaml(text, path)
    except RecursionError:
        raise ConfigError(printable(f"{name}: not valid YAML: nested too deeply")) from None
    except _YAML_ERRORS as error:
        raise ConfigError(printable(f"{name}: not valid YAML: {_reason(error)}")) from None
    if node is None:
        return Layered({}, {})
    if not isinstance(values, dict):
        raise ConfigError(printable(f"{name}: expected a map of settings, got {type(values).__name__}"))
    return Layered(values, located)


def _load_yaml(text: str, path: Path) -> tuple[yaml.Node | None, dict[str, str], Any]:
    """(root node, file:line of every entry, value) of one document, whose aliases are checked before it is built."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        located = dict(_locate_all(node, path))
        return node, located, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _locate_all(node: yaml.Node | None, path: Path) -> Iterator[tuple[str, str]]:
    """Dotted key -> file:line for every map entry; refuses aliases that refer to themselves or multiply."""
    if node is None:
        return
    if _expanded(node, path, {}) > _MOST_SETTINGS:
        raise ConfigError(printable(f"{path}: more than {_MOST_SETTINGS} settings: its aliases multiply"))
    yield from _locate(node, (), path)


def _expanded(node: yaml.Node, path: Path, sizes: dict[int, int]) -> int:
    """Number of nodes under ``node`` with all aliases written out; each node is counted once."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            line = node.start_mark.line + 1
            raise ConfigError(printable(f"{path}:{line}: a value holds itself through an alias"))
        return sizes[id(node)]
    sizes[id(node)] = 0  # being counted
    children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_expanded(child, path, sizes) for child in children)
    sizes[id(node)] = 1 + inner
    return 1 + inner


def _locate(node: yaml.Node, prefix: tuple[str, ...], path: Path) -> Iterator[tuple[str, str]]:
    """Refuses keys that are no text, and duplicate keys, which YAML silently overwrites."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _locate(item, (*prefix, str(index)), path)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            yield from _locate_merged(value_node, prefix, path)
            continue
        if key_node.tag != "tag:yaml.org,2002:str" or not isinstance(key_node, yaml.ScalarNode):
            kind = key_node.tag.rpartition(":")[2]
            text = key_node.value if isinstance(key_node, yaml.ScalarNode) else kind
            raise ConfigError(
                printable(f"{path}:{line}: key {_shorten(str(text))} is read as {kind}, not as text: put it in quotes")
            )
        key = str(key_node.value)
        if key in seen:
            name = _shorten(".".join((*prefix, key)))
            raise ConfigError(printable(f"{path}:{line}: key '{name}' was already set at line {seen[key]}"))
        seen[key] = line
        yield ".".join((*prefix, key)), f"{path}:{line}"
        yield from _locate(value_node, (*prefix, key), path)


def _locate_merged(node: yaml.Node, prefix: tuple[str, ...], path: Path) -> Iterator[tuple[str, str]]:
    """Entries that ``<<`` takes over: their lines are those of the anchor."""
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        yield from _locate(item, prefix, path)


def _parse_override(text: str) -> Layered:
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    shown = _shorten(text)
    if not equals or not all(parts):
        raise ConfigError(printable(f"override '{shown}': expected key=value, for example optimizer.lr=1e-4"))
    try:
        _, _, value = _load_yaml(raw, Path(f"override '{key.strip()}'"))
    except RecursionError:
        raise ConfigError(printable(f"override '{shown}': value is not valid YAML: nested too deeply")) from None
    except _YAML_ERRORS as error:
        raise ConfigError(printable(f"override '{shown}': value is not valid YAML: {_reason(error)}")) from None
    for part in reversed(parts):
        value = {part: value}
    return Layered(value, {key.strip(): OVERRIDE_ORIGIN})


def _reason(error: Exception) -> str:
    """What a YAML error says, on one line; its snippet of the text only where it is short."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}, " if error.context else ""
        return _shorten(f"{context}{error.problem} in line {mark.line + 1}, column {mark.column + 1}")
    return _shorten(" ".join(str(error).split()) or type(error).__name__)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


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
        kind = (".".join(map(str, problem["loc"])),) if problem["type"] in ("missing", "extra_forbidden") else ()
        found.setdefault((*key, "", *kind), []).append(problem)
    return [_describe(schema, layered, same) for same in found.values()]


def _describe(schema: type[Config], layered: Layered, problems: list[Any]) -> str:
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    # pydantic adds the tag of a union's branch to the location: keep the parts that exist in the input
    key = _shorten(".".join(_existing(layered.values, location))) or "(top level)"
    where = _where(layered, ".".join(_existing(layered.values, location)))
    if problem["type"] == "extra_forbidden":
        valid = sorted(_field_names(schema, location[:-1]))
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"valid keys here: {', '.join(valid)}"
        return f"{where}unknown key '{key}'; {hint}"
    messages = dict.fromkeys(_message(item) for item in problems)
    message = ", or ".join(text[:1].lower() + text[1:] for text in messages)
    shown = problem["input"]
    got = "" if problem["type"] in ("missing", "value_error") or isinstance(shown, dict) else f" (got {show(shown)})"
    name = ".".join(location) if problem["type"] == "missing" else key
    return f"{where}{name}: {message}{got}"


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
