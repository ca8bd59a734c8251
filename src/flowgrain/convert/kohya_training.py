"""kohya's optimizer, schedule, noise levels, budget, previews and logging."""

import math
from pathlib import Path

from flowgrain.convert import flux_law
from flowgrain.convert.draft import Draft
from flowgrain.convert.kohya_command import Architecture
from flowgrain.convert.options import Options
from flowgrain.convert.prompts import write_previews
from flowgrain.convert.schedule import checkpoint_multiples, write_schedule
from flowgrain.errors import ConfigError

_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "": ("adamw", ""),
    "adamw": ("adamw", ""),
    "adamw8bit": ("adamw8bit", ""),
    "pagedadamw": ("adamw", "its state is not paged"),
    "pagedadamw32bit": ("adamw", "its state is not paged"),
    "pagedadamw8bit": ("adamw8bit", "its state is not paged"),
    "lion": ("lion", ""),
    "lion8bit": ("lion", "its state is kept in 32 bits"),
    "pagedlion8bit": ("lion", "its state is kept in 32 bits"),
    "prodigy": ("prodigy", ""),
}
_SHIFTED = ("sigmoid", "shift", "flux_shift")
"""Timestep samplings that read ``timestep_sampling.offset``."""


def write_optimizer(options: Options, draft: Draft, backbone: str) -> None:
    """``optimizer`` and ``clip``; ``backbone`` is what unet_lr is the rate of."""
    name = (options.text("optimizer_type", "") or "").lower()
    source = "optimizer_type"
    for flag, meant in (("use_8bit_adam", "adamw8bit"), ("use_lion_optimizer", "lion")):
        if options.given(flag) and options.flag(flag):
            name, source = meant, flag
    if source != "optimizer_type" and options.given("optimizer_type"):
        draft.not_needed(options.cite("optimizer_type"), f"{source} decides")
    cited = options.cite(source)
    if name in _OPTIMIZERS:
        ours, difference = _OPTIMIZERS[name]
        draft.convert(cited, "optimizer.name", ours, difference)
    else:
        ours = "adamw"
        draft.complete("optimizer.name", ours, cited.origin)
        draft.unsupported(cited, "there are adamw, adamw8bit, lion and prodigy; adamw is written: check optimizer.lr")
    rate = "unet_lr" if options.active("unet_lr") else "learning_rate"
    draft.convert(options.cite(rate), "optimizer.lr", options.number(rate, 2e-6))
    if rate == "unet_lr" and options.given("learning_rate"):
        draft.not_needed(options.cite("learning_rate"), f"unet_lr decides for {backbone}")
    elif options.given("unet_lr"):
        draft.not_needed(options.cite("unet_lr"), "learning_rate decides")
    _write_optimizer_args(options, draft, ours)
    norm = options.number("max_grad_norm", 1.0)
    draft.convert(options.cite("max_grad_norm"), "clip", norm or None)


def _write_optimizer_args(options: Options, draft: Draft, name: str) -> None:
    pairs = options.pairs("optimizer_args")
    extra = Options(pairs, options.where, {key: f"optimizer_args {key}" for key in pairs})
    if extra.given("weight_decay"):
        draft.convert(extra.cite("weight_decay"), "optimizer.weight_decay", extra.number("weight_decay"))
    elif name in ("lion", "prodigy"):
        draft.complete("optimizer.weight_decay", 0.0, f"the default of kohya's {name}")
    if extra.given("betas"):
        text = (extra.text("betas") or "").strip("()[] ")
        try:
            betas = [float(part) for part in text.split(",")]
        except ValueError:
            raise ConfigError(f"{options.where}: optimizer_args betas: expected two numbers, got {text}") from None
        draft.convert(extra.cite("betas"), "optimizer.betas", betas)
    if extra.given("eps") and name != "lion":
        draft.convert(extra.cite("eps"), "optimizer.eps", extra.number("eps"))
    if extra.given("fused") and name == "adamw":
        draft.convert(extra.cite("fused"), "optimizer.fused", extra.flag("fused"))
    for key in extra.unread():
        draft.unsupported(extra.cite(key), "the optimizer here has no such setting")
    options.cite("optimizer_args")


def write_time(options: Options, draft: Draft) -> None:
    """``time`` from timestep_sampling and its companions; what the model predicts."""
    kind = options.text("timestep_sampling", "sigma")
    cited = options.cite("timestep_sampling")
    shift = options.number("discrete_flow_shift", 3.0) or 1.0
    if shift <= 0:
        raise ConfigError(f"{options.where}: discrete_flow_shift: expected a positive number, got {shift}")
    scale = options.number("sigmoid_scale", 1.0)
    if kind in _SHIFTED:
        draft.convert(options.cite("sigmoid_scale"), "time.std", scale)
    elif options.given("sigmoid_scale"):
        draft.not_needed(options.cite("sigmoid_scale"), f"not read with timestep_sampling {kind}")
    if kind == "flux_shift":
        flux_law.write_line(draft, cited)
    elif kind in ("sigmoid", "uniform"):
        draft.complete("time.resolution_shift", "none", cited.origin)
        if kind == "uniform":
            note = "logit-normal of the same mean and width as uniform t: less at both ends"
            draft.convert(cited, "time.std", flux_law.UNIFORM_STD, note)
        else:
            draft.same(cited, "time.resolution_shift")
    elif kind == "shift":
        flux_law.write_static_shift(draft, options.cite("discrete_flow_shift"), shift)
        draft.same(cited, "time.mean")
    elif kind == "sigma":
        _write_sigma(options, draft, shift)
    else:
        raise ConfigError(
            f"{options.where}: timestep_sampling: unknown value '{kind}' (sigma, uniform, sigmoid, shift, flux_shift)"
        )
    if kind not in ("shift", "sigma") and options.given("discrete_flow_shift"):
        draft.not_needed(options.cite("discrete_flow_shift"), f"not read with timestep_sampling {kind}")
    for name in ("weighting_scheme", "logit_mean", "logit_std"):
        if kind != "sigma" and options.given(name):
            draft.not_needed(options.cite(name), f"not read with timestep_sampling {kind}")
    _write_prediction(options, draft)
    write_loss(options, draft)


def _write_sigma(options: Options, draft: Draft, shift: float | int) -> None:
    """t = 1 - u through the shift, u uniform or logit-normal."""
    scheme = options.text("weighting_scheme", "uniform")
    mean, std = options.number("logit_mean", 0.0) or 0.0, options.number("logit_std", 1.0)
    offset = round(math.log(shift), 6)
    cited, shifted = options.cite("timestep_sampling"), options.cite("discrete_flow_shift")
    if scheme == "logit_normal":
        draft.convert(
            options.cite("logit_mean"),
            "time.mean",
            round(offset - mean, 6),
            "its sign turns: kohya counts u from noise",
        )
        draft.convert(options.cite("logit_std"), "time.std", std)
        draft.same(options.cite("weighting_scheme"), "time.std", "t is drawn from a continuum, not from 1000 steps")
    else:
        draft.convert(shifted, "time.mean", offset)
        note = "logit-normal of the same mean and width as uniform t through the shift: less at both ends"
        draft.convert(cited, "time.std", flux_law.UNIFORM_STD, note)
        if scheme not in ("uniform", "none"):
            draft.unsupported(
                options.cite("weighting_scheme"), "no weighting of the loss by t: write time.mean and time.std by hand"
            )
        elif options.given("weighting_scheme"):
            draft.same(options.cite("weighting_scheme"), "time.std")
        for name in ("logit_mean", "logit_std"):
            if options.given(name):
                draft.not_needed(options.cite(name), "read with weighting_scheme logit_normal alone")
    if scheme == "logit_normal":
        draft.same(cited, "time.mean")
        draft.same(shifted, "time.mean")
    draft.complete("time.resolution_shift", "none", f"{shifted.origin}: the same shift for every size")


def _write_prediction(options: Options, draft: Draft) -> None:
    prediction = options.text("model_prediction_type", "sigma_scaled")
    cited = options.cite("model_prediction_type")
    if prediction == "raw":
        draft.not_needed(cited, "the model's output is the velocity, always")
    else:
        draft.unsupported(cited, "the model's output is taken as the velocity (raw), as kohya's guide recommends")


def write_loss(options: Options, draft: Draft) -> None:
    """The squared error is the loss there is."""
    loss = options.text("loss_type", "l2")
    if options.given("loss_type") and loss == "l2":
        draft.not_needed(options.cite("loss_type"), "squared error, always")
    elif loss != "l2":
        draft.unsupported(options.cite("loss_type"), "squared error (l2) is the loss there is")


def write_schedule_and_budget(options: Options, draft: Draft, pictures: int | None, processes: int) -> None:
    """``budget`` and ``schedule``; ``pictures`` an epoch, None where they cannot be counted."""
    epochs = options.integer("max_train_epochs")
    steps = options.integer("max_train_steps", 1600) or 1600
    batch = draft.get("tuples.batch_size")
    batch = batch * processes
    draft.complete("tuples.batch_size", batch, "train_batch_size x gradient_accumulation_steps x processes")
    total = steps
    if epochs is None:
        draft.convert(options.cite("max_train_steps"), "budget.amount", steps)
        draft.complete("budget.unit", "updates", "max_train_steps")
    elif pictures is None:
        draft.complete("budget.amount", steps, "max_train_steps: the pictures could not be counted")
        draft.complete("budget.unit", "updates", "max_train_steps")
        advice = "the folders cannot be read from here: set budget.unit slices, amount epochs x pictures x repeats"
        draft.unsupported(options.cite("max_train_epochs"), advice)
    else:
        note = f"{pictures} pictures an epoch, counted now"
        draft.convert(options.cite("max_train_epochs"), "budget.amount", epochs * pictures, note)
        draft.complete("budget.unit", "slices", "max_train_epochs")
        total = epochs * math.ceil(pictures / batch)
        if options.given("max_train_steps"):
            draft.not_needed(options.cite("max_train_steps"), "max_train_epochs decides")
    _write_checkpoints(options, draft, total, epochs)
    write_schedule(options, draft, total, ("lr_scheduler", "constant"), 0)


def _write_checkpoints(options: Options, draft: Draft, total: int, epochs: int | None) -> None:
    every_steps, every_epochs = options.integer("save_every_n_steps"), options.integer("save_every_n_epochs")
    multiples: list[float] = [1.0]
    if every_epochs and epochs:
        multiples = checkpoint_multiples(every_epochs, epochs)
        draft.same(options.cite("save_every_n_epochs"), "budget.checkpoints")
    elif every_epochs:
        draft.unsupported(
            options.cite("save_every_n_epochs"), "set budget.checkpoints to the shares of the budget to keep"
        )
    if every_steps and not (every_epochs and epochs):
        multiples = checkpoint_multiples(every_steps, total)
        draft.same(
            options.cite("save_every_n_steps"),
            "budget.checkpoints",
            "kept at shares of the budget" if len(multiples) > 1 else "",
        )
    elif every_steps:
        draft.not_needed(options.cite("save_every_n_steps"), "save_every_n_epochs decides which checkpoints stay")
    draft.complete(
        "budget.checkpoints", multiples, "save_every_n_steps, save_every_n_epochs" if len(multiples) > 1 else "the end"
    )


def write_run(options: Options, draft: Draft, architecture: Architecture) -> None:
    """Name, output folder, seed, previews, logging."""
    name = options.text("output_name", "kohya") or "kohya"
    draft.convert(options.cite("output_name"), "name", name)
    if options.active("output_dir"):
        folder = Path(options.text("output_dir") or ".") / name
        draft.convert(options.cite("output_dir"), "output", str(folder), "a run folder of its own in it")
    kind = options.text("save_model_as", "safetensors")
    if options.given("save_model_as") and kind == "safetensors":
        draft.not_needed(options.cite("save_model_as"), "safetensors, always")
    elif kind != "safetensors":
        draft.unsupported(options.cite("save_model_as"), "adapters are saved as safetensors")
    seed = options.integer("seed", 0)
    draft.convert(options.cite("seed"), "seed", seed, "" if options.given("seed") else "kohya draws a seed at random")
    _write_logging(options, draft)
    write_previews(options, draft, architecture == "flux")
    if options.active("validate_every_n_steps") and draft.has("data.holdout"):
        draft.convert(
            options.cite("validate_every_n_steps"), "validation.every", options.integer("validate_every_n_steps")
        )
    elif options.active("validate_every_n_steps"):
        draft.unsupported(
            options.cite("validate_every_n_steps"), "set data.holdout or validation.path for held-out pictures"
        )
    if options.active("validate_every_n_epochs"):
        draft.unsupported(options.cite("validate_every_n_epochs"), "set validation.every in updates")


def _write_logging(options: Options, draft: Draft) -> None:
    target = options.text("log_with")
    if target in ("wandb", "all"):
        project = options.text("log_tracker_name")
        draft.convert(options.cite("log_with"), "log.wandb.project", project or "flowgrain")
    elif target is not None:
        draft.not_needed(options.cite("log_with"), "TensorBoard files are always written")
    if options.active("wandb_run_name"):
        draft.not_needed(options.cite("wandb_run_name"), "the run is called by its name")
