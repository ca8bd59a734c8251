"""Cost of measuring the levels' gradients while a run trains (`interference` in a recipe).

An embedded model and its recipe of the full method, 8 roots an update. ``measurement_over_update``: what a measured
update takes beside itself; ``sketch_over_update``: what an update takes whose step is sketched for ``oscillation``, the
last 16 before a measurement. Both against an ordinary update, in interleaved pairs: medians with a bootstrap interval.
``overhead`` is the part of the training time that follows for ``every: 50``; training keeps it under 5 per cent.

    python benchmarks/interference.py [--quick] [--arch flux|sdxl] [--every 50] [--micro-batch 32]
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from interleaved import ratio

from flowgrain.config import load_config
from flowgrain.data.records import Update
from flowgrain.demo.domains import load_domain
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.interference import Interference
from flowgrain.train.interference_steps import WINDOW, StepSketches
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.setup import Session, prepare
from flowgrain.train.step import run_update


def session(dataset: Path, arch: str, micro_batch: int) -> Session:
    """A prepared run of a packaged recipe on 32 roots that measures every update, without oscillation."""
    overrides = [f"data.path={dataset}", "data.max_roots=32", f"tuples.micro_batch={micro_batch}"]
    overrides += ["interference.every=1", "interference.oscillation=false"]
    recipe = load_config(Recipe, find_recipe(f"tiny-{arch}-granularity"), overrides)[0]
    return prepare(recipe, lambda _what, _done, _total: None)


def finish(run: Session) -> None:
    """Wait for the device."""
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def ordinary(run: Session, update: Update) -> None:
    """One update."""
    batches = (run.builder.build(micro, 0) for micro in update.micro_batches)
    run_update(run.objective, batches, run.optimizer, run.recipe.clip, run.autocast)
    finish(run)


def measure(run: Session, interference: Interference, update: Update) -> None:
    """What a measured update does beside itself."""
    interference.before(update, 1)
    interference.after(1)
    finish(run)


def sketch(run: Session, sketches: StepSketches) -> None:
    """What is done around an update whose step is sketched."""
    sketches.before(1)
    sketches.after(1)
    finish(run)


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Cost of measuring the levels' gradients while a run trains.")
    parser.add_argument("--quick", action="store_true", help="a few pairs only")
    parser.add_argument("--arch", choices=["flux", "sdxl"], default="flux")
    parser.add_argument("--every", type=int, default=50, help="updates between measurements")
    parser.add_argument("--micro-batch", type=int, default=32)
    options = parser.parse_args()
    pairs = 6 if options.quick else 40
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        domain = load_domain("openmoji")
        decompose(domain.train, dataset, load_config(DecomposeConfig, preset_path("tiny-128"), [])[0])
        run = session(dataset, options.arch, options.micro_batch)
    update, interference = run.plan(0)[0], run.interference
    if interference is None:
        raise RuntimeError("the recipe measures nothing")
    sketches = StepSketches(run.objective.parameters(), every=1)
    rows = {
        "measurement_over_update": ratio(
            lambda: measure(run, interference, update), lambda: ordinary(run, update), pairs
        ),
        "sketch_over_update": ratio(lambda: sketch(run, sketches), lambda: ordinary(run, update), pairs),
    }
    for name, (median, low, high) in rows.items():
        print(f"{name:28s} {median:.4f}  [{low:.4f}, {high:.4f}]  {pairs} pairs")
    sketched = min(WINDOW, options.every)
    overhead = (rows["measurement_over_update"][0] + sketched * rows["sketch_over_update"][0]) / options.every
    print(f"{'overhead':28s} {overhead:.2%}  every {options.every} updates, {sketched} of them sketched")
    result = {name: round(value[0], 4) for name, value in rows.items()}
    settings = {"arch": options.arch, "every": options.every, "device": run.device.type}
    print(json.dumps({"benchmark": "interference", **settings, **result, "overhead": round(overhead, 4)}))


if __name__ == "__main__":
    main()
