"""A recipe in the making: its values, where each comes from, and what became of every option of the source."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from flowgrain import __version__
from flowgrain.config import Layered, build_config
from flowgrain.convert.options import Cited, Options
from flowgrain.train.recipe import Recipe

Outcome = Literal["converted", "difference", "not needed", "not supported", "unknown"]
HEADINGS: dict[Outcome, str] = {
    "converted": "converted",
    "difference": "converted with a difference",
    "not needed": "not needed",
    "not supported": "not supported",
    "unknown": "unknown to this converter",
}
_LINE = 110


@dataclass(frozen=True)
class Entry:
    """What became of one option."""

    option: str
    value: str
    outcome: Outcome
    keys: tuple[str, ...]
    """The recipe's keys that it set."""
    note: str


@dataclass(frozen=True)
class _Setting:
    value: Any
    origin: str


@dataclass
class Draft:
    """Collects settings and the report. Keys are dotted; numbers in them are places in a list."""

    source: str
    """Names of the files, for messages and the recipe's first line."""
    entries: list[Entry] = field(default_factory=list)
    _settings: dict[str, _Setting] = field(default_factory=dict)

    def convert(self, cited: Cited, key: str, value: Any, difference: str = "") -> None:
        """Set ``key``; ``difference`` says in what it is not what the source did."""
        self._settings[key] = _Setting(value, cited.origin)
        self._report(cited, "difference" if difference else "converted", key, difference)

    def complete(self, key: str, value: Any, origin: str) -> None:
        """Set ``key`` to what no option of the source says."""
        self._settings[key] = _Setting(value, origin)

    def same(self, cited: Cited, key: str, note: str = "") -> None:
        """An option that went into a key which another option has set."""
        self._report(cited, "difference" if note else "converted", key, note)

    def not_needed(self, cited: Cited, why: str) -> None:
        """An option without a counterpart because none is called for."""
        self._report(cited, "not needed", "", why)

    def unsupported(self, cited: Cited, advice: str) -> None:
        """An option that changes the result and has no counterpart; ``advice`` says what to do instead."""
        self._report(cited, "not supported", "", advice)

    def sweep(self, options: Options, not_needed: Mapping[str, str], unsupported: Mapping[str, str]) -> None:
        """Report the options of two tables, then those that nothing has read as unknown, with the nearest name."""
        for name, why in not_needed.items():
            if options.given(name):
                self.not_needed(options.cite(name), why)
        for name, advice in unsupported.items():
            if options.active(name):
                self.unsupported(options.cite(name), advice)
            elif options.given(name):
                self.not_needed(options.cite(name), "switched off there")
        known = set(options.names_read())
        for name in options.unread():
            close = difflib.get_close_matches(name, known | set(not_needed) | set(unsupported), n=1, cutoff=0.8)
            hint = f"did you mean '{close[0]}'? " if close else ""
            self._report(options.cite(name), "unknown", "", f"{hint}it was not read and sets nothing in the recipe")

    def has(self, key: str) -> bool:
        """Whether ``key`` is set."""
        return key in self._settings

    def get(self, key: str) -> Any:
        """The value that ``key`` was set to; raises KeyError where it was not."""
        return self._settings[key].value

    def validated(self) -> Recipe:
        """The recipe; raises :class:`ConfigError` that names the option behind each invalid value."""
        origins = {key: f"{self.source}: {setting.origin}" for key, setting in self._settings.items()}
        return build_config(Recipe, Layered(_plain(self._tree()), origins))

    def yaml(self) -> str:
        """The recipe as YAML, each line with the option it comes from."""
        tree, order = self._tree(), list(Recipe.model_fields)
        lines = [
            f"# Converted from {self.source} by flowgrain {__version__}; each line names the option it comes from."
        ]
        for key in sorted(tree, key=order.index):
            lines += _render(key, tree[key], "")
        return "\n".join(lines) + "\n"

    def report(self) -> str:
        """The report as text: options by outcome, with what they set and why they differ."""
        rows = _merged(self.entries)
        width = min(max((len(_left(row)) for row in rows), default=0), 64)
        lines = []
        for outcome, heading in HEADINGS.items():
            chosen = [row for row in rows if row.outcome == outcome]
            if not chosen:
                continue
            lines.append(f"{heading} ({len(chosen)})")
            for row in chosen:
                more = f" (and {len(row.keys) - 1} more)" if len(row.keys) > 1 else ""
                target = f"  -> {row.keys[0]}{more}" if row.keys else ""
                note = f"  {row.note}" if row.note else ""
                lines.append(f"  {_left(row):{width}}{target}{note}".rstrip())
        return "\n".join(lines)

    def _report(self, cited: Cited, outcome: Outcome, key: str, note: str) -> None:
        self.entries.append(Entry(cited.option, cited.value, outcome, (key,) if key else (), note))

    def _tree(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key, setting in self._settings.items():
            *parents, leaf = key.split(".")
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = setting
        return tree


def _left(row: Entry) -> str:
    return f"{row.option} = {row.value}"


def _merged(entries: Iterable[Entry]) -> list[Entry]:
    """One row for an option that several folders inherit."""
    rows: dict[tuple[str, str, str, str], Entry] = {}
    for entry in entries:
        identity = (entry.option, entry.value, entry.outcome, entry.note)
        keys = (*rows[identity].keys, *entry.keys) if identity in rows else entry.keys
        rows[identity] = Entry(entry.option, entry.value, entry.outcome, tuple(dict.fromkeys(keys)), entry.note)
    return list(rows.values())


def _plain(node: Any) -> Any:
    if isinstance(node, _Setting):
        return node.value
    values = {key: _plain(item) for key, item in node.items()}
    return list(values.values()) if values and all(key.isdigit() for key in values) else values


def _render(key: str, node: Any, indent: str) -> list[str]:
    if isinstance(node, _Setting):
        text, comment = _scalar(node.value), f"  # {node.origin}"
        if len(text) <= _LINE:
            return [f"{indent}{key}: {text}{comment}"]
        wrapped = (
            yaml.safe_dump(node.value, default_flow_style=True, width=_LINE, allow_unicode=True).strip().splitlines()
        )
        return [f"{indent}{key}:{comment}", *(f"{indent}  {line}" for line in wrapped)]
    lines = [f"{indent}{key}:"]
    for name, item in node.items():
        if name.isdigit():
            first, *rest = [line for inner, value in item.items() for line in _render(inner, value, f"{indent}    ")]
            lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines += _render(name, item, f"{indent}  ")
    return lines


def _scalar(value: Any) -> str:
    # quoted wherever YAML 1.1 might read the text as something else; the end marker '...' is the dumper's
    style = '"' if isinstance(value, str) and not value.replace("_", "").replace("-", "").isalpha() else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()
