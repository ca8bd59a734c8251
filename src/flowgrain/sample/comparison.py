"""Draw the pictures of a protocol: every run at every budget, the same prompts and seeds, and the file that says so."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowgrain.adapters.source import recorded_fusions
from flowgrain.config import dump_yaml, load_config
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.evaluate.comparison import COMPARISON_NAME, ComparisonConfig, DatasetConfig, VariantConfig
from flowgrain.evaluate.protocol import ProtocolConfig
from flowgrain.families.base import Family
from flowgrain.files import atomic_write_text
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.run_folder import Checkpoint, ModelChoice, list_checkpoints, read_run
from flowgrain.sample.session import SampleOutcome, SamplePlan, draw

BASE = "base"


@dataclass(frozen=True)
class ComparisonRequest:
    """What is to be compared."""

    protocol: ProtocolConfig
    runs: dict[str, Path]
    """Name -> folder of ``flowgrain train``, in the order of columns."""
    base: bool
    """Whether the model without adapter is a variant too, the first one."""
    dataset: str
    description: str
    references: Path | None
    prompts: list[str]
    seeds: list[int]
    config: SampleConfig
    dtype: str | None
    out: Path


@dataclass(frozen=True)
class ComparisonPlan:
    """Sample folders to fill and the file that names them."""

    config: ComparisonConfig
    samples: tuple[SamplePlan, ...]
    notes: tuple[str, ...]
    """What the reader should know: too few prompts, a checkpoint that is only near its budget."""


@dataclass(frozen=True)
class _Chosen:
    run: str
    folder: Path
    model: ModelChoice
    checkpoint: Checkpoint
    fraction: float


def plan_comparison(request: ComparisonRequest) -> ComparisonPlan:
    """Choose checkpoints and name folders. Nothing is drawn or written.

    Raises ConfigError for no runs or two variants in one folder, CheckpointError for a run without checkpoints.
    """
    if not request.runs:
        raise ConfigError("--protocol compares runs: give --run NAME=FOLDER once for each")
    notes = _enough(request)
    chosen = [entry for name, folder in request.runs.items() for entry in _checkpoints(request, name, folder, notes)]
    if request.protocol.budgets is not None:  # columns as in the paper: all runs at one budget, then at the next
        chosen.sort(key=lambda entry: entry.fraction)
    variants, samples = [], []
    if request.base:
        variants.append(VariantConfig(name=BASE, pictures=Path(BASE)))
        samples.append(_sample_plan(request, BASE, chosen[0].model, None, Path(BASE)))
    for entry in chosen:
        title = f"{entry.run} {entry.fraction:g}x"
        folder = Path(_slug(title))
        if any(variant.pictures == folder for variant in variants):
            raise ConfigError(f"--run {entry.run}: its folder {folder} is another variant's; choose other names")
        variants.append(
            VariantConfig(
                name=title,
                pictures=folder,
                run=entry.run,
                fraction=entry.fraction,
                run_folder=_relative(entry.folder, request.out),
            )
        )
        samples.append(_sample_plan(request, entry.run, entry.model, entry.checkpoint, folder))
    references = None if request.references is None else _relative(request.references, request.out)
    dataset = DatasetConfig(
        name=request.dataset, description=request.description, references=references, variants=tuple(variants)
    )
    config = ComparisonConfig(protocol=request.protocol, datasets=(dataset,))
    return ComparisonPlan(config, tuple(samples), tuple(notes))


def draw_comparison(
    plan: ComparisonPlan,
    out: Path,
    load: Callable[[ModelChoice], Family],
    on_progress: Callable[[str, int, int], None],
) -> SampleOutcome:
    """Write ``comparison.yaml`` and draw what is missing, variant by variant.

    Raises ConfigError where ``out`` holds another comparison.
    """
    path = out / COMPARISON_NAME
    if path.exists() and load_config(ComparisonConfig, path, [])[0] != plan.config:
        raise ConfigError(f"{path}: another comparison; choose another --out, or remove that file to draw this one")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, dump_yaml(plan.config))
    drawn, kept = 0, 0
    loaded: tuple[object, Family] | None = None
    for variant, samples in zip(plan.config.datasets[0].variants, plan.samples, strict=True):
        key = (samples.model, _fused(samples))
        if loaded is None or loaded[0] != key:
            loaded = None  # the old weights go before the new ones come
            loaded = (key, load(samples.model))
        outcome = draw(loaded[1], samples, lambda done, total, name=variant.name: on_progress(name, done, total))
        drawn, kept = drawn + outcome.drawn, kept + outcome.kept
    return SampleOutcome(drawn, kept)


def _enough(request: ComparisonRequest) -> list[str]:
    protocol, notes = request.protocol, []
    if len(request.prompts) < protocol.prompts:
        notes.append(
            f"{len(request.prompts)} prompts; the {protocol.preset} protocol has at least {protocol.prompts}, and "
            "intervals rest on prompts"
        )
    if len(request.seeds) < protocol.seeds:
        notes.append(
            f"{len(request.seeds)} seeds a prompt; the {protocol.preset} protocol has at least {protocol.seeds}"
        )
    if request.references is None and protocol.references:
        notes.append(
            "no --references: judges and participants see no picture of the domain, distances are not measured"
        )
    return notes


def _checkpoints(request: ComparisonRequest, name: str, folder: Path, notes: list[str]) -> list[_Chosen]:
    _, model = read_run(folder)
    if request.dtype is not None:
        model = replace(model, dtype=request.dtype)
    marked = [(mark, checkpoint) for checkpoint in list_checkpoints(folder) for mark in checkpoint.budget_fractions]
    if not marked:
        raise CheckpointError(f"{folder}: no checkpoint that marks a budget yet; train on, or give another run")
    by_mark = dict(marked)  # of several at one mark the last counts
    if request.protocol.budgets is None:
        wanted = sorted(by_mark)
    else:
        wanted = [min(by_mark, key=lambda mark, budget=budget: abs(mark - budget)) for budget in _budgets(request)]
        for budget, mark in zip(_budgets(request), wanted, strict=True):
            if abs(mark - budget) > 1e-9 * budget:
                notes.append(f"{name}: no checkpoint at {budget:g} N1; the closest, {mark:g} N1, is drawn")
    return [
        _Chosen(name, folder, model, replace(by_mark[mark], budget_fraction=mark), mark)
        for mark in dict.fromkeys(wanted)
    ]


def _budgets(request: ComparisonRequest) -> Sequence[float]:
    return request.protocol.budgets or ()


def _sample_plan(
    request: ComparisonRequest, run: str, model: ModelChoice, checkpoint: Checkpoint | None, folder: Path
) -> SamplePlan:
    return SamplePlan(run, model, checkpoint, request.prompts, request.seeds, request.config, request.out / folder)


def _fused(samples: SamplePlan) -> tuple[str, ...]:
    """What the base weights must hold: fused weights cannot be unfused, so other ones need another model."""
    if samples.checkpoint is None:
        return ()
    return tuple(entry.sha256 for entry in recorded_fusions(samples.checkpoint.adapter))


def _relative(path: Path, out: Path) -> Path:
    """``path`` as seen from the comparison file, so that the whole tree can be moved."""
    return Path(os.path.relpath(path.absolute(), out.absolute()))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.") or "variant"
