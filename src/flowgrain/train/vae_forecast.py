"""The dry run of an autoencoder's fine-tuning: pictures, updates, memory, before anything is computed."""

from collections import Counter
from dataclasses import replace

import torch
from diffusers import AutoencoderKL
from torch import nn

from flowgrain.align.encoders.registry import open_structure_encoder
from flowgrain.align.features import forecast_feature_bytes
from flowgrain.align.grids import Grid
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.tuples import plan_epoch
from flowgrain.train.activations import trace_pass
from flowgrain.train.memory_forecast import CUDA_CONTEXT, MemoryForecast, Shape, largest_micro_batch, shape_of
from flowgrain.train.optimizers import state_bytes
from flowgrain.train.setup import choose_device, choose_precision
from flowgrain.train.vae_batches import GramTerm
from flowgrain.train.vae_recipe import VaeRecipe
from flowgrain.train.vae_setup import load_autoencoder, open_pictures, stage_models, trained_parameters
from flowgrain.vae.config import VaeLossConfig
from flowgrain.vae.deeper import cell_pixels, depth_of
from flowgrain.vae.losses import StageBatch, StageModels, generator_losses

MIB = 2**20


def forecast_vae(recipe: VaeRecipe) -> str:
    """What a run of ``recipe`` would do, as text. Reads the data and the weights, which are small; computes nothing.

    Raises the same errors as the run for a model and data that cannot be used.
    """
    device = choose_device(recipe.device)
    precision = choose_precision(recipe.precision, device)
    vae = load_autoencoder(recipe)
    dataset, held_out = open_pictures(recipe, cell_pixels(vae))
    plan = plan_epoch(dataset.table, recipe.tuples, recipe.seed, epoch=0)
    shape = shape_of(dataset, largest_micro_batch(dataset, plan))
    if recipe.crop is not None:
        shape = replace(shape, height=recipe.crop, width=recipe.crop)
    what = {"both": "encoder and decoder"}.get(recipe.train, recipe.train)
    stride = f"f{cell_pixels(vae)}" + (f" ({depth_of(vae).doublings} doublings)" if depth_of(vae).doublings else "")
    gram = _Gram.of(recipe, vae, dataset)
    return "\n".join(
        [
            f"recipe {recipe.name}: {what} of {recipe.model.path}, {stride}, {precision} on {device}",
            *_data_lines(dataset, held_out),
            _loss_line(recipe.losses, depth_of(vae).doublings > 0),
            *gram.lines(recipe),
            *_plan_lines(recipe, plan),
            *_memory(recipe, vae, gram, shape, device, precision).lines(),
            "time: not forecast; run a few updates (budget.amount=5) and read update_seconds in metrics.jsonl",
            f"output: {recipe.output}",
        ]
    )


class _Gram:
    """The head, its grid and its features, None each where there is no Gram loss."""

    def __init__(self, term: GramTerm | None, grids: dict[tuple[int, int], Grid], width: int, bytes_kept: int):
        self.term = term
        self.grids = grids
        self.width = width
        self._bytes_kept = bytes_kept

    @staticmethod
    def of(recipe: VaeRecipe, vae: AutoencoderKL, dataset: SliceDataset) -> "_Gram":
        """Opens the reference, whose width decides the head's."""
        config = recipe.gram
        if config is None or not recipe.gram_trains:
            return _Gram(None, {}, 0, 0)
        encoder = open_structure_encoder(config.encoder)
        head = config.head.build(vae.config["latent_channels"], encoder.width, recipe.seed, "vae gram")
        cell = cell_pixels(vae)

        def rule(height: int, width: int) -> Grid:
            return config.grid.of(
                height, width, encoder.grid_multiple, head.output_grid(Grid(height // cell, width // cell))
            )

        sizes = {(recipe.crop, recipe.crop)} if recipe.crop else {(s.bucket[1], s.bucket[0]) for s in dataset.slices}
        kept = forecast_feature_bytes(dataset, encoder.width, rule, config.kept) if recipe.crop is None else 0
        grids = {size: rule(*size) for size in sorted(sizes)}
        return _Gram(GramTerm(head, config.centred), grids, encoder.width, kept)

    def lines(self, recipe: VaeRecipe) -> list[str]:
        """The reference, in a line."""
        if self.term is None or recipe.gram is None:
            return []
        grids = ", ".join(dict.fromkeys(str(grid) for grid in self.grids.values()))
        live = recipe.crop is not None or recipe.data.cache is False
        kept = "encoded in every update" if live else f"{self._bytes_kept / MIB:.1f} MiB of features kept"
        head = sum(parameter.numel() for parameter in self.term.head.parameters())
        return [f"gram: {recipe.gram.encoder.model} on {grids}, head of {head:,} parameters, {kept}"]


def _data_lines(dataset: SliceDataset, held_out: SliceDataset | None) -> list[str]:
    buckets = Counter(s.bucket for s in dataset.slices)
    shown = ", ".join(f"{w}x{h}: {count}" for (w, h), count in sorted(buckets.items()))
    beside = f", {len(held_out)} held out" if held_out is not None else ""
    lines = [f"data: {len(dataset)} pictures{beside}", f"buckets: {shown}"]
    return lines + [f"left out: {path}: {reason}" for path, reason in dataset.problems]


def _loss_line(losses: VaeLossConfig, deeper: bool) -> str:
    scale = float(deeper) if losses.scale.weight is None else losses.scale.weight
    weights = {
        "perceptual": losses.perceptual.weight,
        "adversarial": losses.adversarial.weight,
        "kl": losses.kl,
        "gram": losses.gram.weight,
        "moments": losses.moments.weight,
        "scale": scale,
    }
    shown = [f"{name} {weight:g}" for name, weight in weights.items() if weight]
    return f"losses: {' + '.join([f'reconstruction ({losses.reconstruction.norm}) 1', *shown])}"


def _plan_lines(recipe: VaeRecipe, plan: list[Update]) -> list[str]:
    budget, micro = recipe.budget, sum(len(update.micro_batches) for update in plan)
    slices = sum(update.slices for update in plan)
    total = budget.amount * budget.checkpoints[-1]
    marks = ", ".join(f"{mark:g} N1" for mark in budget.checkpoints)
    lines = [f"epoch: {len(plan)} updates, {slices} slices in {micro} micro-batches"]
    if budget.unit == "seconds":
        return [*lines, f"budget: {total:g} seconds, checkpoints at {marks}"]
    epochs = total / (len(plan) if budget.unit == "updates" else slices)
    return [*lines, f"budget: {total:g} {budget.unit} = {epochs:.1f} epochs, checkpoints at {marks}"]


def _memory(
    recipe: VaeRecipe, vae: AutoencoderKL, gram: _Gram, shape: Shape, device: torch.device, precision: str
) -> MemoryForecast:
    """Bytes by part; activations are those of the autoencoder's pass, found without values."""
    meta = torch.device("meta")
    models = stage_models(recipe, vae, meta)
    own = [one for _, one in trained_parameters(recipe.train, vae)]
    term = GramTerm(gram.term.head.to(meta), gram.term.centred) if gram.term is not None else None
    head = list(term.head.parameters()) if term is not None else []
    critic = list(models.discriminator.parameters()) if models.discriminator is not None else []
    everything: list[nn.Module] = [vae, *([term.head] if term is not None else [])]
    everything += [one for one in (models.discriminator, models.perceptual) if one is not None]
    weights = [tensor for module in everything for tensor in (*module.parameters(), *module.buffers())]
    if models.teacher is not None:
        weights += list(models.teacher.vae.parameters())
    trained = [*own, *head, *critic]
    named = [(str(index), parameter) for index, parameter in enumerate([*own, *head])]
    states = state_bytes(recipe.optimizer.name, named)
    states += state_bytes(recipe.discriminator_optimizer.name, [("", parameter) for parameter in critic])
    passed = _pass_bytes(recipe, models, term, gram, shape, device, precision)
    parts = {
        "weights": _bytes(weights),
        "gradients": _bytes(trained),
        "optimizers": states,
        "moving average": _bytes(own) if recipe.ema is not None else 0,
        "activations": passed,
    }
    if device.type == "cuda":
        parts["CUDA context"] = CUDA_CONTEXT
    return MemoryForecast(parts, [], str(shape))


def _pass_bytes(
    recipe: VaeRecipe,
    models: StageModels,
    term: GramTerm | None,
    gram: _Gram,
    shape: Shape,
    device: torch.device,
    precision: str,
) -> int:
    meta, cell = torch.device("meta"), cell_pixels(models.vae)
    latents = (shape.slices, models.vae.config["latent_channels"], shape.height // cell, shape.width // cell)
    images = torch.empty(shape.slices, 3, shape.height, shape.width, device=meta)
    batch = StageBatch(images, torch.empty(latents, device=meta), torch.empty(shape.slices, device=meta))
    features, grid = torch.empty(0), None
    if term is not None:
        grid = gram.grids[shape.height, shape.width]
        features = torch.empty(shape.slices, grid.places, gram.width, device=meta)
    given = {name: torch.ones((), device=meta) for name in ("adversarial", "gram", "moments")}
    felt = recipe.losses.adversarial.start  # an update that feels the discriminator

    def step() -> torch.Tensor:
        whole = batch if term is None or grid is None else replace(batch, gram=term.of(features, grid))
        with torch.autocast("meta", dtype=torch.bfloat16, enabled=precision == "bf16"):
            losses = generator_losses(models, whole, recipe.losses, felt, given=given)
        return (batch.weight * losses.total).sum()

    there = [*models.vae.parameters(), images, batch.noise, batch.weight, features]
    for module in (models.vae, *([term.head] if term is not None else [])):
        for parameter in module.parameters():  # gradients are a part of their own
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            there += [] if parameter.grad is None else [parameter.grad]
    kind = "cuda" if device.type == "cuda" else "cpu"
    return trace_pass(step, there, kind, precision == "bf16").peak


def _bytes(tensors: list[torch.Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
