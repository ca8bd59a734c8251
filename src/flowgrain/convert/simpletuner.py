"""Recipes from SimpleTuner: ``config.json`` and its data-loader file (``multidatabackend.json``).

Names and meanings follow SimpleTuner's documentation (OPTIONS.md, DATALOADER.md). ``docs/from-simpletuner.md``
explains the differences.
"""

import math
from pathlib import Path
from typing import Any

from flowgrain.convert import flux_law
from flowgrain.convert.draft import Draft
from flowgrain.convert.folders import Folder, count_pictures, write_data
from flowgrain.convert.options import Options, read_json
from flowgrain.convert.schedule import checkpoint_multiples, write_schedule
from flowgrain.convert.simpletuner_adapter import write_adapter, write_optimizer
from flowgrain.convert.simpletuner_dataset import read_backends
from flowgrain.convert.simpletuner_previews import write_previews
from flowgrain.convert.simpletuner_tables import NOT_NEEDED, UNSUPPORTED
from flowgrain.errors import ConfigError

_FLAVOURS = {
    "dev": "black-forest-labs/FLUX.1-dev",
    "schnell": "black-forest-labs/FLUX.1-schnell",
    "krea": "black-forest-labs/FLUX.1-Krea-dev",
}
_BITS = {"int8": "int8", "fp8": "fp8", "fp8uz": "fp8", "int4": "nf4", "nf4": "nf4", "fp4": "nf4"}


def convert_simpletuner(config: Path, dataset: Path | None) -> Draft:
    """The recipe and report of a config.json, with the data-loader file that it names or ``dataset``.

    Raises :class:`ConfigError` for files that cannot be read, options of a wrong type, and models that flowgrain
    does not train.
    """
    options = Options(_plain_names(config, read_json(config)), str(config))
    draft = Draft(str(config))
    _refuse_other_models(options, draft)
    _write_model(options, draft)
    _write_memory(options, draft)
    write_adapter(options, draft)
    batch = _write_batch(options, draft)
    write_optimizer(options, draft, batch)
    _write_time(options, draft)
    folders = _folders(options, config, dataset, draft)
    write_data(draft, folders)
    if options.given("caption_dropout_probability"):
        draft.convert(
            options.cite("caption_dropout_probability"),
            "data.caption_dropout",
            options.number("caption_dropout_probability"),
        )
    total = _write_budget(options, draft, batch, count_pictures(folders))
    write_schedule(options, draft, total, ("lr_scheduler", "sine"), 500)
    _write_ema(options, draft)
    _write_run(options, draft)
    write_previews(options, draft)
    draft.sweep(options, NOT_NEEDED, UNSUPPORTED)
    return draft


def _plain_names(path: Path, content: Any) -> dict[str, Any]:
    """Option names without the leading dashes that the file may have."""
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of options; give the data-loader file with --dataset")
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.removeprefix("--").replace("-", "_")
        if name in found:
            raise ConfigError(f"{path}: '{name}' is set twice, with and without dashes")
        found[name] = value
    return found


def _refuse_other_models(options: Options, draft: Draft) -> None:
    family = options.text("model_family")
    if family != "flux":
        raise ConfigError(f"{options.where}: model_family: {family} is not trained by flowgrain; flux is")
    draft.not_needed(options.cite("model_family"), "read from the model")
    kind = options.text("model_type", "lora")
    if kind != "lora":
        raise ConfigError(f"{options.where}: model_type: {kind} cannot be converted: flowgrain trains adapters (lora)")
    draft.not_needed(options.cite("model_type"), "adapters are what is trained")
    for name in ("controlnet", "control"):
        if options.active(name):
            raise ConfigError(f"{options.where}: {name}: ControlNet training cannot be converted")
        if options.given(name):
            draft.not_needed(options.cite(name), "switched off there")


def _write_model(options: Options, draft: Draft) -> None:
    flavour = options.text("model_flavour", "dev") or "dev"
    if options.active("pretrained_model_name_or_path"):
        flux_law.write_model(
            draft, options.cite("pretrained_model_name_or_path"), options.text("pretrained_model_name_or_path") or ""
        )
        if options.given("model_flavour"):
            draft.not_needed(options.cite("model_flavour"), "pretrained_model_name_or_path decides")
    elif flavour in _FLAVOURS:
        draft.convert(options.cite("model_flavour"), "model.path", _FLAVOURS[flavour])
    else:
        raise ConfigError(
            f"{options.where}: model_flavour: '{flavour}' is unknown; set pretrained_model_name_or_path to its hub id"
        )
    mode = options.text("flux_guidance_mode", "constant")
    draft.convert(options.cite("flux_guidance_value"), "model.guidance", options.number("flux_guidance_value", 1.0))
    if mode != "constant":
        draft.unsupported(options.cite("flux_guidance_mode"), "one value for all pictures: model.guidance, best 1.0")
    elif options.given("flux_guidance_mode"):
        draft.not_needed(options.cite("flux_guidance_mode"), "constant, always")
    precision = options.text("mixed_precision", "bf16")
    cited = options.cite("mixed_precision")
    if precision == "no":
        draft.convert(cited, "precision", "fp32")
    else:
        draft.convert(cited, "precision", "bf16", "" if precision == "bf16" else "bfloat16 is used")
    wide = precision == "no" or (options.text("base_model_default_dtype", "bf16") == "fp32")
    draft.complete("model.dtype", "float32" if wide else "bfloat16", cited.origin)
    if options.given("base_model_default_dtype"):
        draft.same(options.cite("base_model_default_dtype"), "model.dtype")


def _write_memory(options: Options, draft: Draft) -> None:
    checkpointing = options.flag("gradient_checkpointing")
    if options.given("gradient_checkpointing"):
        draft.convert(options.cite("gradient_checkpointing"), "memory.gradient_checkpointing", checkpointing)
    precision = options.text("base_model_precision", "no_change") or "no_change"
    bits = _BITS.get(precision.partition("-")[0])
    cited = options.cite("base_model_precision")
    if precision == "no_change":
        if options.given("base_model_precision"):
            draft.not_needed(cited, "not quantised")
    elif bits is None:
        draft.unsupported(cited, "memory.quantize has int8, fp8 and nf4")
    elif bits != "nf4" and not checkpointing:
        draft.unsupported(cited, f"memory.quantize {bits} needs memory.gradient_checkpointing; or use nf4")
    else:
        other = "4 bits as bitsandbytes' normal float" if bits == "nf4" else "one scale a row, by torchao"
        draft.convert(cited, "memory.quantize", bits, other)
    backend = options.text("dynamo_backend", "no")
    if backend not in ("no", None):
        draft.convert(options.cite("dynamo_backend"), "memory.compile", True, "the repeated blocks, by inductor")
    elif options.given("dynamo_backend"):
        draft.not_needed(options.cite("dynamo_backend"), "switched off there")


def _write_batch(options: Options, draft: Draft) -> int:
    """Batch of an update over all processes."""
    micro = options.integer("train_batch_size", 4) or 4
    accumulation = options.integer("gradient_accumulation_steps", 1) or 1
    processes = options.integer("num_processes", 1) or 1
    draft.complete("tuples.grouping", "slice", "SimpleTuner draws pictures one by one")
    note = "a batch mixes folders; SimpleTuner draws each from one"
    draft.convert(options.cite("train_batch_size"), "tuples.batch_size", micro * accumulation * processes, note)
    for name in ("gradient_accumulation_steps", "num_processes"):
        if options.given(name):
            draft.same(options.cite(name), "tuples.batch_size")
    if accumulation * processes > 1:
        draft.complete("tuples.micro_batch", micro, "train_batch_size; memory only")
    return micro * accumulation * processes


def _write_time(options: Options, draft: Draft) -> None:
    scale = options.number("flow_sigmoid_scale", 1.0)
    uniform, beta = options.flag("flow_use_uniform_schedule"), options.flag("flow_use_beta_schedule")
    if uniform or beta:
        note = "logit-normal of the same mean and width as uniform t: less at both ends"
        name = "flow_use_uniform_schedule" if uniform else "flow_use_beta_schedule"
        if uniform:
            draft.convert(options.cite(name), "time.std", flux_law.UNIFORM_STD, note)
        else:
            draft.unsupported(
                options.cite(name), "a logit-normal law is written (time.std 1): beta(2, 2) is close to it"
            )
        if options.given("flow_sigmoid_scale"):
            draft.not_needed(options.cite("flow_sigmoid_scale"), f"not read with {name}")
    else:
        draft.convert(options.cite("flow_sigmoid_scale"), "time.std", scale)
    for name in ("flow_use_uniform_schedule", "flow_use_beta_schedule"):
        if options.given(name) and not options.active(name):
            draft.not_needed(options.cite(name), "switched off there")
    shift = options.number("flow_schedule_shift", 3.0) or 0.0
    if options.flag("flow_schedule_auto_shift"):
        flux_law.write_line(draft, options.cite("flow_schedule_auto_shift"))
        if options.given("flow_schedule_shift"):
            draft.not_needed(options.cite("flow_schedule_shift"), "flow_schedule_auto_shift decides")
        return
    if options.given("flow_schedule_auto_shift"):
        draft.not_needed(options.cite("flow_schedule_auto_shift"), "switched off there")
    if shift < 0:
        raise ConfigError(f"{options.where}: flow_schedule_shift: expected 0 or more, got {shift}")
    flux_law.write_static_shift(draft, options.cite("flow_schedule_shift"), shift or 1.0)


def _folders(options: Options, config: Path, dataset: Path | None, draft: Draft) -> list[Folder]:
    named = options.text("data_backend_config")
    if named is not None:
        draft.not_needed(options.cite("data_backend_config"), "read" if dataset is None else "--dataset is read")
    if dataset is None:
        if named is None:
            raise ConfigError(f"{config}: data_backend_config is not set: give the data-loader file with --dataset")
        dataset = Path(named)
        if not dataset.exists() and (config.parent / dataset.name).exists():
            dataset = config.parent / dataset.name
    return read_backends(dataset, options, draft)


def _write_budget(options: Options, draft: Draft, batch: int, pictures: int | None) -> int:
    """``budget``; the number of updates."""
    steps, epochs = options.integer("max_train_steps", 0) or 0, options.integer("num_train_epochs", 1) or 0
    total = steps
    if steps:
        draft.convert(options.cite("max_train_steps"), "budget.amount", steps)
        draft.complete("budget.unit", "updates", "max_train_steps")
        if options.given("num_train_epochs"):
            draft.not_needed(options.cite("num_train_epochs"), "max_train_steps decides")
    elif not epochs:
        raise ConfigError(
            f"{options.where}: max_train_steps and num_train_epochs are both 0: one of them sets the length"
        )
    elif pictures is None:
        raise ConfigError(
            f"{options.where}: num_train_epochs: the folders cannot be read from here; set max_train_steps, "
            "or run where the pictures are"
        )
    else:
        draft.convert(
            options.cite("num_train_epochs"),
            "budget.amount",
            epochs * pictures,
            f"{pictures} pictures an epoch, counted now",
        )
        draft.complete("budget.unit", "slices", "num_train_epochs")
        if options.given("max_train_steps"):
            draft.not_needed(options.cite("max_train_steps"), "num_train_epochs decides")
        total = epochs * math.ceil(pictures / batch)
    name = "checkpointing_steps" if options.given("checkpointing_steps") else "checkpoint_step_interval"
    every = options.integer(name, 500) or total
    multiples = checkpoint_multiples(every, total)
    draft.complete("budget.checkpoints", multiples, options.cite(name).origin)
    draft.same(options.cite(name), "budget.checkpoints", "kept at shares of the budget, the end included")
    return total


def _write_ema(options: Options, draft: Draft) -> None:
    if options.flag("use_ema"):
        draft.convert(options.cite("ema_decay"), "ema.decay", options.number("ema_decay", 0.995))
        draft.same(options.cite("use_ema"), "ema.decay", "the moving average is what is saved for sampling")
        return
    for name in ("use_ema", "ema_decay"):
        if options.given(name):
            draft.not_needed(options.cite(name), "no moving average")


def _write_run(options: Options, draft: Draft) -> None:
    output = options.text("output_dir", "simpletuner-results") or "simpletuner-results"
    draft.convert(options.cite("output_dir"), "output", output)
    name = options.text("tracker_run_name")
    if name:
        draft.convert(options.cite("tracker_run_name"), "name", name)
    else:
        draft.complete("name", Path(output).name or "simpletuner", "output_dir")
    given = options.given("seed")
    draft.convert(
        options.cite("seed"), "seed", options.integer("seed", 0), "" if given else "SimpleTuner draws a seed at random"
    )
    target = (options.text("report_to", "wandb") or "none").split(",")
    project = options.text("tracker_project_name", "simpletuner")
    if "wandb" in target or "all" in target:
        draft.convert(options.cite("tracker_project_name"), "log.wandb.project", project)
        draft.same(options.cite("report_to"), "log.wandb.project")
    else:
        draft.not_needed(options.cite("report_to"), "TensorBoard files and metrics.jsonl are always written")
        if options.given("tracker_project_name"):
            draft.not_needed(options.cite("tracker_project_name"), "read with wandb alone")
