"""The tables and the figure of ``docs/results/interference.md``."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowgrain.granularity import GRANULARITIES
from flowgrain.report.diagnose_interference import map_figure

from .analysis import Interval, crossed, pooled
from .arms import ARMS, LOGGED, STEERED
from .claims import LOSSES, At, Setting, Store, compare, level_of
from .document import fill, interval, number, table
from .domains import REPORTED
from .geometry_runs import FRACTION

Values = Mapping[str, Any]
BySeed = Mapping[str, Mapping[int, float]]
"""Domain -> seed -> value."""
PAIRS = ("macro-meso", "macro-micro", "meso-micro")
REFERENCE = "slices-large"
"""What tuples are compared with: as many random slices an update."""
BASELINE = "baseline"
HEAT_DOMAIN = "openmoji"
LEAST_WEIGHT = 0.01


def write_report(measured: Values, runs: Values, page: Path, images: Path) -> list[str]:
    """Fill the page and draw its figure; the blocks that the page does not use."""
    fields = {domain: measured[f"fields/{domain}"]["values"] for domain in REPORTED if f"fields/{domain}" in measured}
    gradients = {d: measured[f"gradients/{d}"]["values"] for d in REPORTED if f"gradients/{d}" in measured}
    blocks = {
        "profiles": _profiles(fields),
        "fields": _fields(fields),
        "gradients": _gradients(gradients),
        "logged": _logged(runs),
        "steered": _steered(Store(runs, {})),
        "moved": _moved(runs),
    }
    if HEAT_DOMAIN in fields:
        images.mkdir(parents=True, exist_ok=True)
        _heat_maps(fields[HEAT_DOMAIN], images / "interference-heat-maps.svg")
    return fill(page, blocks)


def over_seeds(values: BySeed) -> Interval:
    """Mean over seeds and fixed domains, with an interval from the seeds."""
    return pooled([crossed(np.array([[value] for value in by_seed.values()])) for by_seed in values.values()])


def less(second: BySeed, first: BySeed) -> Interval:
    """The paired difference, over the seeds that both have."""
    shared = {d: set(second[d]) & set(first[d]) for d in second if d in first}
    found = {d: {s: second[d][s] - first[d][s] for s in sorted(seeds)} for d, seeds in shared.items() if seeds}
    return over_seeds(found)


def _profiles(fields: Mapping[str, Values]) -> str:
    rows = []
    for domain, values in fields.items():
        for row in _level(values)["profiles"]:
            weight = row["cross_weight"]
            shown = f"{number(weight['mean'], 3)} [{number(weight['low'], 3)}, {number(weight['high'], 3)}]"
            rows.append([f"{domain}, t = {row['t']:g}", number(row["effective_samples"], 1), shown])
    return table(["domain, noise level", "latents that count at a point", "weight of cross terms"], rows)


def _fields(fields: Mapping[str, Values]) -> str:
    levels = sorted({row["t"] for values in fields.values() for row in _level(values)["profiles"]
                     if row["cross_weight"]["mean"] >= LEAST_WEIGHT})  # fmt: skip
    rows = []
    for t in levels:
        prior = {d: _cell(v, "without adapter", t) for d, v in fields.items()}
        ratio = float(np.mean([_ratio(cell) for cell in prior.values() if cell is not None]))
        loss = float(np.mean([cell["loss"]["mean"] for cell in prior.values() if cell is not None]))
        rows.append([f"t = {t:g}, without adapter", number(loss, 4), "", number(ratio, 3), "", ""])
        for arm in ARMS["flux"]:
            found = {name: _of_arm(fields, arm, t, take) for name, take in _TAKEN.items()}
            base = {name: _of_arm(fields, BASELINE, t, take) for name, take in _TAKEN.items()}
            if not found["loss"]:
                continue
            differences = {
                name: "" if arm == BASELINE else interval(less(found[name], base[name]), 4) for name in found
            }
            rows.append(
                [f"t = {t:g}, {arm}", number(over_seeds(found["loss"]).value, 4), differences["loss"],
                 number(over_seeds(found["ratio"]).value, 3), differences["ratio"], differences["cosine"]]
            )  # fmt: skip
    header = ["noise level, arm", "local loss", "less the baseline's", "cross terms over independent part"]
    return table([*header, "less the baseline's", "mean residual cosine, less the baseline's"], rows)


def _ratio(cell: Values) -> float:
    return cell["correlation"]["mean"] / cell["independent"]["mean"]


_TAKEN: dict[str, Callable[[Values], float]] = {
    "loss": lambda cell: cell["loss"]["mean"],
    "ratio": _ratio,
    "cosine": lambda cell: cell["mean_cosine"]["mean"],
}


def _of_arm(fields: Mapping[str, Values], arm: str, t: float, take: Callable[[Values], float]) -> BySeed:
    found: dict[str, dict[int, float]] = {}
    for domain, values in fields.items():
        for point in values["points"]:
            name, _, seed = point.partition("/seed")
            cell = _cell(values, point, t) if name == arm else None
            if cell is not None:
                found.setdefault(domain, {})[int(seed)] = take(cell)
    return found


def _gradients(gradients: Mapping[str, Values]) -> str:
    rows = []
    for arm in ARMS["flux"]:
        found = {name: _of_gradients(gradients, arm, take) for name, take in _GRADIENT.items()}
        if not found["conflict rate"]:
            continue
        reference = {name: _of_gradients(gradients, REFERENCE, take) for name, take in _GRADIENT.items()}
        cells = [_with_difference(values, reference[name], arm) for name, values in found.items()]
        rows.append([arm, *cells])
    return table([f"arm (less {REFERENCE})", *_GRADIENT], rows)


def _with_difference(values: BySeed, reference: BySeed, arm: str) -> str:
    if not values:
        return ""
    own = number(over_seeds(values).value, 3)
    shared = any(set(values[domain]) & set(reference.get(domain, {})) for domain in values)
    return own if arm == REFERENCE or not shared else f"{own} ({interval(less(values, reference), 3)})"


def _pair_cosine(place: int) -> Callable[[Values], float]:
    """Cosine of the expected gradients of a pair, from the products of independent halves."""
    i, j = [(0, 1), (0, 2), (1, 2)][place]

    def take(found: Values) -> float:
        gram = np.array(found["gram_unbiased"])
        if min(gram[i, i], gram[j, j]) <= 0:  # an estimate of a square: then nothing can be told
            return float("nan")
        return float(gram[i, j] / np.sqrt(gram[i, i] * gram[j, j]))

    return take


_GRADIENT: dict[str, Callable[[Values], float]] = {
    **{f"expected cosine, {pair}": _pair_cosine(place) for place, pair in enumerate(PAIRS)},
    "conflict rate": lambda found: float(np.mean(found["conflict_rate"])),
    "shared part of the update": lambda found: float(np.mean(found["cross_share"])),
}


def _of_gradients(gradients: Mapping[str, Values], arm: str, take: Callable[[Values], float]) -> BySeed:
    found: dict[str, dict[int, float]] = {}
    for domain, values in gradients.items():
        for point, one in values.items():
            name, _, seed = point.partition("/seed")
            value = take(one) if name == arm else float("nan")
            if np.isfinite(value):
                found.setdefault(domain, {})[int(seed)] = value
    return found


def _logged(runs: Values) -> str:
    names = ("mean_cosine", "straightness", "random_straightness", "variance_ratio", "high_frequency_share")
    rows = []
    for arm in LOGGED:
        lines = _log_means(runs, arm, lambda line: [line["oscillation"][name] for name in names])
        rates = _log_means(runs, arm, lambda line: [line["conflict_rate"], line["cross_share"]])
        if not lines:
            continue
        cells = []
        for place in range(len(names)):
            found = over_seeds({d: {s: row[place] for s, row in by.items()} for d, by in lines.items()})
            cells.append(f"{number(found.value, 3)} [{number(found.low, 3)}, {number(found.high, 3)}]")
        for place in range(2):
            found = over_seeds({d: {s: row[place] for s, row in by.items()} for d, by in rates.items()})
            cells.append(f"{number(found.value, 3)} [{number(found.low, 3)}, {number(found.high, 3)}]")
        rows.append([arm, *cells])
    titles = ["cosine of successive updates", "straightness", "of a random walk", "variance ratio",
              "high-frequency share", "conflict rate", "shared part of the update"]  # fmt: skip
    return table(["arm", *titles], rows)


def _log_means(runs: Values, arm: str, take: Callable[[Values], Sequence[float]]) -> dict[str, dict[int, np.ndarray]]:
    """Means over the measurements of full windows, by domain and seed."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for cell, record in _cells(runs, "table", arm):
        full = [line for line in record.get("interference", []) if line["oscillation"]["updates"] > 1]
        most = max((line["oscillation"]["updates"] for line in full), default=0)
        rows = [take(line) for line in full if line["oscillation"]["updates"] == most]
        if rows:
            found.setdefault(cell["domain"], {})[cell["seed"]] = np.array(rows, dtype=np.float64).mean(axis=0)
    return found


def _steered(store: Store) -> str:
    setting, rows = Setting("steered", "flux", "dora"), []
    for fraction in (1.0, 1.5):
        for arm in STEERED:
            levels = [level_of(store, setting, At(arm, fraction), measure) for measure in LOSSES]
            rows.append([f"{arm}, {fraction:g}x", *(number(value, 4) for value in levels)])
        for first, second in (("fixed", "measured"), ("none", "measured"), ("none", "fixed")):
            found = [compare(store, setting, At(first, fraction), At(second, fraction), m) for m in LOSSES]
            cells = ["" if one is None else interval(one.whole, 4) for one in found]
            rows.append([f"{second} less {first}, {fraction:g}x", *cells])
    return table(["modulation", *(measure.name for measure in LOSSES)], rows)


def _moved(runs: Values) -> str:
    """Where measured modulation ended: shifts and weights, mean and range over runs."""
    last: dict[str, list[list[float]]] = {"granularity_shift": [], "lambda_factor": []}
    for _, record in _cells(runs, "steered", "measured"):
        for key, rows in last.items():
            lines = [line[key] for line in record.get("modulation", []) if line.get(key)]
            if lines:
                rows.append([lines[-1][level] for level in GRANULARITIES])
    titles = {"granularity_shift": "shift of noise levels", "lambda_factor": "factor on the weight"}
    rows = []
    for key, values in last.items():
        if values:
            columns = np.array(values).T
            cells = [f"{number(c.mean(), 2)} ({number(c.min(), 2)} to {number(c.max(), 2)})" for c in columns]
            rows.append([f"{titles[key]}, {len(values)} runs", *cells])
    return table(["at the end of a run: mean (range)", *GRANULARITIES], rows)


def _cells(runs: Values, stage: str, arm: str) -> Iterable[tuple[Values, Values]]:
    for record in runs.values():
        if (record["cell"]["stage"], record["cell"]["arm"]) == (stage, arm):
            yield record["cell"], record


def _level(values: Values) -> Values:
    return next(grouping for grouping in values["groupings"] if grouping["name"] == "level")


def _cell(values: Values, point: str, t: float) -> Values | None:
    cells = _level(values)["cells"]
    return next((c for c in cells if (c["point"], c["captions"], c["t"]) == (point, "empty", t)), None)


def _heat_maps(values: Values, path: Path) -> None:
    """The model without adapter, one run of every arm, and a perfect fit."""
    points = ["without adapter", *(f"{arm}/seed0" for arm in ARMS["flux"]), values["perfect"]]
    shown = [point for point in points if point in values["points"] or point == values["perfect"]]
    title = f"{HEAT_DOMAIN}: terms of the local loss over its independent part, {FRACTION:g} N1"
    figure = map_figure(values, _level(values), "empty", "terms", title, shown)
    path.write_bytes(base64.b64decode(figure.drawing.light.partition(",")[2]))
