"""ONNX files opened once a process, with errors that say what a file is."""

import hashlib
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from flowgrain.errors import ConfigError, MissingExtraError, ModelError

_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".torchscript")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_POINTER_START = b"version https://git-lfs"

_open: WeakValueDictionary[tuple[str, int, int, str, int | None], "OnnxModel"] = WeakValueDictionary()


class OnnxModel:
    """A network with one picture input (b, 3, h, w); :func:`open_onnx` opens it."""

    def __init__(self, path: Path, session: Any):
        self.path = path
        self._session = session
        inputs = session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, "3"):
            given = ", ".join(f"{each.name} {_text(each.shape)}" for each in inputs)
            raise ModelError(
                f"{path}: takes {given}; a network that takes one batch of RGB pictures (b, 3, h, w) is needed"
            )
        if inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            raise ModelError(f"{path}: takes {inputs[0].type}; export it with float32 or float16 inputs")
        self._input = inputs[0].name
        self._output = session.get_outputs()[0].name
        self._type = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        batch, _, height, width = shape
        self.batch: int | None = batch if isinstance(batch, int) else None
        """Pictures that must be given at once; None: any number."""
        self.frame: tuple[int, int] | None = (
            (width, height) if isinstance(width, int) and isinstance(height, int) else None
        )
        """(width, height) that the network takes; None: several."""
        self.output_shape: list[Any] = session.get_outputs()[0].shape
        """Shape of the first output; names where it is not fixed."""
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        self._digest: str | None = None

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """First output, float64, for pixels (b, 3, h, w) in [0, 1].

        Raises :class:`ModelError` where the network cannot be computed for pictures of this size.
        """
        try:
            (output,) = self._session.run([self._output], {self._input: pixels.astype(self._type)})
        except Exception as error:  # onnxruntime's errors have no public base class
            size = f"{pixels.shape[3]}x{pixels.shape[2]}"
            raise ModelError(f"{self.path}: cannot be computed for {size} pixels ({_one_line(error)})") from None
        return np.asarray(output, dtype=np.float64)

    def digest(self) -> str:
        """SHA-256 of the file's bytes, read once."""
        if self._digest is None:
            with self.path.open("rb") as stream:
                self._digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._digest


def open_onnx(path: Path, device: str, threads: int | None) -> OnnxModel:
    """The network of a file; whoever asks for the same file, device and threads gets the same one while it is in use.

    Raises :class:`ModelError` for a file that is missing or is no such network, :class:`ConfigError` for a device that
    onnxruntime does not have, :class:`MissingExtraError` where it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx", "a detector in an ONNX file") from None
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        status = path.stat()
        _check(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; paths of models are relative to where flowgrain is run") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    key = str(path.resolve()), status.st_size, status.st_mtime_ns, device, threads
    model = _open.get(key)
    if model is None:
        model = _open[key] = OnnxModel(path, _session(onnxruntime, path, providers, threads))
    return model


def _session(onnxruntime: Any, path: Path, providers: list[Any], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no public base class
        raise ModelError(f"{path}: cannot be opened as an ONNX file ({_one_line(error)}); export it again") from None
    if len(providers) > 1 and session.get_providers()[0] != providers[0][0]:
        raise ConfigError(f"{path}: onnxruntime cannot use CUDA here; its CUDA and cuDNN libraries are not found")
    return session


def _providers(device: str, available: list[str]) -> list[Any]:
    if not device.startswith("cuda"):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise ConfigError(
            f"device {device}: this onnxruntime computes on {', '.join(available)} alone; install onnxruntime-gpu in "
            "place of onnxruntime, or set the device to cpu"
        )
    index = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]


def _check(path: Path) -> None:
    """Refuse what is known to be no ONNX file; pickles are not even opened with a library."""
    if path.is_dir():
        raise ModelError(f"{path}: a folder; give the .onnx file in it")
    with path.open("rb") as stream:
        start = stream.read(64)
    if path.suffix.lower() in _PICKLES or start.startswith(_PICKLE_STARTS):
        raise ModelError(
            f"{path}: PyTorch weights, not an ONNX file; export it to ONNX where you trust it, for example "
            f"'yolo export model={path.name} format=onnx'"
        )
    if start.startswith(_POINTER_START):
        raise ModelError(f"{path}: a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _text(shape: list[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
