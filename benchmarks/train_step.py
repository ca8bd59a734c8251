"""Speed of a training step: our loop against a bare PyTorch loop, granularity against baseline.

Both comparisons run on the embedded model with identical micro-batches, in interleaved pairs; the ratio's median and a
bootstrap interval are printed. ``loop_over_bare``: everything that our loop adds to forward, backward, clip and step.
``granularity_over_baseline``: tuple weights and modulated noise levels on the same micro-batches.

    python benchmarks/train_step.py [--quick] [--kind lora|dora]
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
from flowgrain.families.base import ConditionInputs, TextEmbedding
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.setup import Session, prepare
from flowgrain.train.step import run_update


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def session(dataset: Path, method: str, kind: str) -> Session:
    """A prepared run of a packaged recipe on 32 roots."""
    overrides = [f"data.path={dataset}", "data.max_roots=32", f"adapter.kind={kind}", "tuples.micro_batch=8"]
    return prepare(load_config(Recipe, find_recipe(f"tiny-flux-{method}"), overrides)[0], silent)


def ours(run: Session, update: Update) -> None:
    """One update through our step."""
    batches = (run.builder.build(micro, 0) for micro in update.micro_batches)
    run_update(run.objective, batches, run.optimizer, run.recipe.clip, run.autocast)


def bare(run: Session, batches: list[tuple[torch.Tensor, ...]], guidance: float) -> None:
    """The same update as a practitioner would write it: tensors at hand, no slice identities, no log."""
    parameters = [parameter for _, parameter in run.objective.parameters()]
    for x_t, target, t, embedding, pooled in batches:
        with run.autocast():
            text = TextEmbedding({"prompt_embeds": embedding, "pooled_prompt_embeds": pooled})
            conditioning = run.family.condition(ConditionInputs(None, text, guidance))
            output = run.family.predict(x_t, t[:, None], conditioning).prediction
            loss = (output.float() - target).square().mean() / len(batches)
        loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)


def ready_batches(run: Session, update: Update) -> list[tuple[torch.Tensor, ...]]:
    """Noised latents, targets, times and embeddings of an update, made outside the timed part."""
    ready = []
    for micro in update.micro_batches:
        batch = run.builder.build(micro, 0)
        t = run.objective.time_law.quantile(batch.u, batch.granularity, batch.tokens)
        sample = run.objective.path(batch.x0, batch.noise, t)
        embedding = batch.inputs.embedding
        assert embedding is not None
        tensors = embedding.tensors
        ready.append((sample.x_t, sample.target, t, tensors["prompt_embeds"], tensors["pooled_prompt_embeds"]))
    return ready


def main() -> None:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few pairs only")
    parser.add_argument("--kind", choices=["lora", "dora"], default="lora")
    options = parser.parse_args()
    pairs = 6 if options.quick else 40
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "dataset"
        domain = load_domain("openmoji")
        decompose(domain.train, dataset, load_config(DecomposeConfig, preset_path("tiny-128"), [])[0])
        full, plain = session(dataset, "granularity", options.kind), session(dataset, "slices-random", options.kind)
    update = full.plan(0)[0]
    same = Update(0, 0, update.roots, update.micro_batches)
    batches = ready_batches(full, update)
    rows = {
        "loop_over_bare": ratio(lambda: ours(full, update), lambda: bare(full, batches, 1.0), pairs),
        "granularity_over_baseline": ratio(lambda: ours(full, update), lambda: ours(plain, same), pairs),
    }
    for name, (median, low, high) in rows.items():
        print(f"{name:28s} {median:.3f}  [{low:.3f}, {high:.3f}]  {pairs} pairs")
    fill = sum(len(m.slices) for u in full.plan(0) for m in u.micro_batches) / sum(
        len(u.micro_batches) for u in full.plan(0)
    )
    print(f"{'slices per micro-batch':28s} {fill:.2f} of 8")
    result = {name: round(value[0], 4) for name, value in rows.items()}
    print(json.dumps({"benchmark": "train_step", "kind": options.kind, **result, "fill": round(fill / 8, 3)}))


if __name__ == "__main__":
    main()
