"""Single files of FLUX.1: Black Forest Labs' own layout, which ComfyUI and kohya's trainer read and write.

A file holds the transformer alone (``flux1-dev.safetensors``) or all four models under ComfyUI's prefixes. Its
configuration is a diffusers folder, or a hub id whose files are in the local cache; nothing is downloaded. What the
file lacks comes from that folder's part folders: weights in diffusers layout, or one single file each
(``vae/ae.safetensors``, ``text_encoder/clip_l.safetensors``, ``text_encoder_2/t5xxl_fp16.safetensors``).

Every tensor of a part must have its place in the model, and every place its tensor. Weights of 8-bit floating point
are widened, times their scale where they have one; other quantised weights are refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors import safe_open
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.base import Quantization
from flowgrain.families.flux import Flux
from flowgrain.families.loading import load_part, quiet_libraries, skeleton_pipeline
from flowgrain.families.single_file import Header, SingleFile, load_single_file, read_header
from flowgrain.pretrained.weights import LOAD_ERRORS, one_line

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape of what a model holds."""

_PREFIXES = {
    "transformer": ("model.diffusion_model.", ""),
    "vae": ("vae.", "first_stage_model.", ""),
    "text_encoder": ("text_encoders.clip_l.transformer.", ""),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.", ""),
}
"""Part -> where a file of all four keeps it; a file of its own has no prefix."""

_FIRST_NAMES = {
    "transformer": "double_blocks.0.",
    "vae": "decoder.conv_in.",
    "text_encoder": "text_model.embeddings.",
    "text_encoder_2": "shared.",
}
"""Part -> names that only its weights have."""

_USUAL_FILES = {"vae": "ae.safetensors", "text_encoder": "clip_l.safetensors", "text_encoder_2": "t5xxl.safetensors"}

_LIBRARY_FILES = ("diffusion_pytorch_model", "model")
"""How names of weights in diffusers layout begin."""

_SCALES = (".scale_weight", ".weight_scale")
_NO_WEIGHTS = (
    "logit_scale", "text_projection.weight", "embeddings.position_ids", "spiece_model", "scaled_fp8", ".scale_input",
    ".input_scale", ".comfy_quant", *_SCALES,
)  # fmt: skip
"""Endings of what files hold beside the weights: parts of CLIP that FLUX does not read, marks of 8-bit formats."""

_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_BLOCKS = {
    "double_blocks": {
        "img_mod.lin": "norm1.linear",
        "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
        "img_attn.norm.query_norm": "attn.norm_q",
        "img_attn.norm.key_norm": "attn.norm_k",
        "img_attn.proj": "attn.to_out.0",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mod.lin": "norm1_context.linear",
        "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
        "txt_attn.norm.query_norm": "attn.norm_added_q",
        "txt_attn.norm.key_norm": "attn.norm_added_k",
        "txt_attn.proj": "attn.to_add_out",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
    },
    "single_blocks": {
        "modulation.lin": "norm.linear",
        "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
        "linear2": "proj_out",
        "norm.query_norm": "attn.norm_q",
        "norm.key_norm": "attn.norm_k",
    },
}
"""Layers of the original blocks -> diffusers' layers, those whose rows follow one another in one matrix together."""

_STACKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def load_flux_single_file(
    path: Path,
    config: str,
    dtype: torch.dtype,
    device: torch.device,
    parts: Mapping[str, Path] | None = None,
    quantization: Quantization = "none",
) -> Flux:
    """A FLUX.1 model from single files, frozen and in eval mode.

    ``config`` names a diffusers folder or cached hub id that describes the model; ``parts`` names files of ``vae``,
    ``text_encoder`` (CLIP) and ``text_encoder_2`` (T5) that go before the folder's. Raises ModelError for files that
    cannot be read, are incomplete or do not fit the configuration.
    """
    file = FluxFile(read_header(path), config, parts)
    family: Any = load_single_file(Flux, file, str(path), dtype, device, quantization)
    return family


class FluxFile(SingleFile):
    """A file with FLUX.1's transformer, and the models around it where it has them."""

    family = "flux"

    def __init__(self, header: Header, config: str | None, parts: Mapping[str, Path] | None = None):
        if config is None:
            raise ModelError(
                f"{header.path}: a FLUX file needs model.config, a diffusers folder that describes it: the JSON files "
                "and tokenizers of FLUX.1-dev or FLUX.1-schnell, with weights for what the file lacks"
            )
        self._header = header
        self._config = config
        self._parts = {name: read_header(part) for name, part in (parts or {}).items()}

    @contextmanager
    def configuration(self) -> Iterator[str]:
        """See :meth:`SingleFile.configuration`: the folder itself, or the local copy of a hub id's files."""
        yield str(_local_folder(self._config))

    def pipeline(
        self, kind: type[DiffusionPipeline], folder: str, dtype: torch.dtype, without: tuple[str, ...] = ()
    ) -> Any:
        """See :meth:`SingleFile.pipeline`."""
        pipeline = skeleton_pipeline(kind, folder, dtype, without)
        sources = {name: self._source(name, Path(folder)) for name in _PREFIXES}
        self._refuse_lacking([name for name, source in sources.items() if source is None], folder)
        for name, source in sources.items():
            model = getattr(pipeline, name)
            try:
                with quiet_libraries():
                    if isinstance(source, Header):
                        part = self._converted(name, source, model, dtype)
                    else:
                        part = load_part(type(model), folder, name, dtype)
            except LOAD_ERRORS as error:
                where = source.path if isinstance(source, Header) else f"{folder}/{name}"
                raise ModelError(f"{where}: cannot be loaded as {name} of FLUX.1 ({one_line(error)})") from None
            pipeline.register_modules(**{name: part})
        return pipeline

    def _source(self, name: str, folder: Path) -> Header | Path | None:
        """The file that holds a part, its folder where that has weights in diffusers layout, None for neither."""
        for header in (self._parts.get(name), self._header):
            if header is not None and _prefix(header, name) is not None:
                return header
        files = sorted((folder / name).glob("*.safetensors"))
        if any(file.name.startswith(_LIBRARY_FILES) for file in files):
            return folder / name
        if len(files) > 1:
            raise ModelError(f"{folder / name}: holds {', '.join(file.name for file in files)}; leave one of them")
        return read_header(files[0]) if files else None

    def _converted(self, name: str, header: Header, model: Any, dtype: torch.dtype) -> Any:
        """A part from the original layout; ``model`` is the one without values that the configuration describes."""
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        prefix = _prefix(header, name)
        if prefix is None:
            raise self._misfit(header, f"holds no weights of {name} in a layout that is known")
        # transformers keeps some of T5's layers in float32 where the rest is float16: it casts by itself then
        as_it_is = dtype == torch.float16 and name.startswith("text_encoder")
        weights = _read(header, prefix, None if as_it_is else dtype)
        if name == "transformer":
            state = _transformer_state(weights, shapes)
        elif name == "vae":
            state: dict[str, Tensor] = convert_ldm_vae_checkpoint(weights, model.config)
        else:
            state = _text_encoder_state(weights, shapes)
        self._check(header, name, state, shapes, len(weights))
        kind: Any = type(model)
        if name.startswith("text_encoder"):
            return kind.from_pretrained(None, config=model.config, state_dict=state, dtype=dtype)
        with init_empty_weights():
            part = kind.from_config(model.config)
        part.load_state_dict(state, assign=True)
        return part

    def _check(self, header: Header, name: str, state: dict[str, Tensor], shapes: Shapes, count: int) -> None:
        """Raise ModelError unless tensors and places match one to one."""
        missing = sorted(set(shapes) - set(state) - {"encoder.embed_tokens.weight"})  # T5's, the same as shared.weight
        if missing:
            raise self._misfit(header, f"{len(missing)} weights of {name} are missing: {', '.join(missing[:3])}")
        foreign = sorted(set(state) - set(shapes))
        if foreign:
            raise self._misfit(header, f"{len(foreign)} weights of {name} have no place: {', '.join(foreign[:3])}")
        if name == "vae" and len(state) != count:
            raise self._misfit(header, f"{count - len(state)} weights of vae have no place")
        for key, tensor in state.items():
            if tuple(tensor.shape) != shapes[key]:
                raise self._misfit(header, f"{name}.{key} is {tuple(tensor.shape)} there and {shapes[key]} here")

    def _refuse_lacking(self, names: list[str], folder: str) -> None:
        if names:
            places = ", ".join(f"{folder}/{name}/{_USUAL_FILES[name]}" for name in names)
            raise ModelError(
                f"{self._header.path}: holds no {', '.join(names)}, and neither does {self._config}; put the weights "
                f"there: {places}, or complete the folder in diffusers layout"
            )

    def _misfit(self, header: Header, reason: str) -> ModelError:
        return ModelError(
            f"{header.path}: does not fit the configuration {self._config} ({reason}); it is incomplete or of another "
            "model: download it again, or name the folder that describes it as model.config"
        )


def _local_folder(config: str) -> Path:
    """The folder of a configuration, which must be FLUX.1's; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    folder = Path(config)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(config, local_files_only=True))
        except (OSError, HFValidationError, ValueError) as error:
            raise ModelError(
                f"model.config {config}: neither a folder nor a hub model in the local cache ({one_line(error)}); "
                "download its JSON files and tokenizers first"
            ) from None
    try:
        index: Any = Flux.pipeline_class.load_config(str(folder), local_files_only=True)
    except LOAD_ERRORS as error:
        raise ModelError(f"model.config {config}: model_index.json cannot be read ({one_line(error)})") from None
    if index.get("_class_name") != Flux.pipeline_class.__name__:
        raise ModelError(f"model.config {config}: describes a {index.get('_class_name')}, the single file is FLUX.1's")
    return folder


def _prefix(header: Header, name: str) -> str | None:
    """The prefix of a part in a file, None where the file does not hold it."""
    return next((prefix for prefix in _PREFIXES[name] if header.has(f"{prefix}{_FIRST_NAMES[name]}")), None)


def _read(header: Header, prefix: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Weights of a part without their prefix, in ``dtype`` (None: their own, 8-bit floats as float32).

    Raises ModelError for weights that are quantised in another way.
    """
    with safe_open(header.path, framework="pt") as file:
        return {
            name: _widened(file, header, f"{prefix}{name}").to(dtype)
            for name in header.names(prefix)
            if not name.endswith(_NO_WEIGHTS)
        }


def _widened(file: Any, header: Header, name: str) -> Tensor:
    tensor, layer = file.get_tensor(name), name.removesuffix(".weight")
    scales = [layer + ending for ending in _SCALES if layer + ending in header.shapes]
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        if not scales:
            return tensor.float()
        scale = file.get_tensor(scales[0])
        if scale.numel() == 1:
            return tensor.float() * scale.float()
    elif tensor.is_floating_point() and not scales:
        return tensor
    raise ModelError(
        f"{header.path}: {name} is quantised ({tensor.dtype} with {', '.join(scales) or 'no scale'}); only plain "
        "weights and 8-bit floats with one scale a matrix are read, take the bf16 or fp16 file"
    )


def _transformer_state(weights: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """diffusers' transformer from the original names; fused matrices split, a name without a place as it was."""
    state = {}
    for name, tensor in weights.items():
        targets = _transformer_names(name)
        if name.startswith("final_layer.adaLN_modulation."):
            shift, scale = tensor.chunk(2)
            tensor = torch.cat([scale, shift])  # diffusers' AdaLayerNormContinuous takes them in this order
        if not all(target in shapes for target in targets):
            state[name] = tensor
            continue
        if len(targets) == 1:
            state[targets[0]] = tensor
            continue
        sizes = [shapes[target][0] for target in targets]
        if sum(sizes) != len(tensor):
            sizes = [len(tensor) // len(targets)] * len(targets)  # of another width: the check of shapes names it
        pieces = tensor.split(sizes)
        state.update({target: piece.clone() for target, piece in zip(targets, pieces, strict=False)})
    return state


def _transformer_names(name: str) -> tuple[str, ...]:
    """diffusers' names for an original one; the name itself where it is unknown."""
    layer, _, kind = name.rpartition(".")
    kind = "weight" if kind == "scale" else kind  # of the norms of queries and keys
    stack, _, rest = layer.partition(".")
    if stack in _BLOCKS:
        index, _, layer = rest.partition(".")
        places = _BLOCKS[stack].get(layer, "").split()
        targets = tuple(f"{_STACKS[stack]}.{index}.{place}.{kind}" for place in places)
    else:
        targets = (f"{_EMBEDDERS[layer]}.{kind}",) if layer in _EMBEDDERS else ()
    return targets or (name,)


def _text_encoder_state(weights: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """transformers' own names; its CLIP had a prefix before version 5.6."""
    flat = not any(name.startswith("text_model.") for name in shapes)
    return {name.removeprefix("text_model.") if flat else name: tensor for name, tensor in weights.items()}
