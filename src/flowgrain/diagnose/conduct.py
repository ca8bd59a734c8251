"""Measure the sections of a diagnosis that are missing, and keep each as soon as it is done."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain import __version__
from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.opened import OpenedRun, Progress, open_run
from flowgrain.diagnose.points import ModelPoint, choose_points, find_checkpoints
from flowgrain.diagnose.sections import NotMeasurable, SectionEntry
from flowgrain.diagnose.store import FORMAT, Record, read_document, section_digest, write_document

CACHE_NAME = "cache"


@dataclass(frozen=True)
class Plan:
    """What a diagnosis will measure."""

    run: Path
    out: Path
    config: DiagnoseConfig
    overrides: tuple[str, ...]
    sections: tuple[SectionEntry, ...]
    points: tuple[ModelPoint, ...]
    pending: tuple[SectionEntry, ...]
    """Sections that the file lacks or has of other settings."""
    document: dict[str, Any] | None
    """What the file has."""

    def digest(self, entry: SectionEntry) -> str:
        """See :func:`flowgrain.diagnose.store.section_digest`."""
        return section_digest(entry.name, self.config, self.run, self.points, self.overrides, entry.reads_log)


def make_plan(
    run: Path,
    out: Path,
    config: DiagnoseConfig,
    overrides: Sequence[str],
    sections: tuple[SectionEntry, ...],
    fresh: bool,
) -> Plan:
    """Read the run's checkpoints and what was measured before; loads no model.

    Raises CheckpointError where there is no run or checkpoint, ConfigError where the file is damaged.
    """
    points = choose_points(find_checkpoints(run), config.checkpoints, config.max_checkpoints)
    document = None if fresh else read_document(out)
    plan = Plan(run, out, config, tuple(overrides), sections, points, sections, document)
    kept = {} if document is None else document["sections"]
    pending = tuple(
        entry for entry in sections if entry.name not in kept or kept[entry.name]["digest"] != plan.digest(entry)
    )
    return Plan(run, out, config, tuple(overrides), sections, points, pending, document)


def conduct(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Measure what is pending, writing the file after each section; returns the document.

    Sections of the file that were not asked for stay, unless they are of other settings.
    """
    document = plan.document
    if plan.pending or document is None:
        opened = open_run(plan.run, plan.config, plan.overrides, plan.out / CACHE_NAME, progress)
        before = {} if document is None else document["sections"]
        pending = {entry.name for entry in plan.pending}
        document = _document(opened, plan)
        document["sections"] = {name: kept for name, kept in before.items() if name not in pending}
        for entry in plan.pending:
            document["sections"][entry.name] = _measure(opened, plan, entry, progress).as_json()
            write_document(plan.out, document)
    return document


def _measure(opened: OpenedRun, plan: Plan, entry: SectionEntry, progress: Progress) -> Record:
    started = time.perf_counter()
    values, reason = None, None
    try:
        values = entry.measure(opened, plan.config, progress)
    except NotMeasurable as told:
        reason = str(told)
    return Record(plan.digest(entry), time.perf_counter() - started, values, reason)


def _document(opened: OpenedRun, plan: Plan) -> dict[str, Any]:
    recipe = opened.recipe
    levels = Counter(item.level for item in opened.train.dataset.slices)
    return {
        "format": FORMAT,
        "flowgrain": __version__,
        "run": {
            "name": recipe.name,
            "folder": opened.folder.name,
            "model": recipe.model.path,
            "adapter": recipe.adapter.kind,
            "rank": None if recipe.adapter.kind == "full" else recipe.adapter.rank,
            "moving_average": recipe.ema is not None,
            "grouping": recipe.tuples.grouping,
            "slices": opened.slices_in_run,
            "measured_slices": len(opened.train.dataset),
            "slices_by_level": dict(sorted(levels.items())),
            "held_out_slices": None if opened.held_out is None else len(opened.held_out.dataset),
            "trainable_parameters": sum(value.numel() for _, value in opened.adapter.parameters()),
            "points": [{"name": point.name, "update": point.update} for point in opened.points],
            "updates_logged": max((line["update"] for line in opened.log if line["kind"] == "update"), default=0),
            "device": str(opened.device),
            "precision": opened.precision,
        },
        "config": plan.config.model_dump(mode="json"),
        "overrides": list(plan.overrides),
        "sections": {},
    }
