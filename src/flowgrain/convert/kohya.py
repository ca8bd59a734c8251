"""Recipes from kohya's sd-scripts: the options of its LoRA scripts, their TOML and the data-set TOML.

Names, defaults and meanings follow sd-scripts' documentation (docs/flux_train_network.md, docs/train_network.md,
docs/sdxl_train_network.md, docs/config_README-en.md, docs/timestep_sampling_offset.md). ``docs/from-kohya.md`` explains
the differences.
"""

from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.flux_law import write_model
from flowgrain.convert.folders import Folder, count_pictures, write_data
from flowgrain.convert.kohya_adapter import write_adapter
from flowgrain.convert.kohya_command import SCRIPTS, Architecture, parse_command
from flowgrain.convert.kohya_dataset import read_folders
from flowgrain.convert.kohya_tables import LAUNCH_NOT_NEEDED, NOT_NEEDED, UNSUPPORTED
from flowgrain.convert.kohya_training import write_optimizer, write_run, write_schedule_and_budget, write_time
from flowgrain.convert.kohya_unet import write_unet_loss, write_unet_text
from flowgrain.convert.kohya_unet_adapter import write_text_encoders, write_unet_adapter
from flowgrain.convert.options import Options, read_toml
from flowgrain.errors import ConfigError

_FLUX_OPTIONS = (
    *("ae", "clip_l", "t5xxl", "guidance_scale", "timestep_sampling", "model_prediction_type"),
    "discrete_flow_shift",
)
"""Options that kohya's Stable Diffusion scripts do not have."""

_SDXL_OPTIONS = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "text_encoder_lr1")
_SDXL_NAMES = ("xl", "pony", "illustrious", "noob", "animagine")
"""In the name of a model: SDXL's derivatives. A TOML does not say which script reads it."""


def convert_kohya(train: Path | None, dataset: Path | None, command: str | None) -> Draft:
    """The recipe and report of a training TOML or a command line, with the data-set TOML that it names or ``dataset``.

    Raises :class:`ConfigError` for files that cannot be read, options of a wrong type, and models that flowgrain
    does not train.
    """
    values, where = {}, ""
    script: Architecture | None = None
    if (train is None) == (command is None):
        raise ConfigError("give kohya's training TOML, or its command with --from-command, one of the two")
    launch: dict[str, Any] = {}
    if command is not None:
        script, launch, values = parse_command(command)
        where = "kohya's command"
        if values.get("config_file"):
            named = Path(str(values["config_file"]))
            train = named if named.suffix == ".toml" else named.with_name(f"{named.name}.toml")
            values = {**_flat(train, read_toml(train)), **values}
            where = f"kohya's command and {train}"
    elif train is not None:
        values, where = _flat(train, read_toml(train)), str(train)
    options = Options(values, where)
    draft = Draft(where)
    architecture = _architecture(options, script)
    _write_model(options, draft, architecture)
    if architecture == "flux":
        write_adapter(options, draft)
        write_optimizer(options, draft, "the transformer")
        write_time(options, draft)
    else:
        write_unet_adapter(options, draft)
        write_optimizer(options, draft, "the U-Net")
        write_text_encoders(options, draft, architecture)
        write_unet_loss(options, draft)
        write_unet_text(options, draft, architecture)
    processes = _write_launch(launch, draft)
    folders = _folders(options, dataset, train, draft)
    write_data(draft, folders)
    if any(draft.has(key) and draft.get(key) for key in ("data.caption_shuffle", "data.tag_dropout")):
        draft.complete("data.cache_text", False, "captions vary: they are encoded in every update, as there")
    write_schedule_and_budget(options, draft, count_pictures(folders), processes)
    write_run(options, draft, architecture)
    for name in ("config_file", "dataset_config"):
        if options.given(name):
            draft.not_needed(options.cite(name), "read")
    draft.sweep(options, NOT_NEEDED[architecture], UNSUPPORTED[architecture])
    return draft


def _flat(path: Path, tables: dict[str, Any]) -> dict[str, Any]:
    """The options of all sections in one map, as kohya reads them; raises ConfigError for one that is set twice."""
    found: dict[str, Any] = {}
    for section, content in tables.items():
        for name, value in content.items() if isinstance(content, dict) else [(section, content)]:
            if name in found:
                raise ConfigError(f"{path}: {name} is set in two sections; kohya reads the last one: remove the other")
            found[name] = value
    if "datasets" in tables or "subsets" in found:
        raise ConfigError(f"{path}: this is a data-set TOML; give the training TOML, and this one with --dataset")
    return found


def _architecture(options: Options, script: Architecture | None) -> Architecture:
    """What is trained, by the script or else by the options; raises ConfigError for what is not converted."""
    kind = options.text("model_type", "flux")
    if kind != "flux":
        raise ConfigError(f"{options.where}: model_type: {kind} cannot be converted; flux, SDXL and SD 1 and 2 can")
    module = options.text("network_module") or ""
    known = module.startswith("lycoris") or module in ("", "networks.lora", "networks.lora_flux")
    if not known and (module.startswith("networks.lora_") or script is None):
        raise ConfigError(
            f"{options.where}: network_module: {module} cannot be converted; networks.lora_flux (FLUX.1), "
            "networks.lora and lycoris.kohya (SDXL, SD 1 and 2) can"
        )
    if script is not None:
        return script
    if "flux" in module or any(options.given(name) for name in _FLUX_OPTIONS):
        return "flux"
    name = (options.text("pretrained_model_name_or_path") or "").lower()
    xl = any(part in name for part in _SDXL_NAMES) or any(options.given(option) for option in _SDXL_OPTIONS)
    return "sdxl" if xl else "sd"


def _write_model(options: Options, draft: Draft, architecture: Architecture) -> None:
    path = options.text("pretrained_model_name_or_path")
    if path is None:
        raise ConfigError(
            f"{options.where}: pretrained_model_name_or_path: the model is required; is this an option file of "
            f"{', '.join(SCRIPTS)}?"
        )
    if options.given("model_type"):
        draft.not_needed(options.cite("model_type"), "the family is read from the model")
    if architecture == "flux":
        write_model(draft, options.cite("pretrained_model_name_or_path"), path)
        draft.convert(options.cite("guidance_scale"), "model.guidance", options.number("guidance_scale", 3.5))
        other = "float16 overflows in FLUX: bfloat16 is used"
    else:
        draft.convert(options.cite("pretrained_model_name_or_path"), "model.path", path)
        other = "bfloat16 is used, which needs no scale of the loss"
    precision = options.text("mixed_precision", "no")
    cited = options.cite("mixed_precision")
    if precision == "no":
        draft.convert(cited, "precision", "fp32")
        draft.complete("model.dtype", "float32", cited.origin)
    else:
        draft.convert(cited, "precision", "bf16", "" if precision == "bf16" else other)
        draft.complete("model.dtype", "bfloat16", cited.origin)
    _write_memory(options, draft)
    if architecture == "flux":
        _write_text_length(options, draft)


def _write_memory(options: Options, draft: Draft) -> None:
    checkpointing = options.flag("gradient_checkpointing")
    if options.given("gradient_checkpointing"):
        draft.convert(options.cite("gradient_checkpointing"), "memory.gradient_checkpointing", checkpointing)
    if options.flag("torch_compile"):
        draft.convert(options.cite("torch_compile"), "memory.compile", True, "the repeated blocks are compiled")
    if options.flag("fp8_base") and checkpointing:
        note = "weights with one scale a row instead of a plain cast; encoders and autoencoder keep their bits"
        draft.convert(options.cite("fp8_base"), "memory.quantize", "fp8", note)
    elif options.flag("fp8_base"):
        draft.unsupported(
            options.cite("fp8_base"), "memory.quantize fp8 needs memory.gradient_checkpointing; or use nf4"
        )
    for name in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"):
        if options.given(name):
            draft.not_needed(options.cite(name), "caption embeddings are cached wherever that can be done")


def _write_text_length(options: Options, draft: Draft) -> None:
    length = options.integer("t5xxl_max_token_length")
    if length is not None:
        own = 256 if "schnell" in str(draft.get("model.path")) else 512
        if length == own:
            draft.not_needed(options.cite("t5xxl_max_token_length"), "the model's own length")
        else:
            draft.unsupported(
                options.cite("t5xxl_max_token_length"), f"captions are cut at the model's own {own} tokens"
            )


def _write_launch(launch: dict[str, Any], draft: Draft) -> int:
    """Report accelerate's options; the number of processes that it starts."""
    options = Options(launch, "accelerate launch", {name: f"accelerate launch --{name}" for name in launch})
    processes = options.integer("num_processes", 1) or 1
    if options.given("num_processes"):
        draft.same(options.cite("num_processes"), "tuples.batch_size", "an update counts the roots of all processes")
    for name in options.unread():
        draft.not_needed(options.cite(name), LAUNCH_NOT_NEEDED)
    return processes


def _folders(options: Options, dataset: Path | None, train: Path | None, draft: Draft) -> list[Folder]:
    """The folders of the data-set TOML, or of ``train_data_dir`` where there is none."""
    named = options.text("dataset_config")
    if dataset is None and named is not None:
        dataset = Path(named)
        if (
            not dataset.exists()
            and train is not None
            and not dataset.is_absolute()
            and (train.parent / dataset).exists()
        ):
            dataset = train.parent / dataset
    return read_folders(options, dataset, draft)
