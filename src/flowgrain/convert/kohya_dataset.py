"""kohya's data-set TOML (general, datasets, subsets) or ``train_data_dir`` as folders of a recipe."""

import math
from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.folders import Folder, Given
from flowgrain.convert.kohya_tables import SHARED_NOT_NEEDED, SHARED_UNSUPPORTED
from flowgrain.convert.options import Options, read_toml
from flowgrain.data.buckets import bucket_list
from flowgrain.errors import ConfigError

_COMMAND_NAMES = {"batch_size": "train_batch_size"}
_NOT_INHERITED = ("subsets", "image_dir", "is_reg", "class_tokens", "metadata_file", "conditioning_data_dir")
_INHERITED = (
    *("batch_size", "bucket_no_upscale", "bucket_reso_steps", "enable_bucket", "max_bucket_reso", "min_bucket_reso"),
    *("resolution", "skip_image_resolution", "resize_interpolation", "interpolation_type", "color_aug", "flip_aug"),
    *(
        "face_crop_aug_range",
        "random_crop",
        "shuffle_caption",
        "keep_tokens",
        "keep_tokens_separator",
        "caption_prefix",
    ),
    *(
        "caption_suffix",
        "caption_separator",
        "secondary_separator",
        "enable_wildcard",
        "caption_extension",
        "alpha_mask",
    ),
    *("caption_dropout_rate", "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min"),
    *("token_warmup_step", "cache_info", "conditioning_data_dir", "validation_split"),
)
"""Options of a folder that the training options may hold as well; the data-set TOML wins."""


def read_folders(options: Options, dataset: Path | None, draft: Draft) -> list[Folder]:
    """The folders of ``dataset`` or of train_data_dir, with the batch written to the draft.

    Raises :class:`ConfigError` where there is no folder, or a data-set TOML cannot be understood.
    """
    asked = {name: options.raw(_COMMAND_NAMES.get(name, name)) for name in _INHERITED}
    inherited = {name: value for name, value in asked.items() if value is not None}
    labels = {name: _COMMAND_NAMES.get(name, name) for name in inherited}
    if options.given("caption_extention") and "caption_extension" not in inherited:
        inherited["caption_extension"], labels["caption_extension"] = (
            options.raw("caption_extention"),
            "caption_extention",
        )
    subsets = (
        _of_directories(options, inherited, labels, draft)
        if dataset is None
        else _of_toml(dataset, inherited, labels, draft)
    )
    folders = [_folder(options, subset, draft) for subset in subsets]
    _settle_variation(folders, draft)
    _write_batch(options, subsets, draft)
    _write_cache(options, draft)
    _write_holdout(subsets, draft)
    for subset in subsets:
        draft.sweep(subset, SHARED_NOT_NEEDED, SHARED_UNSUPPORTED)
    return folders


def _of_directories(options: Options, inherited: dict[str, Any], labels: dict[str, str], draft: Draft) -> list[Options]:
    """train_data_dir and reg_data_dir, whose subfolders kohya reads as NUMBER_name."""
    found = []
    for name, regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
        if not options.given(name):
            continue
        values = {**inherited, "image_dir": options.text(name), "is_reg": regularisation, "kohya_layout": True}
        found.append(
            Options(values, options.where, {**labels, "image_dir": name, "is_reg": name, "kohya_layout": name})
        )
    if not found:
        raise ConfigError(f"{options.where}: no pictures: give the data-set TOML with --dataset, or set train_data_dir")
    return found


def _of_toml(path: Path, inherited: dict[str, Any], labels: dict[str, str], draft: Draft) -> list[Options]:
    tables = read_toml(path)
    unknown = sorted(set(tables) - {"general", "datasets"})
    general = _table(
        path, "general", {**tables.get("general", {})} if isinstance(tables.get("general", {}), dict) else None
    )
    for name in unknown:
        if isinstance(tables[name], dict):
            raise ConfigError(f"{path}: unknown section [{name}]; a data-set TOML has [general] and [[datasets]]")
        general[name] = tables[name]
    datasets = tables.get("datasets", [])
    if not isinstance(datasets, list) or not datasets:
        raise ConfigError(f"{path}: no [[datasets]] in it; is it the data-set TOML?")
    found = []
    for number, dataset in enumerate(datasets):
        table = _table(path, f"datasets[{number}]", dataset)
        subsets = table.get("subsets", [])
        if not isinstance(subsets, list) or not subsets:
            raise ConfigError(f"{path}: datasets[{number}] has no [[datasets.subsets]]")
        for place, subset in enumerate(subsets):
            label = f"datasets[{number}].subsets[{place}]"
            layers = (
                ("", inherited),
                ("general.", general),
                (f"datasets[{number}].", {key: value for key, value in table.items() if key != "subsets"}),
                (f"{label}.", _table(path, label, subset)),
            )
            values = {name: value for _, layer in layers for name, value in layer.items()}
            names = {**labels, **{name: f"{start}{name}" for start, layer in layers[1:] for name in layer}}
            found.append(Options(values, str(path), names))
    return found


def _table(path: Path, label: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {label}: expected a table of options, got {type(value).__name__}")
    return dict(value)


def _folder(options: Options, subset: Options, draft: Draft) -> Folder:
    directory = subset.text("image_dir")
    if not directory:
        raise ConfigError(f"{subset.where}: {subset.cite('image_dir').option}: a folder of pictures is required")
    folder = Folder(Given(directory, subset.cite("image_dir")), Path(directory.replace("\\", "/")).name)
    regularisation = subset.flag("is_reg")
    if subset.given("kohya_layout"):
        subset.cite("kohya_layout")
    if regularisation:
        note = "counts with its own repeats; kohya repeats it to match the training pictures"
        folder.own["regularisation"] = Given(True, subset.cite("is_reg"), note)
        if options.active("prior_loss_weight") and options.number("prior_loss_weight") != 1:
            folder.own["weight"] = Given(options.number("prior_loss_weight"), options.cite("prior_loss_weight"))
    elif subset.given("is_reg") and not subset.given("kohya_layout"):
        draft.not_needed(subset.cite("is_reg"), "not regularisation")
    if options.given("prior_loss_weight"):
        options.cite("prior_loss_weight")
    if subset.given("num_repeats"):
        folder.own["repeats"] = Given(subset.integer("num_repeats"), subset.cite("num_repeats"))
    _captions(subset, folder, draft, regularisation)
    _shapes(subset, folder, draft)
    _augmentation(options, subset, folder, draft)
    _attributes(options, subset, folder, draft)
    return folder


def _captions(subset: Options, folder: Folder, draft: Draft, regularisation: bool) -> None:
    if subset.active("class_tokens"):
        folder.own["caption"] = Given(subset.text("class_tokens"), subset.cite("class_tokens"))
    for name in ("caption_prefix", "caption_suffix"):
        if not subset.active(name):
            continue
        if regularisation:
            draft.unsupported(subset.cite(name), "pictures of regularisation keep their own captions")
        else:
            folder.own[name] = Given(subset.text(name), subset.cite(name))
    extension = subset.text("caption_extension", ".caption")
    cited = subset.cite("caption_extension")
    if extension in (".txt", ".caption"):
        folder.shared["caption_extension"] = Given(extension, cited)
    else:
        draft.unsupported(cited, "captions are read from .txt and .caption: rename the files")
    for name, key in (("caption_dropout_rate", "caption_dropout"), ("caption_tag_dropout_rate", "tag_dropout")):
        if subset.given(name):
            folder.shared[key] = Given(subset.number(name), subset.cite(name))
    if subset.given("shuffle_caption"):
        folder.shared["caption_shuffle"] = Given(subset.flag("shuffle_caption"), subset.cite("shuffle_caption"))
    if subset.given("caption_separator"):
        folder.shared["caption_separator"] = Given(subset.text("caption_separator"), subset.cite("caption_separator"))
    if subset.given("keep_tokens"):
        folder.own["keep_tokens"] = Given(subset.integer("keep_tokens"), subset.cite("keep_tokens"))


def _settle_variation(folders: list[Folder], draft: Draft) -> None:
    """keep_tokens and caption_separator are read where captions vary, in all folders alike."""
    varied = any(
        all(key in folder.shared and folder.shared[key].value for folder in folders)
        and len({folder.shared[key].value for folder in folders}) == 1
        for key in ("caption_shuffle", "tag_dropout")
    )
    for folder in folders:
        for settings, key in ((folder.own, "keep_tokens"), (folder.shared, "caption_separator")):
            if key in settings and not varied:
                draft.not_needed(settings.pop(key).cited, "read with shuffle_caption or tag dropout alone")


def _shapes(subset: Options, folder: Folder, draft: Draft) -> None:
    size = _size(subset)
    cited = subset.cite("resolution")
    steps = subset.integer("bucket_reso_steps", 64) or 64
    smallest, largest = subset.integer("min_bucket_reso", 256), subset.integer("max_bucket_reso", 1024)
    if not subset.flag("enable_bucket"):
        folder.own["buckets"] = Given(
            [list(size)], cited, "one shape: pictures are scaled to cover it and cut at the centre"
        )
        for name in ("bucket_reso_steps", "min_bucket_reso", "max_bucket_reso", "bucket_no_upscale"):
            if subset.given(name):
                draft.not_needed(subset.cite(name), "read with enable_bucket alone")
        if subset.given("enable_bucket"):
            draft.same(subset.cite("enable_bucket"), "data.buckets")
        return
    if subset.given("bucket_no_upscale") and subset.flag("bucket_no_upscale"):
        folder.own["resolution"] = Given(math.isqrt(size[0] * size[1]), cited)
        folder.shared["no_upscale"] = Given(True, subset.cite("bucket_no_upscale"))
        draft.same(subset.cite("enable_bucket"), "data.no_upscale")
        for name in ("bucket_reso_steps", "min_bucket_reso", "max_bucket_reso"):
            if subset.given(name):
                draft.not_needed(subset.cite(name), "a bucket is the picture's own size in steps of 64 px")
        return
    try:
        buckets = bucket_list(size, steps, smallest, largest)
        usual = bucket_list(size[0]) if size[0] == size[1] else ()
    except ConfigError as error:
        raise ConfigError(f"{subset.where}: {cited.option}, {subset.cite('max_bucket_reso').option}: {error}") from None
    if buckets == usual:
        folder.own["resolution"] = Given(size[0], cited)
    else:
        folder.own["buckets"] = Given([list(bucket) for bucket in buckets], cited)
    key = "data.resolution" if buckets == usual else "data.buckets"
    for name in ("enable_bucket", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso"):
        note = "the shape is chosen by the logarithm of the aspect ratio" if name == "enable_bucket" else ""
        draft.same(subset.cite(name), key, note)


def _size(subset: Options) -> tuple[int, int]:
    """(width, height) of ``resolution``: a number, two, or text of one or two."""
    value = subset.raw("resolution")
    if value is None:
        raise ConfigError(f"{subset.where}: resolution: kohya asks for it, here or in the data-set TOML")
    parts = (
        value.replace("x", ",").split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    try:
        sides = [int(part) for part in parts]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ConfigError(
            f"{subset.where}: {subset.cite('resolution').option}: expected SIZE or WIDTH,HEIGHT, got {value!r}"
        )
    return sides[0], sides[-1]


def _augmentation(options: Options, subset: Options, folder: Folder, draft: Draft) -> None:
    if subset.given("flip_aug"):
        folder.shared["flip"] = Given(subset.flag("flip_aug"), subset.cite("flip_aug"))
    mask = subset.given("alpha_mask") and subset.flag("alpha_mask")
    masked = options.given("masked_loss") and options.flag("masked_loss")
    if mask:
        folder.shared["mask"] = Given("alpha", subset.cite("alpha_mask"))
    elif masked and subset.active("conditioning_data_dir"):
        note = "put the masks beside the pictures as STEM.mask.png"
        folder.shared["mask"] = Given("file", subset.cite("conditioning_data_dir"), note)
    elif masked:
        draft.unsupported(options.cite("masked_loss"), "no mask is named: set data.mask to alpha or file")
    elif subset.active("conditioning_data_dir"):
        draft.unsupported(
            subset.cite("conditioning_data_dir"), "ControlNet is not trained; masks are read with masked_loss"
        )
    if masked:
        draft.same(options.cite("masked_loss"), "data.mask")
    if (mask or masked) and not draft.has("mask.unmasked"):
        draft.complete("mask.unmasked", 0.0, "kohya ignores what the mask leaves out")
        draft.complete("mask.normalise", False, "kohya divides by the whole area")
    resize = "resize_interpolation"
    if subset.given(resize) and subset.text(resize) == "lanczos":
        draft.not_needed(subset.cite(resize), "Lanczos, always")
    elif subset.given(resize):
        draft.unsupported(subset.cite(resize), "pictures are resized with Lanczos")


def _attributes(options: Options, subset: Options, folder: Folder, draft: Draft) -> None:
    """``custom_attributes.timestep_sampling.offset`` and what else is in custom_attributes."""
    attributes = subset.raw("custom_attributes")
    if attributes is None:
        return
    label = subset.cite("custom_attributes").option
    sampling = attributes.get("timestep_sampling", {}) if isinstance(attributes, dict) else None
    if not isinstance(sampling, dict):
        raise ConfigError(f"{subset.where}: {label}: expected tables, as in timestep_sampling = {{ offset = -0.5 }}")
    values = {f"timestep_sampling.{name}": value for name, value in sampling.items()}
    values |= {name: value for name, value in attributes.items() if name != "timestep_sampling"}
    inner = Options(values, subset.where, {name: f"{label}.{name}" for name in values})
    name = "timestep_sampling.offset"
    if inner.given(name):
        offset = inner.number(name) or 0.0
        if options.text("timestep_sampling", "sigma") in ("sigmoid", "shift", "flux_shift"):
            scale = options.number("sigmoid_scale", 1.0) or 0.0
            note = "" if scale == 1 else f"times sigmoid_scale {scale:g}, which kohya applies to the sum"
            folder.offset = Given(offset * scale, inner.cite(name), note)
        else:
            draft.not_needed(
                inner.cite(name),
                f"kohya ignores it with timestep_sampling {options.text('timestep_sampling', 'sigma')}",
            )
    unsupported = {"diff_output_preservation": "use a folder of regularisation pictures (regularisation: true)"}
    draft.sweep(inner, {}, unsupported)


def _write_batch(options: Options, subsets: list[Options], draft: Draft) -> None:
    sizes = [subset.integer("batch_size", 1) or 1 for subset in subsets]
    accumulation = options.integer("gradient_accumulation_steps", 1) or 1
    batch = max(sizes)
    note = "" if len(set(sizes)) == 1 else f"the largest of {sorted(set(sizes))}: a recipe has one"
    draft.complete("tuples.grouping", "slice", "kohya draws pictures one by one")
    for subset in subsets:
        draft.convert(subset.cite("batch_size"), "tuples.batch_size", batch * accumulation, note)
    if options.given("train_batch_size"):
        options.cite("train_batch_size")
    if options.given("gradient_accumulation_steps"):
        draft.same(options.cite("gradient_accumulation_steps"), "tuples.batch_size")
    if accumulation > 1:
        draft.complete("tuples.micro_batch", batch, "batch_size; memory only")


def _write_cache(options: Options, draft: Draft) -> None:
    if options.given("cache_latents_to_disk") and options.flag("cache_latents_to_disk"):
        note = "a folder of its own instead of files beside the pictures; two runs can share it"
        draft.convert(options.cite("cache_latents_to_disk"), "data.cache", "cache", note)
    elif options.given("cache_latents_to_disk"):
        draft.not_needed(options.cite("cache_latents_to_disk"), "switched off there")
    if options.given("cache_latents"):
        draft.not_needed(
            options.cite("cache_latents"), "data.cache is on by default: cached latents are the live ones bit for bit"
        )


def _write_holdout(subsets: list[Options], draft: Draft) -> None:
    given = [subset for subset in subsets if subset.active("validation_split")]
    shares = {subset.number("validation_split") for subset in given}
    for subset in given:
        cited = subset.cite("validation_split")
        if len(given) == len(subsets) and len(shares) == 1 and 0 < (subset.number("validation_split") or 0) < 1:
            draft.convert(
                cited, "data.holdout", subset.number("validation_split"), "split by source image, over all folders"
            )
            draft.complete("validation.keep_best", False, "kohya keeps no best checkpoint")
        else:
            advice = "data.holdout is one share for all folders; a folder of its own is validation.path, not a source"
            draft.unsupported(cited, advice)
