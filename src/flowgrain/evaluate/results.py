"""The results of measuring arms, and their files: ``metrics.json`` (read back), ``metrics.csv`` and ``metrics.md``."""

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flowgrain.errors import DataError
from flowgrain.files import atomic_write_text

JSON_NAME, CSV_NAME, MARKDOWN_NAME = "metrics.json", "metrics.csv", "metrics.md"
FORMAT = 1
CSV_COLUMNS: tuple[str, ...] = (
    "kind", "name", "subset", "arm", "against", "value", "low", "high", "level", "n", "clusters", "higher_is_better",
    "ahead", "encoder", "warning", "details",
)  # fmt: skip


@dataclass(frozen=True)
class MetricResult:
    """One metric of one arm with its interval; NaN ends where there is none."""

    name: str
    arm: str
    subset: str
    """What was measured, for example ``whole images``."""
    value: float
    low: float
    high: float
    level: float
    n: int
    clusters: int
    """Number of prompts (or roots) that the interval resamples."""
    encoder: str
    higher_is_better: bool | None
    """None where neither is better by itself."""
    warning: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    """Whatever else changes the number: version, resize, references, how the interval was made."""


@dataclass(frozen=True)
class MetricDifference:
    """``second`` minus ``first`` on shared resamples."""

    name: str
    subset: str
    first: str
    second: str
    value: float
    low: float
    high: float
    level: float
    clusters: int
    higher_is_better: bool | None

    @property
    def supported(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def ahead(self) -> str | None:
        """The better arm where the interval supports a difference, else None; None too if neither way is better."""
        if not self.supported or self.higher_is_better is None:
            return None
        return self.second if (self.value > 0) == self.higher_is_better else self.first


@dataclass(frozen=True)
class MetricTable:
    """Results and differences, in the order in which a page shows them."""

    results: tuple[MetricResult, ...] = ()
    differences: tuple[MetricDifference, ...] = ()

    def __add__(self, other: "MetricTable") -> "MetricTable":
        return MetricTable(self.results + other.results, self.differences + other.differences)


def write_results(folder: Path, table: MetricTable) -> None:
    """Write ``metrics.json``, ``metrics.csv`` and ``metrics.md`` into ``folder``, each replaced whole.

    JSON has no NaN and no infinity: they are the strings ``nan``, ``inf`` and ``-inf`` there.
    """
    content = {
        "format": FORMAT,
        "results": [_plain(asdict(result)) for result in table.results],
        "differences": [_plain(asdict(difference)) for difference in table.differences],
    }
    atomic_write_text(folder / JSON_NAME, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write_text(folder / CSV_NAME, _csv(table))
    atomic_write_text(folder / MARKDOWN_NAME, markdown(table))


def read_results(path: Path) -> MetricTable:
    """The table of a ``metrics.json``, or of a folder that holds one. Raises :class:`DataError` naming the fault."""
    file = path / JSON_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no metric results ({error}); write them with 'flowgrain evaluate'") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{file}: not metric results of format {FORMAT}; write them with 'flowgrain evaluate'")
    del content["format"]
    try:
        return TypeAdapter(MetricTable).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def markdown(table: MetricTable) -> str:
    """Values, differences and warnings as Markdown."""
    arms = list(dict.fromkeys(result.arm for result in table.results))
    lines = ["# Metrics", "", *_row("measure", "n", *arms), *_row(*["---"] * (len(arms) + 2))]
    for name, subset in dict.fromkeys((result.name, result.subset) for result in table.results):
        found = {result.arm: result for result in table.results if (result.name, result.subset) == (name, subset)}
        cells = (_interval(found[arm]) if arm in found else "" for arm in arms)
        example = next(iter(found.values()))
        lines += _row(f"{name}, {subset}{_direction(example.higher_is_better)}", str(example.n), *cells)
    if table.differences:
        lines += ["", "## Differences", "", *_row("measure", "pair", "difference", "ahead"), *_row(*["---"] * 4)]
        for item in table.differences:
            measure = f"{item.name}, {item.subset}{_direction(item.higher_is_better)}"
            lines += _row(measure, f"{item.second} - {item.first}", _interval(item), item.ahead or "")
    lines += _warnings(table)
    levels = dict.fromkeys(f"{100 * item.level:g} %" for item in (*table.results, *table.differences))
    if levels:
        lines += ["", f"Brackets hold {' or '.join(levels)} intervals over prompts or roots."]
    return "\n".join(lines) + "\n"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in fields.items()
    }


def _csv(table: MetricTable) -> str:
    stream = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for result in table.results:
        details = "; ".join(f"{key}: {value}" for key, value in result.details.items())
        writer.writerow({**asdict(result), "kind": "value", "details": details})
    for item in table.differences:
        row = asdict(item)
        row["arm"], row["against"] = row.pop("second"), row.pop("first")
        writer.writerow({**row, "kind": "difference", "ahead": item.ahead or ""})
    return stream.getvalue()


def _warnings(table: MetricTable) -> list[str]:
    """Each warning once, with the arms that it holds for."""
    arms: dict[tuple[str, str, str], list[str]] = {}
    for result in table.results:
        if result.warning:
            arms.setdefault((result.name, result.subset, result.warning), []).append(result.arm)
    if not arms:
        return []
    found = (f"- {name}, {subset} ({', '.join(who)}): {text}" for (name, subset, text), who in arms.items())
    return ["", "## Warnings", "", *found]


def _row(*cells: str) -> list[str]:
    text = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return [f"| {' | '.join(text)} |"]


def _direction(higher_is_better: bool | None) -> str:
    return {True: " (higher is better)", False: " (lower is better)", None: ""}[higher_is_better]


def _interval(item: MetricResult | MetricDifference) -> str:
    return f"{item.value:.4g} [{item.low:.4g}, {item.high:.4g}]"
