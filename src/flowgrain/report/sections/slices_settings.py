"""How the data set was made, and how to make it again."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from flowgrain.config import DEFAULT_ORIGIN, show
from flowgrain.report.page import Block, Code, Section, Table
from flowgrain.report.slices_tiles import plain
from flowgrain.report.wording import NONE
from flowgrain.slices.config import DecomposeConfig, LevelConfig

_LONG_VALUE = 120


def settings_section(config: DecomposeConfig, about: Mapping[str, Any], origins: Mapping[str, str] | None) -> Section:
    """Settings that are not the defaults, where each comes from, and a file that gives the same slices."""
    blocks: tuple[Block, ...] = (
        Table(
            "Settings that differ from the defaults.",
            "All others are as “flowgrain decompose SRC --print-config” shows them.",
            ("setting", "value", "set by"),
            tuple(_rows(config, origins)) or (("none", NONE, NONE),),
        ),
        Code(
            "To repeat.",
            "Save this as settings.yaml and run: flowgrain decompose SRC --out DATASET --config settings.yaml. The "
            "same images with the same files beside them give the same slices, byte for byte.",
            minimal_yaml(config),
        ),
        Table(
            "Identity.",
            "Two data sets with the same manifest hold the same slices.",
            ("what", "value"),
            (
                ("source", plain(str(about.get("source", NONE)))),
                ("manifest (SHA-1)", plain(str(about.get("fingerprint", NONE)))),
                ("settings (SHA-1)", plain(str(about.get("config_hash", NONE)))),
            ),
        ),
    )
    return Section(
        "settings",
        "Settings",
        f"Levels {', '.join(config.levels)}, mode {config.mode}.",
        blocks,
    )


def minimal_yaml(config: DecomposeConfig) -> str:
    """A configuration file that says what is not the default; read without a preset it gives ``config``."""
    return yaml.safe_dump(minimal(config), sort_keys=False, allow_unicode=True, width=100).rstrip()


def minimal(config: DecomposeConfig) -> dict[str, Any]:
    """What is not the default of a configuration. Levels are complete but for their own defaults."""
    values, defaults = config.model_dump(mode="json"), DecomposeConfig().model_dump(mode="json")
    found = {key: value for key, value in values.items() if value != defaults[key]}
    if "levels" in found:
        found["levels"] = {name: _level(level) for name, level in config.levels.items()}
    return found


def _level(level: LevelConfig) -> dict[str, Any]:
    defaults = LevelConfig(granularity=level.granularity).model_dump(mode="json")
    values = level.model_dump(mode="json")
    return {key: value for key, value in values.items() if key == "granularity" or value != defaults[key]}


def _rows(config: DecomposeConfig, origins: Mapping[str, str] | None) -> list[tuple[str, str, str]]:
    return [
        (plain(key), plain(_value(value), _LONG_VALUE), _origin(key, origins))
        for key, value in _leaves(minimal(config))
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _value(value: Any) -> str:
    return value if isinstance(value, str) else show(value)


def _origin(key: str, origins: Mapping[str, str] | None) -> str:
    """File name and line without the path of the machine; of a key that was set as part of a map, that map's."""
    if origins is None:
        return NONE
    while key not in origins and "." in key:
        key = key.rpartition(".")[0]
    origin = origins.get(key, DEFAULT_ORIGIN)
    return plain(PurePath(origin).name, _LONG_VALUE)
