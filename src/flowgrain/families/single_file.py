"""Checkpoints of one safetensors file, as they are shared for ComfyUI and its like: what such a file holds.

Only names and shapes are read here, from the file's header. A file says nothing of its configuration: a folder of
small JSON files does (:class:`SingleFile`). Pickled files (.ckpt) can run code when they are opened and never are.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from flowgrain.errors import ModelError
from flowgrain.families.base import Quantization
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.families.quantization import quantize_linears
from flowgrain.pretrained.weights import one_line

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
SUFFIXES = (".safetensors", ".sft", ".gguf", *PICKLE_SUFFIXES)
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
"""How torch.save's archives and bare pickles begin. The length that a safetensors file begins with may look alike: a
file is asked for these only when it is not one."""

CLASSIC = "model.diffusion_model."
"""Where the original code keeps the network that predicts."""

_ADAPTER_ENDINGS = (
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora.down.weight", ".hada_w1_a",
    ".lokr_w1", ".lokr_w1_a", ".lora_magnitude_vector", ".dora_scale", ".oft_blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """Names and shapes of a safetensors file's tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def has(self, prefix: str) -> bool:
        """Whether a tensor's name begins with ``prefix``."""
        return any(name.startswith(prefix) for name in self.shapes)

    def names(self, prefix: str) -> list[str]:
        """Names that begin with ``prefix``, without it."""
        return [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]


class SingleFile(ABC):
    """A model in one file, beside the configuration that it needs."""

    family: str
    """The family's name in the registry."""

    @abstractmethod
    def configuration(self) -> AbstractContextManager[str]:
        """A temporary folder in diffusers layout with configuration files and tokenizers, and without weights.

        Raises ModelError for a configuration that cannot be found or is of another architecture.
        """

    @abstractmethod
    def pipeline(
        self, kind: type[DiffusionPipeline], folder: str, dtype: torch.dtype, without: tuple[str, ...] = ()
    ) -> Any:
        """A pipeline with this file's weights, configured by a folder of :meth:`configuration`.

        ``without`` names optional parts that are left out. Raises ModelError where weights are missing or do not fit.
        """


def is_single_file(model: str) -> bool:
    """Whether a model's name means a file: it is one, or ends as weight files do."""
    path = Path(model)
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def open_single_file(model: str, config: str | None) -> SingleFile:
    """The checkpoint that a file holds; ``config`` names a diffusers folder or hub id that describes it.

    Raises ModelError for a file that cannot be read or holds no model that trains.
    """
    header = read_header(Path(model))
    _refuse_foreign(header)
    if header.has("double_blocks.0.") or header.has(f"{CLASSIC}double_blocks.0."):
        from flowgrain.families.single_file_flux import FluxFile

        return FluxFile(header, config)
    from flowgrain.families.single_file_unet import UNetFile

    return UNetFile(header, config)


def load_single_file(
    kind: type[DiffusersFamily],
    file: SingleFile,
    model: str,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
) -> DiffusersFamily:
    """A file's model as a family, frozen and in eval mode, as :meth:`Family.load` gives a folder's; raises as that."""
    with file.configuration() as folder:
        pipeline = file.pipeline(kind.pipeline_class, folder, dtype, kind.left_out)
    family = kind(pipeline, model)
    quantize_linears(family.blocks(), quantization, device)
    pipeline.to(device)
    return family


def read_header(path: Path) -> Header:
    """Names and shapes of a file's tensors; raises ModelError for a pickled, truncated or foreign file."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a safetensors file, a diffusers folder or a hub id")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise _pickled(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        with path.open("rb") as stream:
            start = stream.read(4)
        if start.startswith(_PICKLE_MAGIC):
            raise _pickled(path) from None
        if start == b"GGUF":
            raise ModelError(
                f"{path}: GGUF files hold quantised weights, which cannot be trained; give safetensors"
            ) from None
        raise ModelError(
            f"{path}: is truncated or no safetensors file ({one_line(error)}); compare its size and checksum with the "
            "source's and download it again"
        ) from None
    return Header(path, shapes)


def _pickled(path: Path) -> ModelError:
    return ModelError(
        f"{path}: a pickled checkpoint can run any code when it is opened, so it is never read; get the model as "
        "safetensors, or open it in a program and on a machine that you trust and save it as safetensors there"
    )


def _refuse_foreign(header: Header) -> None:
    """Raise ModelError for what is shared as safetensors too and is no text-to-image model."""
    shapes = header.shapes
    if any(name.endswith(_ADAPTER_ENDINGS) for name in shapes):
        raise _refusal(
            header, "an adapter (LoRA or its like)", "give its base model here and it as adapter.init_from.path"
        )
    if header.has("control_model.") or header.has("controlnet_") or header.has("input_hint_block."):
        raise _refusal(header, "a ControlNet", "give the model that it steers")
    if set(shapes) <= {"emb_params", "clip_l", "clip_g", "string_to_param"}:
        raise _refusal(header, "a text embedding (textual inversion)", "give a model")
    if header.has("joint_blocks.0.") or header.has(f"{CLASSIC}joint_blocks.0."):
        raise _refusal(header, "a Stable Diffusion 3 model", "which loads from a diffusers folder only, give that")
    if "conv_in.weight" in shapes and header.has("down_blocks.0."):
        raise _refusal(
            header, "a U-Net alone in diffusers layout", "give the folder with model_index.json that it belongs to"
        )
    if header.has("decoder.") and not header.has(CLASSIC):
        raise _refusal(header, "an autoencoder alone", "give a whole model")
    if header.has("text_model.") and not header.has(CLASSIC):
        raise _refusal(header, "a text encoder alone", "give a whole model")


def _refusal(header: Header, what: str, instead: str) -> ModelError:
    return ModelError(f"{header.path}: is {what}, no model that trains; {instead}")
