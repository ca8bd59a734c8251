"""Train one cell with the package's own loop, draw its pictures, and say what came out.

A cell that was interrupted goes on where it stopped. Kept of a finished one: recipe, log, adapters of the checkpoints
that pictures are drawn at, and the pictures.
"""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowgrain.config import load_config
from flowgrain.data.images import list_images
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.demo.domains import Domain
from flowgrain.families.registry import load_family
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint, list_checkpoints
from flowgrain.sample.session import SamplePlan, draw
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.log import read_log
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.state import RUN_NAME

from .afterwards import measured_afterwards
from .cells import CUTS, Arm, Cell
from .results import code_version

GUIDANCE = {"flux": 2.5, "sdxl": 4.0}
"""At which each embedded model draws well, as in the demo."""
STEPS = 20
KEPT = {
    "interference": ("update", "levels", "cosine", "conflict_rate", "cross_share", "gram_unbiased", "oscillation"),
    "modulation": ("update", "granularity_shift", "lambda_factor", "centre_offset", "centre_error", "reason"),
}
"""What a record keeps of lines of these kinds in a run's log."""
BASE = "base"
"""The arm that is not trained."""


@dataclass(frozen=True)
class Design:
    """What all cells of a stage share."""

    amount: int
    """N1 in slices."""
    checkpoints: tuple[float, ...]
    """Multiples of N1 at which the held-out loss is measured; the last one ends the run."""
    drawn: tuple[float, ...] = ()
    """Those of them at which pictures are drawn."""
    seeds: int = 5
    """Pictures a prompt."""


def prepare(domain: Domain, images: Iterable[int | None], work: Path, cuts: Iterable[str] = ("slices",)) -> None:
    """Cut the pictures of a domain, held-out ones and training sets of these sizes; what is there is kept."""
    for count in {None, *images}:
        source = whole_pictures(domain, count, work)
        for name in cuts:
            _cut(domain, source, dataset(domain, count, work, name), CUTS[name])
    _cut(domain, domain.holdout, held_out(domain, work), ())


def whole_pictures(domain: Domain, images: int | None, work: Path) -> Path:
    """The folder of the first training pictures by name, all of them for None."""
    if images is None:
        return domain.train
    folder = work / "data" / f"{domain.name}-{images}" / "pictures"
    if not folder.exists():
        partial = folder.with_name("pictures.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in list_images(domain.train)[:images]:
            shutil.copy(path, partial)
            shutil.copy(path.with_suffix(".txt"), partial)
        partial.rename(folder)
    return folder


def dataset(domain: Domain, images: int | None, work: Path, cut: str = "slices") -> Path:
    """The decomposed training pictures."""
    return work / "data" / (domain.name if images is None else f"{domain.name}-{images}") / cut


def held_out(domain: Domain, work: Path) -> Path:
    """The decomposed held-out pictures."""
    return work / "data" / domain.name / "held_out"


def run_folder(cell: Cell, work: Path) -> Path:
    """Where a cell trains."""
    return work / "runs" / cell.key


def pictures_folder(cell: Cell, work: Path, fraction: float | None) -> Path:
    """Where a cell's pictures at a checkpoint are, those of the base model for None."""
    return work / "pictures" / cell.key / ("base" if fraction is None else f"{fraction:g}")


def recipe(cell: Cell, arm: Arm, design: Design, domain: Domain, work: Path) -> Recipe:
    """The packaged recipe of the arm with the cell's settings."""
    if arm.slices:
        source = dataset(domain, cell.images, work, arm.cut)
    else:
        source = whole_pictures(domain, cell.images, work)
    overrides = [
        f"data.path={source}",
        f"data.cache={work / 'cache'}",
        *(() if arm.steered else (f"validation.path={held_out(domain, work)}", "validation.keep_best=false")),
        f"output={run_folder(cell, work)}",
        f"budget.amount={design.amount}",
        f"budget.checkpoints={list(design.checkpoints)}",
        "save_every=null",
        f"adapter.kind={cell.adapter}",
        f"seed={cell.seed}",
        *arm.settings,
        *cell.settings,
    ]
    return load_config(Recipe, find_recipe(f"tiny-{cell.model}-{arm.recipe}"), overrides)[0]


def run(cell: Cell, arm: Arm | None, design: Design, domain: Domain, work: Path) -> dict[str, Any]:
    """Train and draw; the record for the results file."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    record: dict[str, Any] = {"key": cell.key, "cell": cell.as_dict(), "code": code_version()}
    if arm is None:
        _draw(cell, None, None, design, domain, work)
        return record
    chosen = recipe(cell, arm, design, domain, work)
    folder = run_folder(cell, work)
    if train(chosen, (folder / RUN_NAME).exists(), Observer()).interrupted:
        raise SystemExit(f"{cell.key}: stopped by a signal; run the stage again to go on")
    for fraction in design.drawn:
        _draw(cell, folder, fraction, design, domain, work)
    log = read_log(folder)
    updates = [line for line in log if line["kind"] == "update"]
    record |= {
        "n1": design.amount,
        "recipe_identity": chosen.identity(),
        "trainable_parameters": json.loads((folder / RUN_NAME).read_text())["trainable_parameters"],
        "updates": updates[-1]["update"],
        "training_seconds": round(updates[-1]["seconds"], 1),
        "seconds": round(time.perf_counter() - started, 1),
        "validation": [_validation(line) for line in log if "by_level" in line],
    }
    if arm.steered:
        lines = measured_afterwards(chosen, held_out(domain, work), folder)
        record["validation"] = [_validation(line) for line in lines]
    for kind, keys in KEPT.items():
        if lines := [line for line in log if line["kind"] == kind]:
            record[kind] = [_rounded({key: line[key] for key in keys if key in line}) for line in lines]
    return record


def _rounded(value: Any) -> Any:
    """Numbers of a line to five significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _validation(line: dict[str, Any]) -> dict[str, Any]:
    """Means by level and noise level, and by root, to five digits."""
    by_root = line["per_root_by_level"]
    roots = sorted(by_root["macro"])
    return {
        "slices": line["slices"],
        "fraction": line["budget_fraction"],
        "by_t": {level: [round(value, 5) for value in values] for level, values in line["by_level"].items()},
        "by_root": {level: [round(values[root], 5) for root in roots] for level, values in by_root.items()},
    }


def _cut(domain: Domain, source: Path, out: Path, settings: Sequence[str]) -> None:
    if (out / MANIFEST_NAME).exists():  # written last
        return
    config, _ = load_config(DecomposeConfig, preset_path("tiny-128"), [f"trigger={domain.trigger}", *settings])
    decompose(source, out, config, lambda _name, _done, _total: None)


def _draw(cell: Cell, folder: Path | None, fraction: float | None, design: Design, domain: Domain, work: Path) -> None:
    checkpoint = None if folder is None or fraction is None else choose_checkpoint(folder, fraction)
    model = f"tiny-{cell.model}"
    plan = SamplePlan(
        run=cell.arm,
        model=ModelChoice(model, None, "float32"),
        checkpoint=checkpoint,
        prompts=[*domain.shown_prompts, *domain.close_up_prompts],
        seeds=list(range(design.seeds)),
        config=SampleConfig(steps=STEPS, guidance=GUIDANCE[cell.model], batch_size=40),
        out=pictures_folder(cell, work, fraction),
    )
    draw(load_family(model, None, torch.float32, torch.device("cpu")), plan, lambda _done, _total: None)


def tidy(cell: Cell, design: Design, work: Path) -> None:
    """Delete what only a resume needs, once the record is written: it is most of a run's bytes."""
    for checkpoint in list_checkpoints(run_folder(cell, work)):
        if set(checkpoint.budget_fractions) & set(design.drawn):
            for name in ("trainable.safetensors", "optimizer.pt"):
                (checkpoint.path / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(checkpoint.path)


def held_out_picture(domain: Domain, work: Path, caption: str) -> Path | None:
    """The held-out real slice that a caption names."""
    folder = held_out(domain, work)
    for line in (folder / MANIFEST_NAME).read_text(encoding="utf-8").splitlines():
        record = SliceRecord.model_validate_json(line)
        if record.caption == caption:
            return folder / record.path
    return None
