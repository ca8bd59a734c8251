"""Speed of a training step: our loop against a bare PyTorch loop, granularity against baseline.

Both comparisons run on an embedded model with identical micro-batches, in interleaved pairs; the ratio's median and a
bootstrap interval are printed. ``loop_over_bare``: everything that our loop adds to forward, backward, clip and step.
``granularity_over_baseline``: tuple weights and modulated noise levels (flux) or loss weights (sdxl) on the same
micro-batches. On sdxl the text encoders train too, as its recipe has it, so both loops encode the captions.

    python benchmarks/train_step.py [--quick] [--arch flux|sdxl] [--kind lora|dora]
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from interleaved import ratio

from flowgrain.config import load_config
from flowgrain.data.records import Update
from flowgrain.demo.domains import load_domain
from flowgrain.families.base import ConditionInputs
from flowgrain.flow.paths import PathSample
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.setup import Session, prepare
from flowgrain.train.step import run_update


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class ReadyBatch:
    """A micro-batch with its noised latents, targets and times."""

    sample: PathSample
    inputs: ConditionInputs


def session(dataset: Path, recipe: str, kind: str) -> Session:
    """A prepared run of a packaged recipe on 32 roots."""
    overrides = [f"data.path={dataset}", "data.max_roots=32", f"adapter.kind={kind}", "tuples.micro_batch=8"]
    return prepare(load_config(Recipe, find_recipe(recipe), overrides)[0], silent)


def ours(run: Session, update: Update) -> None:
    """One update through our step."""
    batches = (run.builder.build(micro, 0) for micro in update.micro_batches)
    run_update(run.objective, batches, run.optimizer, run.recipe.clip, run.autocast)


def bare(run: Session, batches: list[ReadyBatch]) -> None:
    """The same update as a practitioner would write it: tensors at hand, no slice identities, no log."""
    parameters = [parameter for _, parameter in run.objective.parameters()]
    for batch in batches:
        with run.autocast():
            conditioning = run.family.condition(batch.inputs)
            output = run.family.predict(batch.sample.x_t, batch.sample.times, conditioning).prediction
            loss = (output.float() - batch.sample.target).square().mean() / len(batches)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def ready_batches(run: Session, update: Update) -> list[ReadyBatch]:
    """The micro-batches of an update, made outside the timed part."""
    ready = []
    for micro in update.micro_batches:
        batch = run.builder.build(micro, 0)
        t = run.objective.time_law.quantile(batch.u, batch.granularity, batch.tokens)
        inputs = replace(batch.inputs, grad=run.objective.adapter.trains_text)
        ready.append(ReadyBatch(run.objective.path(batch.x0, batch.noise, t), inputs))
    return ready


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few pairs only")
    parser.add_argument("--arch", choices=["flux", "sdxl"], default="flux")
    parser.add_argument("--kind", choices=["lora", "dora"], default="lora")
    options = parser.parse_args()
    pairs = 6 if options.quick else 40
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        domain = load_domain("openmoji")
        decompose(domain.train, dataset, load_config(DecomposeConfig, preset_path("tiny-128"), [])[0])
        full, plain = (
            session(dataset, f"tiny-{options.arch}-{method}", options.kind)
            for method in ("granularity", "slices-random")
        )
    update = full.plan(0)[0]
    same = Update(0, 0, update.roots, update.micro_batches)
    batches = ready_batches(full, update)
    rows = {
        "loop_over_bare": ratio(lambda: ours(full, update), lambda: bare(full, batches), pairs),
        "granularity_over_baseline": ratio(lambda: ours(full, update), lambda: ours(plain, same), pairs),
    }
    for name, (median, low, high) in rows.items():
        print(f"{name:28s} {median:.3f}  [{low:.3f}, {high:.3f}]  {pairs} pairs")
    fill = sum(len(m.slices) for u in full.plan(0) for m in u.micro_batches) / sum(
        len(u.micro_batches) for u in full.plan(0)
    )
    print(f"{'slices per micro-batch':28s} {fill:.2f} of 8")
    result = {name: round(value[0], 4) for name, value in rows.items()}
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "arch": options.arch,
                "kind": options.kind,
                **result,
                "fill": round(fill / 8, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
