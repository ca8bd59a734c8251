"""Draw what is missing in a sample folder and keep its manifest true at every moment."""

from dataclasses import dataclass
from pathlib import Path

import torch

from flowgrain.adapters.fusing import fuse_recorded
from flowgrain.adapters.source import init_digest
from flowgrain.families.base import Family
from flowgrain.families.fingerprint import module_digest
from flowgrain.families.registry import load_family
from flowgrain.files import atomic_write_bytes
from flowgrain.sample.generate import ProgressCallback, SampleConfig, generate_pairs, picture_size
from flowgrain.sample.manifest import Provenance, done_already, plan_records, write_manifest
from flowgrain.sample.pictures import png_bytes
from flowgrain.sample.run_folder import Checkpoint, ModelChoice


@dataclass(frozen=True)
class SamplePlan:
    """What to draw, with which weights, and where to."""

    run: str
    model: ModelChoice
    checkpoint: Checkpoint | None
    prompts: list[str]
    seeds: list[int]
    config: SampleConfig
    out: Path


@dataclass(frozen=True)
class SampleOutcome:
    """What was drawn."""

    drawn: int
    kept: int


def load_model(choice: ModelChoice, device: torch.device) -> Family:
    """The model of a choice, along the path that the choice says; raises as :func:`load_family`."""
    dtype = getattr(torch, choice.dtype)
    family = load_family(choice.path, choice.family, dtype, device, config=choice.config, vae=choice.vae)
    if choice.prediction is not None or choice.zero_terminal_snr is not None:
        family.override_path(choice.prediction, choice.zero_terminal_snr)
    return family


def draw(family: Family, plan: SamplePlan, on_progress: ProgressCallback) -> SampleOutcome:
    """Draw the plan's pictures that ``plan.out`` lacks; a run that was interrupted goes on where it stopped.

    ``family`` is the plan's model (:func:`load_model`). An adapter that was trained on top of fused ones gets them
    fused first. Raises ConfigError for an unusable size or an output folder of other pictures, CheckpointError where a
    fused adapter is gone.
    """
    if plan.checkpoint is not None:
        fuse_recorded(family, plan.checkpoint.adapter)  # before the model's digest is taken
    records = plan_records(_provenance(family, plan), plan.prompts, plan.seeds)
    lines = done_already(plan.out, records)
    kept = {record.file for record in lines}
    pairs = [(index, seed) for index in range(len(plan.prompts)) for seed in plan.seeds]
    missing = [(record, pair) for record, pair in zip(records, pairs, strict=True) if record.file not in kept]
    by_pair = {pair: record for record, pair in missing}
    write_manifest(plan.out, lines)
    if missing:
        adapter = plan.checkpoint.adapter if plan.checkpoint else None
        todo = [pair for _, pair in missing]
        pictures = generate_pairs(family, adapter, plan.prompts, todo, plan.config, on_progress)
        for index, seed, image in pictures:
            record = by_pair[index, seed]
            atomic_write_bytes(plan.out / record.file, png_bytes(image))
            lines.append(record)
            write_manifest(plan.out, lines)
    return SampleOutcome(drawn=len(missing), kept=len(records) - len(missing))


def _provenance(family: Family, plan: SamplePlan) -> Provenance:
    height, width = picture_size(family, plan.config)
    checkpoint = plan.checkpoint
    return Provenance(
        run=plan.run,
        checkpoint=checkpoint.path.name if checkpoint else None,
        budget_fraction=checkpoint.budget_fraction if checkpoint else None,
        model=plan.model.path,
        model_fingerprint=f"{family.fingerprint()}-{module_digest({family.backbone_name: family.backbone})}",
        adapter_sha256=init_digest(checkpoint.adapter) if checkpoint else None,
        dtype=plan.model.dtype,
        sampler=plan.config.sampler,
        steps=plan.config.steps,
        guidance=plan.config.guidance,
        height=height,
        width=width,
    )
