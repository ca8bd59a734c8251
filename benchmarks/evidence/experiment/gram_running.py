"""Run one cell of the diffusion stages: train, draw, measure pictures, structure and pull; one record of it all.

Training is that of the granularity experiment (``running.py``). What differs: held-out losses are those of whole
pictures, which is what all arms train on, pictures are drawn of whole-image prompts alone, and all measures are kept in
the cell's own record.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowgrain.demo.domains import Domain
from flowgrain.families.base import Family
from flowgrain.families.loading import unload_adapter
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.run_folder import Checkpoint, ModelChoice, choose_checkpoint
from flowgrain.sample.session import SamplePlan, draw, load_model
from flowgrain.train.log import read_log

from .cells import Arm, Cell
from .gram_design import BOTH, OFF_THE_SHELF, PAIRED, arm_of, design_of
from .gram_pull import measure_pull
from .gram_structure import Structure, held_out_pictures, measure_structure
from .gram_vae import vae_folder
from .measuring import ENCODERS, DomainMeasures, drawn_pictures
from .results import code_version
from .running import GUIDANCE, STEPS, pictures_folder, recipe, run, run_folder

MODEL = "tiny-flux"
LAST = 1.0
SEEDS_OF_PULL = (0,)
"""Pulls hardly differ by seed: of the first alone."""


def run_cell(cell: Cell, domain: Domain, work: Path, autoencoders: Path) -> dict[str, Any]:
    """The record of a cell, trained and measured; a tuned autoencoder is read under ``autoencoders``."""
    torch.set_num_threads(1)
    vae = _vae(cell, autoencoders)
    started, design, arm = time.process_time(), design_of(cell), _arm(cell, domain, vae)
    if arm is None:
        record: dict[str, Any] = {"key": cell.key, "cell": cell.as_dict(), "code": code_version()}
        checkpoint = None
    else:
        record = run(cell, arm, replace(design, drawn=()), domain, work)
        checkpoint = choose_checkpoint(run_folder(cell, work), LAST)
        record |= _watched(run_folder(cell, work))
        if arm.recipe in ("gram", "irepa", "repa") and cell.seed in SEEDS_OF_PULL:
            record["pull"] = measure_pull(recipe(cell, arm, design, domain, work), checkpoint.path)
    choice = ModelChoice(MODEL, None, "float32", vae=None if vae is None else str(vae))
    family = load_model(choice, torch.device("cpu"))
    plan = SamplePlan(
        run=cell.arm,
        model=choice,
        checkpoint=checkpoint,
        prompts=domain.shown_prompts,
        seeds=list(range(design.seeds)),
        config=SampleConfig(steps=STEPS, guidance=GUIDANCE["flux"], batch_size=40),
        out=pictures_folder(cell, work, None if checkpoint is None else LAST),
    )
    draw(family, plan, lambda _done, _total: None)
    measures = DomainMeasures(domain, ENCODERS, work)
    drawn = measures.with_reference(drawn_pictures(plan.out, domain)["whole"], "whole")
    record["pictures"] = measures.measure(drawn, "whole", ENCODERS)
    structure = Structure(held_out_pictures(domain, work, family.capabilities.pixel_multiple))
    with _adapted(family, checkpoint):
        record["structure"] = measure_structure(family, drawn, structure)
    record["core_seconds"] = round(time.process_time() - started, 1)
    return record


def about(domain: Domain, work: Path) -> dict[str, Any]:
    """What the measures of pictures are worth in a domain."""
    return DomainMeasures(domain, ENCODERS, work).about()


def _arm(cell: Cell, domain: Domain, vae: Path | None) -> Arm | None:
    """The cell's arm over what only this machine knows: where pictures and autoencoders lie."""
    arm = arm_of(cell)
    if arm is None:
        return None
    settings = [*arm.settings, f"validation.path={domain.holdout}"]
    if vae is not None:
        settings.append(f"model.vae={vae}")
    return replace(arm, settings=tuple(settings))


def _vae(cell: Cell, autoencoders: Path) -> Path | None:
    """The tuned autoencoder of a cell, of its seed; None for the model's own."""
    if cell.stage != BOTH or PAIRED[cell.arm].vae == OFF_THE_SHELF:
        return None
    return vae_folder("f8", PAIRED[cell.arm].vae, cell.seed, autoencoders)


@contextmanager
def _adapted(family: Family, checkpoint: Checkpoint | None) -> Iterator[None]:
    """The family with a checkpoint's adapter in its weights."""
    if checkpoint is None:
        yield
        return
    pipeline = family.pipeline(checkpoint.adapter)
    try:
        yield
    finally:
        unload_adapter(pipeline)


def _watched(folder: Path) -> dict[str, Any]:
    """What terms came to over the last quarter of a run's updates: their values and correlations of similarities."""
    lines = [line for line in read_log(folder) if line["kind"] == "update"]
    sums: dict[str, list[float]] = {}
    for line in lines[-max(len(lines) // 4, 1) :]:
        for name, levels in line.get("watched_by_level", {}).items():
            if "macro" in levels:
                sums.setdefault(name, []).append(levels["macro"])
    return {"watched": {name: round(sum(values) / len(values), 5) for name, values in sums.items()}} if sums else {}
