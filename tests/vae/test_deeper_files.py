"""Both layouts on disk: diffusers loads the native one, flowgrain both, and the same pictures come out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from small_autoencoders import pictures, small_vae

import flowgrain
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.autoencoder import cell_pixels as cells_of_config
from flowgrain.vae.deeper import Depth, deepen, depth_of
from flowgrain.vae.deeper_files import KEY, STRIDED_FILE, folded, load_deeper_vae, native_form, save_vae


def both_ways(vae, images):
    with torch.no_grad():
        mean = vae.encode(images).latent_dist.parameters
        return mean, vae.decode(mean.chunk(2, dim=1)[0]).sample


@pytest.mark.parametrize(
    "settings", [{}, {"quant": True, "attention": True}, {"layers": 2}, {"blocks": (8,)}, {"blocks": (8, 8, 16)}]
)
@pytest.mark.parametrize("doublings", [1, 2])
def test_diffusers_itself_loads_the_native_layout(settings, doublings, tmp_path):
    vae, images = deepen(small_vae(**settings), doublings), pictures(side=32, width=48)
    save_vae(vae, tmp_path / "vae")
    loaded, info = AutoencoderKL.from_pretrained(tmp_path / "vae", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected, found = both_ways(vae, images), both_ways(loaded, images)
    assert torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    # GroupNorm over four or sixteen times as many equal values: the same to rounding
    assert torch.allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert cells_of_config(loaded.config) == 2 ** (len(vae.config["block_out_channels"]) - 1 + doublings)


def test_native_form_in_float64_is_the_same_function():
    vae, images = deepen(small_vae()).double(), pictures(side=16).double()
    expected, found = both_ways(vae, images), both_ways(native_form(vae), images)
    assert (found[0] - expected[0]).abs().max() < 1e-13
    assert (found[1] - expected[1]).abs().max() < 1e-13


def test_without_deeper_compression_files_are_diffusers_own(tmp_path):
    vae, images = small_vae(), pictures()
    save_vae(vae, tmp_path / "ours")
    vae.save_pretrained(tmp_path / "theirs")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    for loaded in (AutoencoderKL.from_pretrained(tmp_path / "ours"), load_deeper_vae(tmp_path / "ours")):
        assert all(torch.equal(a, b) for a, b in zip(both_ways(loaded, images), both_ways(vae, images), strict=True))


@pytest.mark.parametrize("layout", ["native", "strided"])
@pytest.mark.parametrize("doublings", [1, 2])
def test_both_layouts_come_back_as_stride_to_the_last_bit(layout, doublings, tmp_path):
    vae, images = deepen(small_vae(quant=True), doublings), pictures(side=16)
    save_vae(vae, tmp_path / "vae", layout)
    loaded = load_deeper_vae(tmp_path / "vae")
    assert depth_of(loaded) == Depth(doublings)
    state = vae.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(both_ways(loaded, images), both_ways(vae, images), strict=True))
    save_vae(loaded, tmp_path / "again", layout)
    for file in (tmp_path / "vae").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_legacy_shift_has_the_strided_layout_alone(tmp_path):
    vae, images = deepen(small_vae(), legacy_shift=True), pictures()
    with pytest.raises(ConfigError, match="take layout strided"):
        save_vae(vae, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    save_vae(vae, tmp_path / "strided", "strided")
    loaded = load_deeper_vae(tmp_path / "strided")
    assert depth_of(loaded) == Depth(1, legacy_shift=True)
    assert torch.equal(both_ways(loaded, images)[1], both_ways(vae, images)[1])


def test_diffusers_refuses_the_strided_layout_instead_of_misreading_it(tmp_path):
    save_vae(deepen(small_vae()), tmp_path / "vae", "strided")
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        AutoencoderKL.from_pretrained(tmp_path / "vae")


def test_a_native_folder_that_was_trained_further_is_an_ordinary_model(tmp_path):
    save_vae(deepen(small_vae()), tmp_path / "vae")
    other = AutoencoderKL.from_pretrained(tmp_path / "vae")
    with torch.no_grad():
        other.encoder.down_blocks[0].resnets[0].conv2.weight.add_(0.1)
    assert folded(other, 1) is None
    other.save_pretrained(tmp_path / "trained")
    config = json.loads((tmp_path / "trained" / "config.json").read_text())
    (tmp_path / "trained" / "config.json").write_text(json.dumps(config | {KEY: note(tmp_path / "vae")}))
    loaded = load_deeper_vae(tmp_path / "trained")
    assert depth_of(loaded) == Depth()
    assert torch.equal(loaded(pictures()).sample, other(pictures()).sample)


def note(folder):
    return json.loads((folder / "config.json").read_text())[KEY]


def test_folders_of_the_released_code(tmp_path):
    plain, images = small_vae(), pictures()
    plain.save_pretrained(tmp_path / "released")
    path = tmp_path / "released" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stride": 2}))
    loaded = load_deeper_vae(tmp_path / "released")
    expected = both_ways(deepen(plain, legacy_shift=True), images)
    assert depth_of(loaded) == Depth(1, legacy_shift=True)
    assert all(torch.equal(a, b) for a, b in zip(both_ways(loaded, images), expected, strict=True))
    save_vae(loaded, tmp_path / "ours", "strided")
    assert "stride" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert torch.equal(both_ways(load_deeper_vae(tmp_path / "ours"), images)[1], expected[1])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stride": 3}))
    with pytest.raises(ModelError, match=r"cannot be read \(stride 3\)"):
        load_deeper_vae(tmp_path / "released")


def test_broken_folders(tmp_path):
    save_vae(deepen(small_vae()), tmp_path / "vae", "strided")
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        load_deeper_vae(tmp_path / "none")
    for key, value in (("layout", "other"), ("doublings", "many")):
        folder = tmp_path / key
        shutil.copytree(tmp_path / "vae", folder)
        config = json.loads((folder / "config.json").read_text())
        config[KEY][key] = value
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="cannot be read"):
            load_deeper_vae(folder)
    (tmp_path / "vae" / STRIDED_FILE).write_bytes(b"cut")
    with pytest.raises(ModelError, match=STRIDED_FILE):
        load_deeper_vae(tmp_path / "vae")


def test_dtype(tmp_path):
    save_vae(deepen(small_vae()), tmp_path / "vae")
    loaded = load_deeper_vae(tmp_path / "vae", torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    save_vae(loaded, tmp_path / "half")
    stored = load_file(tmp_path / "half" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_the_embedded_autoencoder_in_diffusers(tmp_path):
    vae = deepen(AutoencoderKL.from_pretrained(Path(flowgrain.__file__).parent / "assets/tiny-flux/vae"))
    save_vae(vae, tmp_path / "vae")
    loaded, images = AutoencoderKL.from_pretrained(tmp_path / "vae"), pictures(1, side=64)
    for found, expected in zip(both_ways(loaded, images), both_ways(vae, images), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert loaded.config["shift_factor"] == vae.config["shift_factor"]
