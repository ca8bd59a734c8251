"""The dry run: from images to slices to updates, before anything is computed."""

from collections import Counter

import torch

from flowgrain.align.terms.base import AlignmentTerm
from flowgrain.data.cache import forecast_bytes
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.tuples import plan_epoch
from flowgrain.families.registry import load_skeleton, read_capabilities
from flowgrain.train.alignment import build_terms, layouts_of, open_encoders, reference_bytes, shapes_of
from flowgrain.train.memory_forecast import MemoryModel, largest_micro_batch, shape_of
from flowgrain.train.recipe import Recipe
from flowgrain.train.setup import choose_device, choose_precision, open_data
from flowgrain.train.sizes import size_cost


def forecast(recipe: Recipe) -> str:
    """What a run of ``recipe`` would do, as text: reads the data and the model's configuration, no weights.

    Raises the same errors as the run for data and configuration that cannot be used.
    """
    device = choose_device(recipe.device)
    capabilities = read_capabilities(recipe.model.path, recipe.model.config, recipe.model.vae)
    adapter = recipe.adapter
    what = "all weights" if adapter.kind == "full" else f"{adapter.kind} rank {adapter.rank}"
    dataset, _ = open_data(recipe, capabilities.pixel_multiple)
    plan = plan_epoch(dataset.table, recipe.tuples, recipe.seed, epoch=0)
    return "\n".join(
        [
            f"recipe {recipe.name}: {what} on {recipe.model.path}, "
            f"{choose_precision(recipe.precision, device)} on {device}",
            *_data_lines(dataset),
            caption_line(recipe, dataset),
            *_alignment_lines(recipe, dataset, capabilities.latent_scale),
            *_plan_lines(recipe, plan),
            _budget_line(recipe, plan),
            *_memory_lines(recipe, dataset, plan, device),
            *_size_lines(recipe, dataset, plan),
            f"cache: {forecast_bytes(dataset, capabilities) / 2**20:.1f} MiB of latents "
            f"({len(dataset.slices)} slices x {len(dataset.flips)} mirror states)",
            "time: not forecast; --trial-update measures one micro-batch and extrapolates",
            f"output: {recipe.output}",
        ]
    )


def _alignment_lines(recipe: Recipe, dataset: SliceDataset, latent_scale: int) -> list[str]:
    """A line a term, and what their reference tokens take; raises ModelError for a tap that is not there."""
    configs = recipe.terms_in_force
    if not configs:
        return []
    encoders = open_encoders(configs, torch.device("cpu"))
    terms = build_terms(recipe, shapes_of(configs, layouts_of(recipe), encoders), torch.device("meta"))
    lines = [_term_line(term, encoders[term.config.encoder].name, dataset, latent_scale) for term in terms]
    size = reference_bytes(terms, dataset, encoders, latent_scale) / 2**20
    kept = "encoded in every update (data.cache)" if recipe.data.cache is False else f"{size:.1f} MiB in the cache"
    return [*lines, f"align: reference tokens are {kept}"]


def _term_line(term: AlignmentTerm, encoder: str, dataset: SliceDataset, latent_scale: int) -> str:
    config, shape = term.config, term.shape
    sizes = sorted({term.grid(height // latent_scale, width // latent_scale) for width, height in
                    {item.bucket for item in dataset.slices}})  # fmt: skip
    grids = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    head = sum(parameter.numel() for parameter in term.head().parameters())
    return (
        f"align: {config.name}, weight {config.weight:g}: {config.tap} ({shape.width} channels) through {head:,} "
        f"parameters to {encoder}, on grids of {grids}"
    )


def _memory_lines(recipe: Recipe, dataset: SliceDataset, plan: list[Update], device: torch.device) -> list[str]:
    shape = shape_of(dataset, largest_micro_batch(dataset, plan))
    return MemoryModel(recipe, device, choose_precision(recipe.precision, device)).forecast(shape).lines()


def _size_lines(recipe: Recipe, dataset: SliceDataset, plan: list[Update]) -> list[str]:
    """What the largest pictures cost, by the model's configuration files."""
    model, shape = recipe.model, shape_of(dataset, largest_micro_batch(dataset, plan))
    family = load_skeleton(model.path, model.family, getattr(torch, model.dtype), model.config, model.vae)
    embedding = family.embed_text(["a"])
    return size_cost(family, embedding, shape.width, shape.height, model.guidance, recipe.memory.vae_tiling).lines()


def _data_lines(dataset: SliceDataset) -> list[str]:
    levels = Counter(s.level for s in dataset.slices)
    tuples = Counter(Counter(s.root for s in dataset.slices).values())
    buckets = Counter(s.bucket for s in dataset.slices)
    lines = [
        f"data: {len({s.root for s in dataset.slices})} roots, {len(dataset.slices)} slices ("
        + ", ".join(f"{count} {level}" for level, count in levels.items())
        + ")",
        "slices per root: " + ", ".join(f"{count} roots of {size}" for size, count in sorted(tuples.items())),
        "buckets: " + ", ".join(f"{w}x{h}: {count}" for (w, h), count in sorted(buckets.items())),
    ]
    if dataset.missing_captions:
        lines.append(f"captions: missing for {dataset.missing_captions} of {len(dataset.slices)} slices")
    return lines + [f"left out: {path}: {reason}" for path, reason in dataset.problems]


def caption_line(recipe: Recipe, dataset: SliceDataset) -> str:
    """How the captions of a run come to the model."""
    if recipe.trains_text:
        return "text: encoders train, captions are encoded in every update"
    if not recipe.data.caches_text:
        return "text: captions are encoded in every update (data.cache_text)"
    return f"text: {len(dataset.captions(recipe.seed))} captions are encoded once and kept"


def _plan_lines(recipe: Recipe, plan: list[Update]) -> list[str]:
    units = "roots" if recipe.tuples.grouping != "slice" else "slices"
    micro = sum(len(update.micro_batches) for update in plan)
    slices = sum(update.slices for update in plan)
    last = plan[-1].roots if recipe.tuples.grouping != "slice" else plan[-1].slices
    smallest = min(update.slices for update in plan)
    return [
        f"epoch: {len(plan)} updates of {recipe.tuples.batch_size} {units}, {slices} slices in {micro} micro-batches "
        f"({slices / micro:.1f} slices each); last update: {last} {units}, smallest: {smallest} slices",
    ]


def _budget_line(recipe: Recipe, plan: list[Update]) -> str:
    budget = recipe.budget
    total = budget.amount * budget.checkpoints[-1]
    slices = sum(update.slices for update in plan)
    if budget.unit == "seconds":
        return f"budget: {total:g} seconds, checkpoints at " + ", ".join(f"{m:g} N1" for m in budget.checkpoints)
    per_epoch = len(plan) if budget.unit == "updates" else slices
    epochs = total / per_epoch
    return (
        f"budget: {total:g} {budget.unit} = {epochs:.1f} epochs = about {epochs * len(plan):.0f} updates and "
        f"{epochs * slices:.0f} slices, checkpoints at " + ", ".join(f"{m:g} N1" for m in budget.checkpoints)
    )
