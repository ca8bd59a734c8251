"""Any network of the ESRGAN family through spandrel, which knows some forty architectures by their weights.

No file is ever unpickled: safetensors is preferred, and of a .pth torch's own weights-only reader takes tensors and
refuses everything else.
"""

import hashlib
import importlib.util
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.upscalers.base import Network, UpscalerContext
from flowgrain.slices.upscalers.super_resolution import NetworkConfig, SuperResolution

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor  # pyright: ignore[reportMissingImports] (an extra)

_PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_REACH = {"Compact": 36, "ESRGAN": 80}
"""By spandrel's architecture: 34 convolutions of 3 x 3; the 23 blocks of RRDBNet as measured for Real-ESRGAN x4plus."""
_UNKNOWN_REACH = 48


class EsrganConfig(NetworkConfig):
    """A file of weights; the architecture is read from them."""

    short_key: ClassVar[str | None] = "file"
    kind: Literal["esrgan"] = "esrgan"
    file: Path = Field(description=".safetensors, or a .pth that holds tensors alone")

    def build(self, context: UpscalerContext) -> SuperResolution:
        """See :class:`UpscalerConfig`."""
        file = self.file.expanduser()
        state = read_state(file)
        network = SpandrelNetwork(_describe(state, file), file, context.device)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha1").hexdigest()
        return SuperResolution(f"esrgan {file.stem}", [network], context.lanczos_max, self, digest)


class SpandrelNetwork(Network):
    """A model that spandrel recognised, in single precision on a torch device."""

    def __init__(self, model: "ImageModelDescriptor", file: Path, device: str):
        found = f"{model.architecture.name} that makes {model.output_channels} channels of {model.input_channels}"
        if model.input_channels != 3 or model.output_channels != 3:
            raise ModelError(f"{file}: {found}; an upscaler makes RGB of RGB")
        if model.scale < 2:
            raise ModelError(f"{file}: {model.architecture.name} of factor {model.scale}; an upscaler enlarges")
        self.name = file.stem
        self.factor = model.scale
        self.reach = _REACH.get(model.architecture.id, _UNKNOWN_REACH)
        self._device = torch.device(device)
        self._model = model.to(self._device).float().eval()

    @torch.inference_mode()
    def run(self, pixels: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """See :class:`Network`."""
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self._device)
        return self._model(batch)[0].permute(1, 2, 0).cpu().numpy()


def read_state(file: Path) -> dict[str, Any]:
    """The tensors of a file of weights. Raises :class:`ModelError`; code in a pickle is refused and never runs."""
    if not file.is_file():
        raise ModelError(f"{file}: no such file of weights")
    suffix = file.suffix.lower()
    if suffix != ".safetensors" and suffix not in _PICKLES:
        raise ModelError(f"{file}: unknown kind of file; weights end in .safetensors or {', '.join(_PICKLES)}")
    try:
        if suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ModelError(
            f"{file}: refused, it holds more than tensors and reading that would run its code; "
            "convert it to safetensors where you trust it"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{file}: cannot be read ({_line(error)})") from None
    if not isinstance(state, dict):
        raise ModelError(f"{file}: holds a {type(state).__name__}, not tensors by name")
    return state


def _describe(state: dict[str, Any], file: Path) -> "ImageModelDescriptor":
    """The network that the weights are of."""
    if importlib.util.find_spec("spandrel") is None:
        raise MissingExtraError("spandrel", "esrgan", "the upscaler esrgan")
    try:
        import spandrel  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # a torchvision of another build of torch raises either
        raise ModelError(f"the upscaler esrgan: spandrel cannot be imported ({_line(error)})") from None
    try:
        model = spandrel.ModelLoader("cpu").load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except spandrel.UnsupportedModelError:
        raise ModelError(f"{file}: weights of no architecture that spandrel knows") from None
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: weights are incomplete or damaged ({_line(error)})") from None
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise ModelError(f"{file}: {model.architecture.name} needs a mask; an upscaler takes a picture alone")
    return model


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
