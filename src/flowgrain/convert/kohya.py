"""Recipes from kohya's sd-scripts: ``flux_train_network.py``'s options, its TOML and the data-set TOML.

Names, defaults and meanings follow sd-scripts' documentation (docs/flux_train_network.md, docs/train_network.md,
docs/config_README-en.md, docs/timestep_sampling_offset.md). ``docs/from-kohya.md`` explains the differences.
"""

from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.flux_law import write_model
from flowgrain.convert.folders import Folder, count_pictures, write_data
from flowgrain.convert.kohya_adapter import write_adapter
from flowgrain.convert.kohya_command import parse_command
from flowgrain.convert.kohya_dataset import read_folders
from flowgrain.convert.kohya_tables import LAUNCH_NOT_NEEDED, NOT_NEEDED, UNSUPPORTED
from flowgrain.convert.kohya_training import write_optimizer, write_run, write_schedule_and_budget, write_time
from flowgrain.convert.options import Options, read_toml
from flowgrain.errors import ConfigError

_OTHER_MODULES = "networks.lora_flux is the module that can be converted; kind lora is written in its place"


def convert_kohya(train: Path | None, dataset: Path | None, command: str | None) -> Draft:
    """The recipe and report of a training TOML or a command line, with the data-set TOML that it names or ``dataset``.

    Raises :class:`ConfigError` for files that cannot be read, options of a wrong type, and models that flowgrain
    does not train.
    """
    values, where = {}, ""
    if (train is None) == (command is None):
        raise ConfigError("give kohya's training TOML, or its command with --from-command, one of the two")
    launch: dict[str, Any] = {}
    if command is not None:
        launch, values = parse_command(command)
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
    _refuse_other_models(options)
    _write_model(options, draft)
    write_adapter(options, draft)
    write_optimizer(options, draft)
    write_time(options, draft)
    processes = _write_launch(launch, draft)
    folders = _folders(options, dataset, train, draft)
    write_data(draft, folders)
    write_schedule_and_budget(options, draft, count_pictures(folders), processes)
    write_run(options, draft)
    for name in ("config_file", "dataset_config"):
        if options.given(name):
            draft.not_needed(options.cite(name), "read")
    draft.sweep(options, NOT_NEEDED, UNSUPPORTED)
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


def _refuse_other_models(options: Options) -> None:
    kind = options.text("model_type", "flux")
    if kind != "flux":
        raise ConfigError(f"{options.where}: model_type: {kind} is not trained by flowgrain; flux is")
    flux = (
        "ae",
        "clip_l",
        "t5xxl",
        "guidance_scale",
        "timestep_sampling",
        "model_prediction_type",
        "discrete_flow_shift",
    )
    module = options.text("network_module") or ""
    if "flux" not in module and not any(options.given(name) for name in flux):
        raise ConfigError(
            f"{options.where}: no option of FLUX training in it (network_module networks.lora_flux, ae, clip_l, t5xxl, "
            "timestep_sampling): FLUX is the family that flowgrain trains"
        )


def _write_model(options: Options, draft: Draft) -> None:
    path = options.text("pretrained_model_name_or_path")
    if path is None:
        raise ConfigError(f"{options.where}: pretrained_model_name_or_path: the model is required")
    write_model(draft, options.cite("pretrained_model_name_or_path"), path)
    if options.given("model_type"):
        draft.not_needed(options.cite("model_type"), "the family is read from the model")
    guidance = options.number("guidance_scale", 3.5)
    draft.convert(options.cite("guidance_scale"), "model.guidance", guidance)
    precision = options.text("mixed_precision", "no")
    cited = options.cite("mixed_precision")
    if precision == "no":
        draft.convert(cited, "precision", "fp32")
        draft.complete("model.dtype", "float32", cited.origin)
    else:
        other = "" if precision == "bf16" else "float16 overflows in FLUX: bfloat16 is used"
        draft.convert(cited, "precision", "bf16", other)
        draft.complete("model.dtype", "bfloat16", cited.origin)
    _write_memory(options, draft)


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
            draft.not_needed(options.cite(name), "caption embeddings are cached wherever data.cache is on")
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
