"""The geometry of finished runs: interference of the data fields and gradients of the levels, all arms at one point.

All arms of a domain are measured inside one opened run, on the same slices, query points and planned updates, so that
arms differ in their weights alone: the objective is the plain one on tuples, without modulation, whatever the arm was
trained on.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.fields import measure_interference
from flowgrain.diagnose.gradients import level_products, planned_updates
from flowgrain.diagnose.opened import OpenedRun, open_run
from flowgrain.diagnose.points import PRIOR, ModelPoint
from flowgrain.geometry.gradients import InteractionLog
from flowgrain.granularity import GRANULARITIES
from flowgrain.sample.run_folder import choose_checkpoint

from .cells import Cell
from .running import run_folder

HOST = "tuples"
"""The arm whose recipe says what is asked: slices in tuples, one law of noise levels for all."""
FRACTION = 1.0
LEVELS = (0.8, 0.9, 0.95, 0.98)
PROBE_EPOCH = 10_000
"""Of the plan whose updates are measured: noise that no run has seen."""


def point_name(cell: Cell) -> str:
    """``arm/seed``: how a run is called in the results of its domain."""
    return f"{cell.arm}/seed{cell.seed}"


def open_host(host: Cell, cells: Sequence[Cell], work: Path, queries: int, updates: int) -> OpenedRun:
    """The host's run with the checkpoints of all ``cells`` at 1.0 N1 as its points."""
    config = DiagnoseConfig(levels=LEVELS, queries=queries, updates=updates)
    opened = open_run(run_folder(host, work), config, [], work / "cache", lambda _what, _done, _total: None)
    found = []
    for cell in cells:
        checkpoint = choose_checkpoint(run_folder(cell, work), FRACTION)
        found.append(ModelPoint(checkpoint.update, checkpoint, point_name(cell)))
    return replace(opened, points=(PRIOR, *found))


def measure_fields(opened: OpenedRun) -> dict[str, Any]:
    """Interference of the data fields at all points, semantic levels and their random control alone."""
    found = measure_interference(opened, opened.config, lambda _what, _done, _total: None).as_json()
    kept = [grouping for grouping in found["groupings"] if grouping["name"] == "level" or grouping["control"]]
    return {**found, "groupings": kept}


def measure_level_gradients(opened: OpenedRun) -> dict[str, Any]:
    """By point: mean Gram matrices of the levels' gradients over the same updates, cosines, conflicts, losses."""
    updates = planned_updates(opened, PROBE_EPOCH, opened.config.updates)
    found = {}
    for point in opened.points:
        if point.checkpoint is None:
            continue
        with opened.at(point):
            measured = level_products(opened, updates)
        own, unbiased = InteractionLog(list(GRANULARITIES)), InteractionLog(list(GRANULARITIES))
        for products, _ in measured:
            own.add(products.whole())
            unbiased.add(products.unbiased())
        found[point.name] = {
            "gram": _rounded(own.mean_gram()),
            "gram_unbiased": _rounded(unbiased.mean_gram()),
            "cosines": [_rounded(products.whole().cosines) for products, _ in measured],
            "conflict_rate": [products.whole().conflict_rate for products, _ in measured],
            "cross_share": [products.whole().cross_share for products, _ in measured],
        }
    return found


def _rounded(matrix: Any) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in row] for row in matrix.tolist()]
