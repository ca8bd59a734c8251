"""SimpleTuner's data-loader file as folders of a recipe."""

import math
from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.folders import Folder, Given
from flowgrain.convert.options import Options, read_json
from flowgrain.convert.simpletuner_tables import BACKEND_NOT_NEEDED, BACKEND_UNSUPPORTED
from flowgrain.errors import ConfigError

_EMBEDS = ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache")


def read_backends(path: Path, options: Options, draft: Draft) -> list[Folder]:
    """The image data sets of ``path``; embeds, disabled and other kinds are reported.

    Raises :class:`ConfigError` where there is no local image data set, or the file cannot be understood.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ConfigError(f"{path}: expected a list of data sets, each an object")
    folders = []
    for number, item in enumerate(content):
        folder = _read(path, number, item, options, draft)
        if folder is not None:
            folders.append(folder)
    if options.given("eval_steps_interval") and not draft.has("validation.path"):
        draft.not_needed(options.cite("eval_steps_interval"), "no data set of type eval")
    if not folders:
        raise ConfigError(f"{path}: no data set of local pictures in it (type local, dataset_type image)")
    return folders


def _read(path: Path, number: int, item: dict[str, Any], options: Options, draft: Draft) -> Folder | None:
    given = item.get("id")
    name = given if isinstance(given, str) and given else f"[{number}]"
    backend = Options(item, f"{path}: {name}", {key: f"{name}.{key}" for key in item} | {"id": f"{name}.id"})
    kind = backend.text("dataset_type", "image") or "image"
    cited = backend.cite("id")
    if backend.active("disabled") or backend.active("disable"):
        draft.not_needed(cited, "disabled there: left out")
        return None
    if kind in _EMBEDS:
        draft.not_needed(cited, f"{kind}: caches of embeddings and latents are kept by themselves")
        return None
    if kind not in ("image", "eval"):
        draft.unsupported(
            cited,
            f"data sets of type {kind} are not read; masks are STEM.mask.png beside the pictures (data.mask file)",
        )
        return None
    storage = backend.text("type", "local")
    directory = backend.text("instance_data_dir") or backend.text("instance_data_root")
    source = "instance_data_dir" if backend.given("instance_data_dir") else "instance_data_root"
    if storage != "local" or not directory:
        draft.unsupported(cited, f"storage {storage}: download the pictures into a folder and add it to data.sources")
        return None
    if kind == "eval":
        _write_eval(backend, directory, source, options, draft)
        return None
    folder = Folder(Given(directory, backend.cite(source)), name if not name.startswith("[") else Path(directory).name)
    for key in ("type", "dataset_type", "disabled", "disable", "id", "default"):
        if backend.given(key):
            backend.cite(key)
    _repeats(backend, folder, draft)
    _captions(backend, folder, options, draft)
    _shuffle(backend, folder, draft)
    _shapes(backend, folder, options, draft)
    _offset(backend, folder, options, draft)
    draft.sweep(backend, BACKEND_NOT_NEEDED, BACKEND_UNSUPPORTED)
    return folder


def _write_eval(backend: Options, directory: str, source: str, options: Options, draft: Draft) -> None:
    if draft.has("validation.path"):
        draft.unsupported(backend.cite("id"), "one folder for validation.path: put the pictures together")
        return
    note = "measured in whole, with the same noise at fixed t each time"
    draft.convert(backend.cite(source), "validation.path", directory, note)
    every = options.integer("eval_steps_interval")
    if every:
        draft.convert(options.cite("eval_steps_interval"), "validation.every", every)


def _repeats(backend: Options, folder: Folder, draft: Draft) -> None:
    repeats = backend.integer("repeats", 0) or 0
    if repeats:
        folder.own["repeats"] = Given(repeats + 1, backend.cite("repeats"), "0 means once there, 1 means once here")
    elif backend.given("repeats"):
        draft.not_needed(backend.cite("repeats"), "shown once an epoch")
    if backend.given("probability") and backend.number("probability") != 1:
        draft.unsupported(backend.cite("probability"), "how often a picture is shown is its repeats")
    elif backend.given("probability"):
        draft.not_needed(backend.cite("probability"), "1: as often as its repeats say")
    for name in ("is_regularisation_data", "is_regularization_data"):
        if not backend.given(name):
            continue
        if backend.flag(name):
            note = "trained on its pictures; SimpleTuner trains towards the base model's prediction"
            folder.own["regularisation"] = Given(True, backend.cite(name), note)
        else:
            draft.not_needed(backend.cite(name), "switched off there")
    if backend.given("start_epoch") and backend.integer("start_epoch") != 1:
        draft.unsupported(backend.cite("start_epoch"), "every folder is used from start to end")
    elif backend.given("start_epoch"):
        draft.not_needed(backend.cite("start_epoch"), "from the start")


def _captions(backend: Options, folder: Folder, options: Options, draft: Draft) -> None:
    source = backend if backend.given("caption_strategy") else options
    strategy = source.text("caption_strategy", "filename") or "filename"
    cited = source.cite("caption_strategy")
    prompt = backend.text("instance_prompt") or options.text("instance_prompt")
    options.cite("instance_prompt")
    only = backend.flag("only_instance_prompt") or strategy in ("instanceprompt", "instance_prompt")
    if only and prompt:
        note = "where a picture has no caption file: keep the folder free of them"
        folder.own["caption"] = Given(prompt, backend.cite("instance_prompt"), note)
        draft.same(cited, "data.caption", note)
    elif strategy == "textfile":
        draft.same(cited, "data.path", "one caption a file: lines of a caption file are joined")
    else:
        draft.unsupported(cited, f"captions are read from .txt files: write them ({strategy})")
    if backend.flag("prepend_instance_prompt") and prompt and not only and not folder.own.get("regularisation"):
        folder.own["caption_prefix"] = Given(prompt, backend.cite("prepend_instance_prompt"))
    for name in ("prepend_instance_prompt", "only_instance_prompt", "instance_prompt"):
        used = name == "instance_prompt" and ("caption" in folder.own or "caption_prefix" in folder.own)
        if (
            backend.given(name)
            and not used
            and not (name == "prepend_instance_prompt" and "caption_prefix" in folder.own)
        ):
            if name == "only_instance_prompt" and only and prompt:
                draft.same(backend.cite(name), "data.caption")
            else:
                draft.not_needed(backend.cite(name), "not used there either")


def _shuffle(backend: Options, folder: Folder, draft: Draft) -> None:
    """caption_shuffle: so many shuffled forms of each caption, kept."""
    if not backend.given("caption_shuffle"):
        return
    given, cited = backend.raw("caption_shuffle"), backend.cite("caption_shuffle")
    if not isinstance(given, dict):
        raise ConfigError(f'{backend.where}: caption_shuffle: expected an object such as {{"enable": true}}')
    inner = Options(given, backend.where, {name: f"{cited.option}.{name}" for name in given})
    if not inner.flag("enable"):
        draft.not_needed(cited, "switched off there")
        return
    if inner.text("split_on", "comma") != "comma":
        draft.unsupported(cited, "tags are what stands between commas: rewrite the captions")
        return
    forms = inner.integer("count", 1) or 1
    note = "all forms are shuffled; the original is none of them"
    folder.shared["caption_shuffle"] = Given(True, cited, note if inner.flag("include_original") else "")
    folder.shared["caption_variants"] = Given(forms + inner.flag("include_original"), inner.cite("count"))
    if inner.integer("position_start", 0):
        folder.own["keep_tokens"] = Given(inner.integer("position_start"), inner.cite("position_start"))
    draft.sweep(inner, {"seed": "drawn from the run's seed"}, {})


def _shapes(backend: Options, folder: Folder, options: Options, draft: Draft) -> None:
    sized = backend if backend.given("resolution") else options
    value = sized.number("resolution", 1024.0) or 1024.0
    typed = backend if backend.given("resolution_type") else options
    kind = typed.text("resolution_type", "pixel_area")
    if value <= 0:
        raise ConfigError(f"{sized.where}: resolution: expected a positive number, got {value:g}")
    side, note = round(value), ""
    if kind == "area":
        side = max(round(math.sqrt(value * 1e6) / 64), 1) * 64
        note = f"{value:g} megapixels as a square of {side} px"
    elif kind == "pixel":
        note = "buckets of this area; there the shorter edge has this length"
    crop = backend.flag("crop")
    aspect = backend.text("crop_aspect", "square")
    if crop and aspect == "square":
        folder.own["buckets"] = Given([[side, side]], sized.cite("resolution"), note)
        style = backend.text("crop_style", "center")
        if style not in ("center", "centre"):
            draft.unsupported(
                backend.cite("crop_style"),
                "pictures are cut at the centre; 'flowgrain decompose' cuts faces and details",
            )
        elif backend.given("crop_style"):
            draft.not_needed(backend.cite("crop_style"), "at the centre, always")
    else:
        folder.own["resolution"] = Given(side, sized.cite("resolution"), note)
        if backend.given("crop_style"):
            draft.not_needed(backend.cite("crop_style"), "pictures are cut to the nearest bucket, at the centre")
    if crop and aspect == "random":
        draft.unsupported(backend.cite("crop_aspect"), "each picture has its nearest bucket, always")
    elif backend.given("crop_aspect"):
        draft.same(backend.cite("crop_aspect"), "data.buckets" if crop and aspect == "square" else "data.resolution")
    if backend.given("crop"):
        draft.same(backend.cite("crop"), "data.resolution", "" if crop else "pictures are cut to their nearest bucket")
    if typed.given("resolution_type"):
        draft.same(typed.cite("resolution_type"), "data.resolution", note)
    if backend.given("metadata_backend") and backend.text("metadata_backend") == "discovery":
        draft.not_needed(backend.cite("metadata_backend"), "pictures are read themselves")
    elif backend.given("metadata_backend"):
        draft.unsupported(backend.cite("metadata_backend"), "pictures are read themselves, captions from .txt files")


def _offset(backend: Options, folder: Folder, options: Options, draft: Draft) -> None:
    if not backend.given("timestep_sampling_offset"):
        return
    offset, cited = backend.number("timestep_sampling_offset") or 0.0, backend.cite("timestep_sampling_offset")
    if options.flag("flow_use_uniform_schedule") or options.flag("flow_use_beta_schedule"):
        draft.not_needed(cited, "SimpleTuner applies it to the sigmoid schedule alone")
        return
    scale = options.number("flow_sigmoid_scale", 1.0) or 0.0
    note = "" if scale == 1 else f"times flow_sigmoid_scale {scale:g}, taken to apply to the sum"
    folder.offset = Given(offset * scale, cited, note)
