"""From estimates and replicates to a table: intervals, warnings, differences of arms that drew the same pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable

FEW_CLUSTERS = 20


@dataclass(frozen=True)
class Measured:
    """One metric of one arm before it is written down: estimate and replicates."""

    arm: str
    estimate: float
    replicates: Float[np.ndarray, " r"]
    pictures: Counter[tuple[str, int | None]]
    """How often each (prompt or root, seed) occurs."""
    warnings: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of pictures (or roots)."""
        return self.pictures.total()

    @property
    def clusters(self) -> int:
        """Number of prompts (or roots)."""
        return len({name for name, _ in self.pictures})


@dataclass(frozen=True)
class Label:
    """What all results of one metric share."""

    name: str
    subset: str
    higher_is_better: bool | None
    encoder: str = ""
    details: dict[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] = (float("-inf"), float("inf"))


def metric_table(
    measured: Sequence[Measured], label: Label, pairs: Sequence[tuple[str, str]], bootstrap: Bootstrap
) -> MetricTable:
    """Results of all arms and the differences of ``pairs``.

    Raises :class:`DataError` for a pair of unknown arms or of arms that drew different pictures.
    """
    results = tuple(_result(row, label, bootstrap) for row in measured)
    return MetricTable(results, _differences(measured, pairs, label, bootstrap))


def _result(row: Measured, label: Label, bootstrap: Bootstrap) -> MetricResult:
    low, high = np.clip(bootstrap.interval(row.estimate, row.replicates, row.clusters), *label.bounds)
    few = f"the interval rests on {row.clusters} prompts or roots only"
    warnings = (*row.warnings, few) if row.clusters < FEW_CLUSTERS else row.warnings
    return MetricResult(
        name=label.name,
        arm=row.arm,
        subset=label.subset,
        value=row.estimate,
        low=float(low),
        high=float(high),
        level=bootstrap.level,
        n=row.n,
        clusters=row.clusters,
        encoder=label.encoder,
        higher_is_better=label.higher_is_better,
        warning="; ".join(warnings) or None,
        details={**label.details, "resamples": str(bootstrap.resamples), "seed": str(bootstrap.seed)},
    )


def _differences(
    measured: Sequence[Measured], pairs: Sequence[tuple[str, str]], label: Label, bootstrap: Bootstrap
) -> tuple[MetricDifference, ...]:
    by_arm = {row.arm: row for row in measured}
    differences = []
    for first, second in pairs:
        for arm in (first, second):
            if arm not in by_arm:
                raise DataError(f"{label.name}: no arm '{arm}' to compare; arms here: {', '.join(by_arm)}")
        a, b = by_arm[first], by_arm[second]
        _check_paired(a, b, label.name)
        with np.errstate(invalid="ignore"):  # infinite - infinite, for example the PSNR of equal pictures
            value = float(np.subtract(b.estimate, a.estimate))
            low, high = bootstrap.interval(value, b.replicates - a.replicates, a.clusters)
        differences.append(
            MetricDifference(
                label.name,
                label.subset,
                first,
                second,
                value,
                low,
                high,
                bootstrap.level,
                a.clusters,
                label.higher_is_better,
            )
        )
    return tuple(differences)


def _check_paired(a: Measured, b: Measured, name: str) -> None:
    """The same pictures, where seeds are known for both arms; else as many of each prompt."""
    seeded = all(seed is not None for row in (a, b) for _, seed in row.pictures)
    if seeded:
        first, second = a.pictures, b.pictures
    else:
        first, second = (_by_prompt(row.pictures) for row in (a, b))
    odd = sorted(key for key in first.keys() | second.keys() if first[key] != second[key])
    if odd:
        prompt, seed = odd[0]
        example = f"'{prompt}'" if seed is None else f"'{prompt}' with seed {seed}"
        raise DataError(
            f"{name}: arms '{a.arm}' and '{b.arm}' must share their prompts (or roots) and draw them equally often, "
            f"with the same seeds, to be compared in pairs; they differ on {len(odd)}, for example {example}. Keep "
            "what both drew (flowgrain.evaluate.table.shared_pictures) or draw the rest"
        )


def _by_prompt(pictures: Counter[tuple[str, int | None]]) -> Counter[tuple[str, int | None]]:
    counts: Counter[tuple[str, int | None]] = Counter()
    for (prompt, _), count in pictures.items():
        counts[prompt, None] += count
    return counts
