"""Detection networks in transformers layout: found, checked, loaded once a process, and run on regions of pictures.

Nothing here runs code from a file: weights are read from safetensors alone and no remote code is trusted. Pictures go
through transformers' own image processors in their Pillow form, with or without torchvision, and are never padded to
one another: only those of equal size share a batch, so what is found in one does not depend on its neighbours.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.utils import logging

from flowgrain.errors import ConfigError, ModelError
from flowgrain.slices.detectors.base import Detection, DetectorContext, View
from flowgrain.slices.detectors.nms import suppress
from flowgrain.slices.detectors.rf_detr import MODEL_TYPE, read_rf_detr

Precision = Literal["float32", "float16", "bfloat16"]

LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
MAX_ASPECT = 32
"""Regions longer than so many times their width have no boxes: scaled into a network they are thinner than a patch."""

_SIDE_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
_COMPUTED = ("num_batches_tracked",)
"""Endings of names of tensors that inference does not read; files may lack them."""

_loaded: WeakValueDictionary[tuple[Any, ...], "HfNetwork"] = WeakValueDictionary()


@dataclass(frozen=True)
class Outputs:
    """What the post-processing functions of transformers read: on the CPU, float32."""

    logits: Float[Tensor, "b queries classes"]
    pred_boxes: Float[Tensor, "b queries 4"]


@dataclass(frozen=True)
class Found:
    """Boxes (x0, y0, x1, y1) in pixels of a region, with their scores and labels."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: list[str]


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
        """SHA-256 over the names and bytes of weights, configurations and tokenizer, read once.

        Bytes and not times, so that another machine's copy, or one downloaded again, counts as the same model.
        """
        if self._digest is None:
            digest = hashlib.sha256()
            for path in _files(self.folder):
                with path.open("rb") as stream:
                    digest.update(path.name.encode() + hashlib.file_digest(stream, "sha256").digest())
            self._digest = digest.hexdigest()
        return self._digest


def detect_views(
    network: HfNetwork,
    views: Sequence[View],
    batch_size: int,
    found_in: Callable[[dict[str, Tensor], list[tuple[int, int]]], list[Found]],
    iou: float,
) -> list[list[Detection]]:
    """Detections of each view, in pixels of its image, best first.

    ``found_in`` looks at a batch of prepared inputs; it is given the (height, width) of each region. Of two boxes of
    one label with an IoU above ``iou`` the better stays.
    """
    prepared = {number: network.prepare(view) for number, view in enumerate(views) if _is_wide_enough(view)}
    detections: list[list[Detection]] = [[] for _ in views]
    for numbers in _batches(prepared, batch_size):
        inputs = {name: torch.stack([prepared[n][name] for n in numbers]) for name in prepared[numbers[0]]}
        results = found_in(inputs, [_size(views[n]) for n in numbers])
        for number, found in zip(numbers, results, strict=True):
            detections[number] = _settled(found, views[number], iou)
    return detections


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
    context says how many threads, torch is held to them. Raises :class:`ModelError` for what cannot be found, read or
    used, :class:`ConfigError` for a device or precision that is not to be had.
    """
    device = _device(context.device, dtype)
    if context.threads is not None:
        torch.set_num_threads(context.threads)
    folder = model_folder(model, revision)
    model_type = _model_type(folder, known, purpose)
    stamps = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(folder))
    key = (folder.resolve(), stamps, str(device), dtype)
    network = _loaded.get(key)
    if network is None:
        processor = _processor(folder, model_type)
        network = _loaded[key] = HfNetwork(folder, _model(folder, auto, device), processor, device, dtype)
    return network


def model_folder(model: str, revision: str | None = None) -> Path:
    """The folder of a model: ``model`` itself, or the local copy of a hub id, downloaded unless HF_HUB_OFFLINE is set.

    Raises :class:`ModelError` for what is neither, or holds no safetensors weights.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision: {model} is a folder; a revision belongs to a hub id, remove it")
    elif folder.exists():
        raise ModelError(f"{model}: a file; give the folder of the model (config.json and safetensors) or a hub id")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", model) is None:
        raise ModelError(f"{model}: no such folder; give a folder in transformers layout or a hub id (owner/name)")
    else:
        folder = _snapshot(model, revision)
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        pickled = any(next(folder.glob(pattern), None) for pattern in _PICKLES)
        what = "only pickled weights, which are never opened" if pickled else "no weights"
        raise ModelError(f"{model}: {what}; model.safetensors is needed, as save_pretrained writes it")
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers: what matters of them is an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def one_line(error: BaseException) -> str:
    """The message of an error, shortened to one line."""
    return " ".join(str(error).split())[:250]


def _snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=[*_SIDE_FILES, *_WEIGHTS]))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ModelError(
            f"{model}: neither a folder nor a hub model that can be reached ({type(error).__name__}: "
            f"{one_line(error)}); download it and give its folder"
        ) from None


def _model_type(folder: Path, known: Collection[str], purpose: str) -> str:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; give a complete folder in transformers layout") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({one_line(error)}); restore the file") from None
    found = str(config.get("model_type")) if isinstance(config, dict) else "none"
    if found not in known:
        raise ModelError(
            f"{path}: model_type '{found}' cannot be used for {purpose}; known: {', '.join(sorted(known))}"
        )
    return found


def _model(folder: Path, auto: Any, device: torch.device) -> Any:
    try:
        with quiet_transformers():
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: cannot be loaded as a detection model ({type(error).__name__}: {one_line(error)}); give a "
            "complete folder with config.json and safetensors weights"
        ) from None
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(_COMPUTED))
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing ({', '.join(missing[:3])}); restore or download it again"
        )
    return model.to(device).requires_grad_(False).eval()


def _processor(folder: Path, model_type: str) -> Any:
    if model_type == MODEL_TYPE:
        return read_rf_detr(folder)
    try:
        with quiet_transformers():
            return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{folder}: its image processor cannot be loaded ({type(error).__name__}: {one_line(error)}); "
            "preprocessor_config.json beside the weights says how pictures are prepared"
        ) from None


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


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in (*_SIDE_FILES, *_WEIGHTS) for path in folder.glob(pattern) if path.is_file()})


def _batches(prepared: dict[int, dict[str, Tensor]], batch_size: int) -> Iterator[list[int]]:
    """Numbers of views whose inputs have equal shapes, at most ``batch_size`` at a time."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, inputs in prepared.items():
        alike.setdefault(tuple(tuple(tensor.shape) for tensor in inputs.values()), []).append(number)
    for numbers in alike.values():
        for start in range(0, len(numbers), batch_size):
            yield numbers[start : start + batch_size]


def _settled(found: Found, view: View, iou: float) -> list[Detection]:
    boxes, scores = found.boxes.double().numpy(), found.scores.double().numpy()
    numbers = {label: number for number, label in enumerate(dict.fromkeys(found.labels))}
    classes = np.array([numbers[label] for label in found.labels], dtype=np.int64)
    x, y = view.region[:2]
    return [
        Detection(
            (float(boxes[i, 0]) + x, float(boxes[i, 1]) + y, float(boxes[i, 2]) + x, float(boxes[i, 3]) + y),
            found.labels[i],
            min(float(scores[i]), 1.0),
        )
        for i in suppress(boxes, scores, classes, iou)
    ]


def _size(view: View) -> tuple[int, int]:
    x0, y0, x1, y1 = view.region
    return round(y1 - y0), round(x1 - x0)


def _is_wide_enough(view: View) -> bool:
    height, width = _size(view)
    return max(height, width) <= MAX_ASPECT * min(height, width)
