"""Layers of settings: YAML files with ``extends:`` chains and ``key=value`` overrides, each value with its origin.

Maps merge, lists replace, ``null`` sets to none. Aliases that multiply, keys that are no text and keys that are set
twice are refused.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowgrain.errors import ConfigError

OVERRIDE_ORIGIN = "command line"
OF_A_KIND = frozenset({"captioner", "detector", "upscaler"})
"""Keys of sections that have a ``kind`` to which all of their other settings belong."""
_MOST_SETTINGS = 100_000
_LONGEST_TEXT = 300

# what PyYAML's constructors raise for values that an explicit tag or their look promises something else of
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Layered:
    """Merged raw values and, for each dotted key, the file and line (or command line) that set it."""

    values: dict[str, Any]
    origins: dict[str, str]


def read_layers(files: Sequence[Path], overrides: Sequence[str]) -> Layered:
    """``files`` with their ``extends`` chains, later ones over earlier ones, and ``key=value`` overrides over all.

    Raises :class:`ConfigError` for a missing or malformed file or override and for a cycle.
    """
    layered = Layered({}, {})
    for file in files:
        layered = merge_layers(layered, _read_chain(file, ()))
    for override in overrides:
        layered = merge_layers(layered, _parse_override(override))
    return layered


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


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two maps of settings in one: maps merge, anything else of ``above`` replaces what is below.

    Of :data:`OF_A_KIND`, settings of another kind replace those below: they have nothing in common.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not (key in OF_A_KIND and _differ(old, value)):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _differ(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "kind" in above and above["kind"] != below.get("kind")


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Layered:
    try:
        path = path.resolve()
    except ValueError as error:
        raise ConfigError(printable(f"{shorten(str(path))}: no path of a file ({error})")) from None
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
    chain = Layered({}, {})
    for parent in parents:
        chain = merge_layers(chain, _read_chain(path.parent / parent, (*seen, path)))
    return merge_layers(chain, own)


def _read_file(path: Path) -> Layered:
    name = shorten(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(printable(f"{name}: no such file")) from None
    except OSError as error:
        raise ConfigError(printable(f"{name}: cannot be read ({error.strerror})")) from None
    return parse_layer(data, path)


def parse_layer(data: bytes, path: Path) -> Layered:
    """One layer of settings from the bytes of a YAML file; ``path`` is named in origins and messages.

    ``extends`` is not followed. Raises :class:`ConfigError` for what is no map of settings.
    """
    name = shorten(str(path))
    try:
        text = data.decode("utf-8-sig")
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
                printable(f"{path}:{line}: key {shorten(str(text))} is read as {kind}, not as text: put it in quotes")
            )
        key = str(key_node.value)
        if key in seen:
            name = shorten(".".join((*prefix, key)))
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
    shown = shorten(text)
    if not equals or not all(parts):
        raise ConfigError(printable(f"override '{shown}': expected key=value, for example optimizer.lr=1e-4"))
    try:
        _, located, value = _load_yaml(raw, Path(f"override '{key.strip()}'"))
    except RecursionError:
        raise ConfigError(printable(f"override '{shown}': value is not valid YAML: nested too deeply")) from None
    except _YAML_ERRORS as error:
        raise ConfigError(printable(f"override '{shown}': value is not valid YAML: {_reason(error)}")) from None
    for part in reversed(parts):
        value = {part: value}
    keys = (key.strip(), *(f"{key.strip()}.{inner}" for inner in located))
    return Layered(value, dict.fromkeys(keys, OVERRIDE_ORIGIN))


def _reason(error: Exception) -> str:
    """What a YAML error says, on one line; its snippet of the text only where it is short."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}, " if error.context else ""
        return shorten(f"{context}{error.problem} in line {mark.line + 1}, column {mark.column + 1}")
    return shorten(" ".join(str(error).split()) or type(error).__name__)


def shorten(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def merge_layers(below: Layered, above: Layered) -> Layered:
    """One layer of two: maps merge, anything else of ``above`` replaces what is below."""
    return Layered(merged(below.values, above.values), {**below.origins, **above.origins})
