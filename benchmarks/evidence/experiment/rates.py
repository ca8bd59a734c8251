"""The learning rate of every arm: chosen on domains kept aside, by the same rule for all.

The rule: lowest held-out loss of whole pictures at 1.0 N1, mean over the domains kept aside. Whole pictures are what
every arm is judged by. An arm whose best rate is the first or last of the grid gets the next one, until it is inside.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .cells import Adapter, Cell, Model
from .domains import CHOOSING

STAGE = "rates"
GRIDS: dict[Model, tuple[float, ...]] = {"flux": (8e-4, 1.6e-3, 3.2e-3), "sdxl": (1e-4, 3e-4, 1e-3)}
STEPS: dict[Model, float] = {"flux": 2.0, "sdxl": 10**0.5}
"""Factor to the next rate beyond the grid."""
SEED = 0

Triple = tuple[Model, Adapter, str]


def rate_settings(model: Model, rate: float) -> tuple[str, ...]:
    """A learning rate as settings; text encoders train at a tenth of it (Table 5)."""
    if model == "flux":
        return (f"optimizer.lr={rate:g}",)
    return (f"optimizer.lr={rate:g}", f"optimizer.lrs={{text_encoder*: {rate / 10:g}}}")


def rate_cells(triples: Sequence[Triple], records: Mapping[str, Any]) -> Iterator[Cell]:
    """Runs of every arm at every rate, also beyond the grid where ``records`` say that the best is its edge."""
    for domain in CHOOSING:
        for model, adapter, arm in triples:
            for rate in _grid((model, adapter, arm), records):
                yield _cell((model, adapter, arm), domain, rate)


def chosen_rates(triples: Sequence[Triple], records: Mapping[str, Any]) -> dict[str, Any]:
    """``rates`` by ``model/adapter/arm`` and the losses that they were chosen by, without arms that lack a run."""
    rates: dict[str, float] = {}
    losses: dict[str, dict[str, Any]] = {}
    for triple in triples:
        by_rate = {rate: _losses(triple, rate, records) for rate in _grid(triple, records)}
        if all(by_rate.values()):
            name = "/".join(triple)
            found = {rate: values for rate, values in by_rate.items() if values}
            rates[name] = min(found, key=lambda rate: found[rate]["macro"])
            losses[name] = {f"{rate:g}": {k: round(v, 5) for k, v in values.items()} for rate, values in found.items()}
    return {"rule": "lowest macro loss at 1.0 N1, mean over " + ", ".join(CHOOSING), "rates": rates, "losses": losses}


def read_rates(path: Path) -> dict[str, float]:
    """What was chosen; empty before."""
    return json.loads(path.read_text(encoding="utf-8"))["rates"] if path.exists() else {}


def _grid(triple: Triple, records: Mapping[str, Any]) -> list[float]:
    model = triple[0]
    grid, step = list(GRIDS[model]), STEPS[model]
    while True:
        losses = [_losses(triple, rate, records) for rate in grid]
        if not all(losses):
            return grid
        best = min(range(len(grid)), key=lambda place: losses[place]["macro"])
        if best == 0:
            grid.insert(0, _round(grid[0] / step))
        elif best == len(grid) - 1:
            grid.append(_round(grid[-1] * step))
        else:
            return grid


def _losses(triple: Triple, rate: float, records: Mapping[str, Any]) -> dict[str, float]:
    """Mean over the domains of the loss by level; empty where a run is missing."""
    found: dict[str, list[float]] = defaultdict(list)
    for domain in CHOOSING:
        record = records.get(_cell(triple, domain, rate).key)
        if record is None:
            return {}
        for level, values in record["validation"][-1]["by_root"].items():
            found[level].append(mean(values))
    return {level: mean(values) for level, values in found.items()}


def _cell(triple: Triple, domain: str, rate: float) -> Cell:
    model, adapter, arm = triple
    settings = rate_settings(model, rate)
    return Cell(STAGE, model, adapter, domain, arm, SEED, None, settings, label=f"lr{rate:g}")


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")
