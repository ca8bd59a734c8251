"""Detection networks in transformers layout: checked, loaded once a process, and run on regions of pictures.

Weights are read from safetensors alone. Pictures go through transformers' own image processors in their Pillow form.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.errors import ConfigError
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_image_processor, load_model, read_model_type
from flowgrain.pretrained.weights import folder_digest, model_files, model_folder
from flowgrain.slices.detectors.base import DetectorContext, View
from flowgrain.slices.detectors.rf_detr import MODEL_TYPE, read_rf_detr

_loaded: WeakValueDictionary[tuple[Any, ...], "HfNetwork"] = WeakValueDictionary()


@dataclass(frozen=True)
class Outputs:
    """What the post-processing functions of transformers read: on the CPU, float32."""

    logits: Float[Tensor, "b queries classes"]
    pred_boxes: Float[Tensor, "b queries 4"]


class HfNetwork:
    """A network with its image processor; :func:`load_network` loads it."""

    def __init__(self, folder: Path, model: Any, image_processor: Any, device: torch.device, dtype: Precision):
        self.folder = folder
        self.config = model.config
        self.image_processor = image_processor
        self._model = model
        self._device = device
        self._dtype = getattr(torch, dtype)
        self._digest: str | None = None

    def prepare(self, view: View) -> dict[str, Tensor]:
        """The network's inputs for the region of a view, without a batch's axis."""
        region = view.image if view.region == (0, 0, *view.image.size) else view.image.crop(view.region)
        inputs = self.image_processor(images=region, return_tensors="pt")
        return {name: tensor[0] for name, tensor in inputs.items()}

    @torch.inference_mode()
    def run(self, inputs: dict[str, Tensor]) -> Outputs:
        """The outputs for a batch; on CUDA, in half precision where asked for, weights stay in float32."""
        moved = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            outputs = self._model(**moved)
        return Outputs(outputs.logits.float().cpu(), outputs.pred_boxes.float().cpu())

    def digest(self) -> str:
        """SHA-256 over weights, configurations and tokenizer, read once."""
        if self._digest is None:
            self._digest = folder_digest(self.folder)
        return self._digest


def load_network(
    model: str,
    revision: str | None,
    auto: Any,
    known: Collection[str],
    purpose: str,
    context: DetectorContext,
    dtype: Precision,
) -> HfNetwork:
    """The network of a folder or hub id; whoever asks for the same one gets the same one while it is in use.

    ``auto`` is the class of transformers that loads it, ``known`` the values of ``model_type`` that will do. Where the
    context says how many threads, torch is held to them. Raises :class:`flowgrain.errors.ModelError` for what cannot be
    found, read or used, :class:`ConfigError` for a device or precision that is not to be had.
    """
    device = _device(context.device, dtype)
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    folder = model_folder(model, revision, safetensors_only=True)
    model_type = read_model_type(folder, known, purpose)
    stamps = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in model_files(folder))
    key = (folder.resolve(), stamps, str(device), dtype)
    network = _loaded.get(key)
    if network is None:
        processor = read_rf_detr(folder) if model_type == MODEL_TYPE else load_image_processor(folder)
        loaded: Any = load_model(folder, auto=auto, safetensors_only=True)
        network = _loaded[key] = HfNetwork(folder, loaded.to(device), processor, device, dtype)
    return network


def _device(name: str, dtype: Precision) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}': no device of torch; write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch finds {torch.cuda.device_count()} CUDA devices; set it to cpu")
    if device.type == "cpu" and dtype != "float32":
        raise ConfigError(f"dtype {dtype}: half precision is for CUDA; on the CPU leave it at float32")
    return device
