"""Single files of Stable Diffusion 1.x, 2.x and XL, and of their derivatives (Pony, Illustrious, Animagine, NoobAI).

The package carries these models' configuration and CLIP's vocabulary, so that a file alone is enough. diffusers maps
the original names to its own; what it passes over in silence, missing and left-over weights, is an error here.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import safe_open
from torch import nn
from transformers.convert_slow_tokenizer import bytes_to_unicode

from flowgrain.errors import ModelError
from flowgrain.families.configuration import CONFIGURATION_SUFFIXES
from flowgrain.families.loading import quiet_libraries
from flowgrain.families.single_file import CLASSIC, Header, SingleFile
from flowgrain.pretrained.weights import LOAD_ERRORS, one_line

_FAMILIES = {
    "sdxl": ("sdxl", "StableDiffusionXLPipeline"),
    "sd15": ("stable-diffusion", "StableDiffusionPipeline"),
    "sd21": ("stable-diffusion", "StableDiffusionPipeline"),
}
"""Layout, a folder of assets/single_file -> (family, pipeline class)."""

_VARIANTS = {5: "a depth", 7: "an upscaling", 8: "an image-editing", 9: "an inpainting"}
"""Input channels of U-Nets that read more than noised latents of four channels."""

_TELLING_BIAS = f"{CLASSIC}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLING_SPREAD = 0.09
"""A Stable Diffusion 2 file does not say what it predicts. ComfyUI tells from this bias: spread wider, it is v."""

_AUTOENCODER = ("first_stage_model.", "vae.")


class UNetFile(SingleFile):
    """A file in the layout of the original code: ``model.diffusion_model``, text encoders, ``first_stage_model``."""

    def __init__(self, header: Header, config: str | None):
        self._header = header
        self._config = config
        self._layout = _layout(header)
        self.family = _FAMILIES[self._layout][0]

    @contextmanager
    def configuration(self) -> Iterator[str]:
        """See :meth:`SingleFile.configuration`; what the file says of its noise levels goes before the folder."""
        with tempfile.TemporaryDirectory(prefix="flowgrain-") as temporary:
            folder = Path(temporary) / "model"
            if self._config is None:
                _write_own(self._layout, folder)
            else:
                _copy_configuration(self._config, _FAMILIES[self._layout][1], folder)
            self._adjust(folder)
            yield str(folder)

    def pipeline(
        self, kind: type[DiffusionPipeline], folder: str, dtype: torch.dtype, without: tuple[str, ...] = ()
    ) -> Any:
        """See :meth:`SingleFile.pipeline`."""
        found: Any = kind  # which of them have from_single_file, no type checker follows
        self._check_count(folder)
        try:
            with quiet_libraries():
                pipeline = found.from_single_file(
                    str(self._header.path), config=folder, local_files_only=True, dtype=dtype, **dict.fromkeys(without)
                )
        except (*LOAD_ERRORS, SingleFileComponentError) as error:
            raise self._misfit(f"{type(error).__name__}: {one_line(error)}") from None
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                self._refuse_missing(name, [key for key, value in part.state_dict().items() if value.is_meta])
        return pipeline

    def _check_count(self, folder: str) -> None:
        """Raise ModelError unless U-Net and autoencoder have as many weights as their configurations say.

        The mapping of names is one to one, so that a weight too few or too many shows before gigabytes are read.
        """
        autoencoder = [name for prefix in _AUTOENCODER for name in self._header.names(prefix) if _in_model(name)]
        parts = (("unet", UNet2DConditionModel, self._header.names(CLASSIC)), ("vae", AutoencoderKL, autoencoder))
        for name, kind, found in parts:
            expected = _weight_count(kind, folder, name)
            if len(found) != expected:
                raise self._misfit(f"it holds {len(found)} weights of {name}, the configuration asks for {expected}")

    def _refuse_missing(self, part: str, names: list[str]) -> None:
        if names:
            raise self._misfit(f"{len(names)} weights of {part} are missing: {', '.join(sorted(names)[:3])}")

    def _misfit(self, reason: str) -> ModelError:
        return ModelError(
            f"{self._header.path}: does not fit the configuration {self._config or self._layout} ({reason}); it is "
            "incomplete or of another architecture: download it again, or name a folder that describes it as "
            "model.config"
        )

    def _adjust(self, folder: Path) -> None:
        """Write what the file says of its noise levels and prediction into the configuration."""
        scheduler = folder / "scheduler" / "scheduler_config.json"
        if "v_pred" in self._header.shapes:
            _edit(scheduler, {"prediction_type": "v_prediction"})
            if "ztsnr" in self._header.shapes:
                # a model that was shown pure noise draws from it: the last step first (arXiv 2305.08891, section 3.3)
                _edit(scheduler, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
        elif self._layout == "sd21" and self._config is None and not self._predicts_v():
            _edit(scheduler, {"prediction_type": "epsilon"})
            _edit(folder / "unet" / "config.json", {"sample_size": 64})

    def _predicts_v(self) -> bool:
        if _TELLING_BIAS not in self._header.shapes:
            return False
        with safe_open(self._header.path, framework="pt") as file:
            return file.get_tensor(_TELLING_BIAS).float().std(correction=0).item() > _TELLING_SPREAD


def _layout(header: Header) -> str:
    """The layout of a file; raises ModelError for one of no known model and for one that lacks a part."""
    first = header.shapes.get(f"{CLASSIC}input_blocks.0.0.weight")
    if first is None:
        raise _refusal(
            header,
            f"holds no '{CLASSIC}input_blocks': no Stable Diffusion 1, 2 or XL in the original layout; give a "
            "diffusers folder",
        )
    if len(first) > 1 and first[1] in _VARIANTS:
        raise _refusal(
            header, f"is {_VARIANTS[first[1]]} model (its U-Net takes {first[1]} channels); give a text-to-image model"
        )
    if "edm_mean" in header.shapes or "edm_vpred.sigma_max" in header.shapes:
        raise _refusal(header, "was trained with the continuous noise levels of EDM, which are not supported")
    if not any(header.has(prefix) for prefix in _AUTOENCODER):
        raise _refusal(header, "holds no autoencoder (first_stage_model); give a file with its VAE in it")
    if header.has("conditioner.embedders.1.model.") and header.has("conditioner.embedders.0.transformer."):
        return "sdxl"
    if header.has("conditioner.embedders.0.model.") and header.has(f"{CLASSIC}label_emb."):
        raise _refusal(header, "is an SDXL refiner, which finishes pictures of the base model; give the base model")
    if header.has("cond_stage_model.transformer.text_model."):
        return "sd15"
    if header.has("cond_stage_model.model.transformer."):
        return "sd21"
    raise _refusal(
        header, "holds no text encoder (cond_stage_model or conditioner) in a layout that is known; give a whole model"
    )


def _refusal(header: Header, reason: str) -> ModelError:
    return ModelError(f"{header.path}: {reason}")


def _weight_count(kind: Any, folder: str, name: str) -> int:
    """How many tensors a diffusers model of this configuration has."""
    with torch.device("meta"):
        return len(kind.from_config(kind.load_config(folder, subfolder=name)).state_dict())


def _in_model(name: str) -> bool:
    """Whether a name of the autoencoder is of what encodes and decodes, not of its training losses."""
    return name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))


def _write_own(layout: str, folder: Path) -> None:
    """The package's own configuration of a layout, with CLIP's vocabulary beside every tokenizer's settings."""
    assets = Path(str(resources.files("flowgrain"))) / "assets" / "single_file"
    shutil.copytree(assets / layout, folder)
    merges = assets / "clip" / "merges.txt"
    vocabulary = json.dumps(_vocabulary(merges))
    for tokenizer in folder.glob("tokenizer*"):
        shutil.copy(merges, tokenizer / "merges.txt")
        (tokenizer / "vocab.json").write_text(vocabulary, encoding="utf-8")


def _vocabulary(merges: Path) -> dict[str, int]:
    """CLIP's tokens in the order of their numbers: bytes, bytes that end a word, merges, start and end of text."""
    letters = list(bytes_to_unicode().values())
    pairs = merges.read_text(encoding="utf-8").splitlines()[1:]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in pairs)]
    return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _copy_configuration(config: str, pipeline_class: str, folder: Path) -> None:
    """Configuration files and tokenizers of a diffusers folder or hub id, without weights."""
    source = Path(config) if Path(config).is_dir() else _hub_configuration(config)
    index = source / "model_index.json"
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.config {config}: model_index.json cannot be read ({one_line(error)}); give a folder in diffusers "
            "layout or a hub id"
        ) from None
    name = found.get("_class_name") if isinstance(found, dict) else None
    if name != pipeline_class:
        raise ModelError(f"model.config {config}: describes a {name}, the single file is of a {pipeline_class}")
    shutil.copytree(source, folder, ignore=_weights)


def _weights(folder: str, names: list[str]) -> list[str]:
    """The files among ``names`` that are no configuration."""
    files = [name for name in names if (Path(folder) / name).is_file()]
    return [name for name in files if not name.endswith(CONFIGURATION_SUFFIXES)]


def _hub_configuration(config: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        patterns = [f"*{suffix}" for suffix in CONFIGURATION_SUFFIXES]
        return Path(snapshot_download(config, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ModelError(
            f"model.config {config}: neither a folder nor a hub model that can be reached "
            f"({type(error).__name__}: {one_line(error)})"
        ) from None


def _edit(path: Path, values: dict[str, Any]) -> None:
    """Set entries of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **values}), encoding="utf-8")
