"""Where the settings of a decomposition come from.

Weakest first: defaults, presets, ``decompose.yaml`` in the source folder, a configuration file, the command line; last,
for one image, ``images`` and the file beside it. In each of these ``each_level`` stands below what is said of a level
by itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowgrain.config import Layered, build_config, merge_layers, merged, parse_layer, read_layers
from flowgrain.data.collections import Collection
from flowgrain.slices.config import SETTINGS_SUFFIX, DecomposeConfig, overridden, spread_each_level
from flowgrain.slices.presets import DEFAULT_PRESET, LEVELS_PATH, preset_files

DATASET_SETTINGS = "decompose.yaml"
"""File in the source folder with settings for its images."""


def load_settings(
    presets: Sequence[str], source: Path | None, file: Path | None, overrides: Sequence[str]
) -> tuple[DecomposeConfig, Layered]:
    """The configuration and where each of its values comes from; ``source`` is the folder of the images, if it is one.

    Without a preset and a file the default preset is taken; a preset of a subject stands on the default size. Raises
    :class:`flowgrain.errors.ConfigError` for anything missing, unknown or malformed.
    """
    files = preset_files(presets or ([] if file is not None else [DEFAULT_PRESET]))
    if source is not None and (source / DATASET_SETTINGS).is_file():
        files.append(source / DATASET_SETTINGS)
    if file is not None:
        files.append(file)
    layered = Layered({}, {})
    for layer in (*(read_layers([file], []) for file in files), *(read_layers([], [text]) for text in overrides)):
        if "each_level" in layer.values and "levels" not in {**layered.values, **layer.values}:
            layered = merge_layers(layered, read_layers([LEVELS_PATH], []))  # the defaults, so that there are some
        layered = merge_layers(layered, _spread(layer, tuple(layered.values.get("levels") or {})))
    return build_config(DecomposeConfig, layered), layered


def settings_of_image(
    config: DecomposeConfig, layered: Layered, collection: Collection, name: str
) -> tuple[DecomposeConfig, Layered]:
    """The configuration of one image and where each value comes from. Raises as :func:`load_settings` does."""
    own: dict[str, Any] = {}
    for pattern, settings in config.images.items():
        if config.applies(pattern, name):
            layered = merge_layers(layered, _pattern_layer(config, layered, pattern, settings))
            own = merged(own, settings)
    beside = collection.beside(name, SETTINGS_SUFFIX)
    if beside is not None:
        layer = parse_layer(beside, Path(collection.place(name, SETTINGS_SUFFIX)))
        layered = merge_layers(layered, _spread(layer, tuple(config.levels)))
        own = merged(own, layer.values)
    return overridden(config, own), layered


def _pattern_layer(config: DecomposeConfig, layered: Layered, pattern: str, settings: Mapping[str, Any]) -> Layered:
    prefix = f"images.{pattern}."
    origins = {key.removeprefix(prefix): o for key, o in layered.origins.items() if key.startswith(prefix)}
    return _spread(Layered(dict(settings), origins), tuple(config.levels))


def _spread(layered: Layered, names: tuple[str, ...] = ()) -> Layered:
    """``each_level`` written out for the levels that there are, with its origins."""
    shared = layered.values.get("each_level")
    if not isinstance(shared, Mapping):
        return layered
    values = spread_each_level(layered.values, names)
    origins = dict(layered.origins)
    own = layered.values.get("levels") or {}
    for level in values.get("levels", {}):
        for path in _paths(shared):
            if not _has(own.get(level), path):
                key = ".".join(("each_level", *path))
                while key not in layered.origins and "." in key:
                    key = key.rpartition(".")[0]
                origins[".".join(("levels", level, *path))] = layered.origins.get(key, "each_level")
    return Layered(values, origins)


def _paths(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found += _paths(value, (*prefix, key)) if isinstance(value, Mapping) and value else [(*prefix, key)]
    return found


def _has(values: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
