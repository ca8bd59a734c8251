"""From a recipe to a prepared autoencoder's run."""

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from flowgrain import rng
from flowgrain.align.encoders.registry import open_structure_encoder
from flowgrain.align.features import FeatureCache, FeatureSource, LiveFeatures
from flowgrain.align.grids import Grid
from flowgrain.data.config import DataConfig
from flowgrain.data.dataset import SliceDataset, open_dataset, open_split
from flowgrain.data.sources import open_source
from flowgrain.errors import ConfigError
from flowgrain.families.autoencoder_folder import autoencoder_folder
from flowgrain.train.optimizers import build_optimizer
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.schedule import Ema
from flowgrain.train.setup import ProgressCallback, autocast_of, choose_device, choose_precision
from flowgrain.train.vae_batches import GramTerm, Reference, VaeBatchBuilder
from flowgrain.train.vae_measures import PairPreviewer, VaeValidator
from flowgrain.train.vae_recipe import VaeRecipe
from flowgrain.train.vae_stage import VaeSession, VaeStage
from flowgrain.train.vae_update import Learner, Players
from flowgrain.vae.deeper import cell_pixels, deepen, depth_of, set_parts
from flowgrain.vae.deeper_files import load_deeper_vae
from flowgrain.vae.discriminator import Discriminator, advance_spectral_norms, build_discriminator
from flowgrain.vae.losses import StageModels
from flowgrain.vae.perceptual import PerceptualLoss, open_perceptual_loss
from flowgrain.vae.teacher import Teacher

Named = list[tuple[str, nn.Parameter]]


def prepare_vae(recipe: VaeRecipe, on_progress: ProgressCallback, runtime: Runtime = ALONE) -> VaeStage:
    """Load the autoencoder and all that its losses need, open the data, cache the reference's features.

    Raises :class:`ConfigError`, :class:`ModelError` and :class:`DataError` for what cannot be used.
    """
    if runtime.sharded:
        raise ConfigError("FSDP shards frozen weights, and an autoencoder's train: launch without --use_fsdp")
    device = choose_device(recipe.device, runtime)
    if device.type == "cuda" and runtime.world > 1:
        torch.cuda.set_device(device)
    precision = choose_precision(recipe.precision, device)
    vae = load_autoencoder(recipe)
    dataset, held_out = open_pictures(recipe, cell_pixels(vae))
    runtime.require_equal({"recipe": recipe.identity(), "data set": dataset.fingerprint, "precision": precision})
    models = stage_models(recipe, vae, device)
    _check_sizes(recipe, dataset, models)
    autocast = partial(autocast_of, device, precision)
    with runtime.main_first():
        gram, reference = _gram(recipe, vae, dataset, device, on_progress)
    own = trained_parameters(recipe.train, vae)
    players = _players(recipe, models, gram, own, device)
    validation, shown = recipe.validation, held_out or dataset
    stage = VaeStage(
        VaeSession(
            recipe=recipe,
            device=device,
            precision=precision,
            dataset=dataset,
            runtime=runtime,
            builder=VaeBatchBuilder(
                dataset, recipe.seed, recipe.crop, vae.config["latent_channels"], cell_pixels(vae), reference
            ),
            players=players,
            ema=Ema(own, recipe.ema.decay) if recipe.ema is not None else None,
            validator=None
            if validation is None or held_out is None
            else VaeValidator(held_out, vae, models.perceptual, recipe.losses, validation.batch_size, device, runtime),
            previewer=None
            if recipe.previews is None or not runtime.is_main
            else PairPreviewer(shown, vae, recipe.previews.count, recipe.output, device),
            autocast=autocast,
        )
    )
    _check_batch_norm(recipe, stage)
    return stage


def load_autoencoder(recipe: VaeRecipe) -> AutoencoderKL:
    """The autoencoder as it starts, in float32, as deep as the recipe says, nothing of it training yet."""
    vae = load_deeper_vae(autoencoder_folder(recipe.model.path, "model.path"))
    wanted, found = recipe.model.doublings, depth_of(vae)
    if wanted is not None and wanted != found.doublings:
        if found.doublings:
            raise ConfigError(
                f"model.doublings is {wanted}, but {recipe.model.path} has {found.doublings}; remove the key, or start "
                "from the model that it was made of"
            )
        deepen(vae, wanted)
    if depth_of(vae).legacy_shift and recipe.model.layout == "native":
        raise ConfigError(
            f"{recipe.model.path} was trained with a shift of one pixel (legacy_shift), which layout native cannot "
            "express: set model.layout to strided"
        )
    if recipe.memory.parts > 1:
        set_parts(vae, recipe.memory.parts)
    vae.disable_tiling()
    vae.disable_slicing()
    if recipe.memory.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    return vae.requires_grad_(False)


def open_pictures(recipe: VaeRecipe, multiple: int) -> tuple[SliceDataset, SliceDataset | None]:
    """The training part and the held-out part; sides are multiples of ``multiple`` pixels.

    Raises :class:`ConfigError` for a crop that is none.
    """
    if recipe.crop is not None and recipe.crop % multiple:
        raise ConfigError(f"crop {recipe.crop}: must be a multiple of {multiple} px, what a latent cell covers")
    validation = recipe.validation
    if recipe.data.holdout is not None:
        train, held_out = open_split(recipe.data, multiple)
        if held_out is not None and validation is not None and validation.max_roots is not None:
            held_out = held_out.first_roots(validation.max_roots)
        return train, held_out
    dataset = open_dataset(recipe.data, multiple)
    if validation is None or validation.path is None:
        return dataset, None
    decomposed = open_source(validation.path)[1]
    held_out = DataConfig(
        path=validation.path,
        resolution=None if decomposed else recipe.data.resolution,
        buckets=None if decomposed else recipe.data.buckets,
        max_roots=validation.max_roots,
    )
    return dataset, open_dataset(held_out, multiple)


def stage_models(recipe: VaeRecipe, vae: AutoencoderKL, device: torch.device) -> StageModels:
    """The networks of all terms of positive weight, on the device."""
    losses = recipe.losses
    deeper = depth_of(vae).doublings > 0
    taught = losses.moments.weight > 0 or (deeper if losses.scale.weight is None else losses.scale.weight > 0)
    teacher = Teacher(vae) if taught else None
    nn.Module.to(vae, device)
    perceptual = None
    if losses.perceptual.weight:
        perceptual = open_perceptual_loss(losses.perceptual.network, losses.perceptual.heads).to(device)
    return StageModels(
        vae=vae,
        perceptual=perceptual,
        discriminator=_discriminator(recipe, vae, device) if losses.adversarial.weight else None,
        teacher=teacher.to(device) if teacher is not None else None,
    )


def _discriminator(recipe: VaeRecipe, vae: AutoencoderKL, device: torch.device) -> Discriminator:
    with rng.seeded(recipe.seed, "discriminator"):
        built = build_discriminator(recipe.losses.adversarial.discriminator, vae.config["in_channels"])
        advance_spectral_norms(built)
    return built.to(device)


def _gram(
    recipe: VaeRecipe, vae: AutoencoderKL, dataset: SliceDataset, device: torch.device, on_progress: ProgressCallback
) -> tuple[GramTerm | None, Reference | None]:
    """The head and where the reference's features come from; nothing of either without a weight."""
    config = recipe.gram
    if config is None or not recipe.gram_trains:
        return None, None
    encoder = open_structure_encoder(config.encoder, str(device))
    head = config.head.build(vae.config["latent_channels"], encoder.width, recipe.seed, "vae gram")
    cell = cell_pixels(vae)

    def rule(height: int, width: int) -> Grid:
        finest = head.output_grid(Grid(height // cell, width // cell))
        return config.grid.of(height, width, encoder.grid_multiple, finest)

    def cached(done: int, total: int) -> None:
        on_progress("caching: features", done, total)

    source: FeatureSource | None = None
    if recipe.crop is None and recipe.data.cache is False:
        source = LiveFeatures(dataset, encoder, rule, config.kept)
    elif recipe.crop is None:
        folder = recipe.data.cache if isinstance(recipe.data.cache, Path) else None
        source = cache = FeatureCache(folder, encoder, rule, config.kept)
        cache.fill(dataset, dataset.flips, cached)
    return GramTerm(head.to(device), config.centred), Reference(encoder, source, rule)


def trained_parameters(train: str, vae: AutoencoderKL) -> Named:
    """The parameters of the halves that train, switched on."""
    halves = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}
    prefixes = halves[train] if train in halves else (*halves["encoder"], *halves["decoder"])
    named = [(f"vae.{name}", one) for name, one in vae.named_parameters() if name.startswith(prefixes)]
    for _, parameter in named:
        parameter.requires_grad_(True)
    return named


def _players(
    recipe: VaeRecipe, models: StageModels, gram: GramTerm | None, own: Named, device: torch.device
) -> Players:
    head = [(f"gram.{name}", one) for name, one in gram.head.named_parameters()] if gram is not None else []
    autoencoder, critic = [*own, *head], None
    if models.discriminator is not None:
        parameters = [(f"discriminator.{name}", one) for name, one in models.discriminator.named_parameters()]
        optimizer = build_optimizer(recipe.discriminator_optimizer, parameters, device)
        critic = Learner(parameters, optimizer, recipe.discriminator_clip)
    return Players(
        models, gram, Learner(autoencoder, build_optimizer(recipe.optimizer, autoencoder, device), recipe.clip), critic
    )


def _check_sizes(recipe: VaeRecipe, dataset: SliceDataset, models: StageModels) -> None:
    """Networks of the losses need pictures of some size: say so before anything is cached."""
    shortest = recipe.crop or min(min(item.bucket) for item in dataset.slices)
    networks: dict[str, Discriminator | PerceptualLoss | None] = {
        "losses.adversarial.discriminator": models.discriminator,
        "losses.perceptual.network": models.perceptual,
    }
    for key, network in networks.items():
        if network is not None and shortest < network.smallest:
            advice = "fewer layers (architecture patch) or larger pictures"
            raise ConfigError(f"{key} needs pictures of {network.smallest} px a side, there are some of {shortest}: "
                              f"take {advice if network is models.discriminator else 'larger pictures'}")  # fmt: skip


def _check_batch_norm(recipe: VaeRecipe, stage: VaeStage) -> None:
    """Statistics over a micro-batch are those of an update only where it has one micro-batch in one process."""
    term = recipe.losses.adversarial
    if not term.weight or term.discriminator.architecture != "patch" or term.discriminator.normalisation != "batch":
        return
    if stage.runtime.world > 1 or any(len(update.micro_batches) > 1 for update in stage.plan(0)):
        raise ConfigError(
            "losses.adversarial.discriminator.normalisation 'batch' would depend on how an update is cut: it needs one "
            "process, tuples.micro_batch null and pictures of one size (data.buckets); take 'instance' or 'none'"
        )
