"""The sections of a diagnosis by name, each one function from an opened run to plain JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.opened import OpenedRun, Progress
from flowgrain.errors import ConfigError

Measure = Callable[[OpenedRun, DiagnoseConfig, Progress], dict[str, Any]]
"""Raises :class:`NotMeasurable` where the run cannot answer."""


class NotMeasurable(Exception):
    """A section has nothing to say about this run; the message says why, for the page."""


@dataclass(frozen=True)
class SectionEntry:
    """A section of the diagnosis."""

    name: str
    meaning: str
    """What it measures, for --help and progress."""
    measure: Measure
    reads_log: bool = False
    """Whether it reads metrics.jsonl, which grows while the run goes on."""


def _interference(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> dict[str, Any]:
    from flowgrain.diagnose.fields import measure_interference

    return measure_interference(opened, config, progress).as_json()


def _gradients(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> dict[str, Any]:
    from flowgrain.diagnose.gradients import measure_gradients

    return measure_gradients(opened, config, progress).as_json()


def _kernel(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> dict[str, Any]:
    from flowgrain.diagnose.kernel import measure_kernel

    return measure_kernel(opened, config, progress).as_json()


def _path(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> dict[str, Any]:
    from flowgrain.diagnose.path import measure_path

    return measure_path(opened, config, progress).as_json()


def _smoothness(opened: OpenedRun, config: DiagnoseConfig, progress: Progress) -> dict[str, Any]:
    from flowgrain.diagnose.smoothness import measure_smoothness

    return measure_smoothness(opened, config, progress).as_json()


SECTIONS = (
    SectionEntry("interference", "interference of the data fields by noise level", _interference),
    SectionEntry("gradients", "how the levels' gradients meet", _gradients),
    SectionEntry("kernel", "local neural tangent kernel", _kernel),
    SectionEntry("path", "training path, regimes and oscillation", _path, reads_log=True),
    SectionEntry("smoothness", "smoothness of the target field", _smoothness),
)
"""In the order of the page."""


def choose_sections(names: tuple[str, ...] | None) -> tuple[SectionEntry, ...]:
    """The named sections in the order of the page, None for all; raises ConfigError listing them for another name."""
    known = {entry.name: entry for entry in SECTIONS}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--sections: no section '{name}'; there are: {', '.join(known)}")
    return tuple(entry for entry in SECTIONS if names is None or entry.name in names)
