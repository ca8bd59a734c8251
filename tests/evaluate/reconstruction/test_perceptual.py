"""LPIPS against torchmetrics with the published heads, ST-LPIPS against numbers of its original implementation."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torchmetrics.functional.image.lpips as reference
from scipy.ndimage import convolve
from torch import nn

from flowgrain.errors import ConfigError, DataError, ModelError
from flowgrain.evaluate.reconstruction.perceptual_weights import lpips, open_perceptual, shift_tolerant_lpips
from flowgrain.pretrained import perceptual_weights
from flowgrain.pretrained.perceptual import BlurPool, PerceptualNetwork, architecture
from flowgrain.pretrained.perceptual_weights import LoadedNetwork, shift_tolerant_installed

HEADS = Path(reference.__file__).parent / "lpips_models"
"""torchmetrics ships the heads of LPIPS 0.1, the very files of the lpips package."""
needs_weights = pytest.mark.skipif(not shift_tolerant_installed(), reason="ST-LPIPS weights are not installed")


def tensor(picture):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def photographs():
    clean = skimage.data.chelsea()
    noisy = clean + np.random.default_rng(0).normal(scale=12, size=clean.shape).round()
    return clean, np.clip(noisy, 0, 255).astype(np.uint8)


def alexnet():
    """The convolutions of torchvision's AlexNet, with its indices."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


def vgg16():
    """The convolutions of torchvision's VGG-16, with its indices."""
    layers, width = [], 3
    for step in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if step == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, step, 3, padding=1), nn.ReLU()]
            width = step
    return nn.Sequential(*layers)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def backbone(request, tmp_path_factory):
    """(network, a random backbone, its file as torchvision's state dict with a classifier that nobody needs)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = {"alex": alexnet, "vgg": vgg16}[request.param]()
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    state = {f"features.{key}": value for key, value in features.state_dict().items()}
    torch.save(state | {"classifier.6.weight": torch.zeros(2, 2)}, path)
    return request.param, features, path


def test_lpips_equals_torchmetrics_on_the_same_weights(backbone, monkeypatch):
    network, features, path = backbone
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_args, **_keys: features)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 2, 3, 64, 70, generator=generator)
    expected = reference._NoTrainLpips(net=network)(x, y, normalize=True).flatten()
    score = lpips(network, path, HEADS / f"{network}.pth")
    assert score(x, y).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert score.title == f"LPIPS ({network})" and not score.higher_is_better


def test_laws(backbone):
    network, _, path = backbone
    score = lpips(network, path, HEADS / f"{network}.pth")
    x, y = torch.rand(2, 1, 3, 40, 32, generator=torch.Generator().manual_seed(2))
    assert score(x, x).item() == 0
    assert score(x, y).item() > 0
    assert score(x, y).item() == pytest.approx(score(y, x).item(), rel=1e-6)
    with pytest.raises(DataError, match="31x40 pixels: this metric needs 32"):
        score(x[..., :31], y[..., :31])


def test_files_of_another_network_are_refused(backbone, tmp_path):
    network, _, path = backbone
    other = {"alex": "vgg", "vgg": "alex"}[network]
    with pytest.raises(ModelError, match=r"backbone\.pth \(wanted: torchvision's (alexnet|vgg16)\)"):
        lpips(other, path, HEADS / f"{other}.pth")
    with pytest.raises(ModelError, match="heads"):
        lpips(network, path, path)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"broken\.pth"):
        lpips(network, broken, HEADS / f"{network}.pth")


def test_missing_weights_say_how_to_install_them(monkeypatch, backbone):
    monkeypatch.setattr(perceptual_weights, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps stlpips-pytorch==0\.0\.2"):
        shift_tolerant_lpips()
    with pytest.raises(ModelError, match=r"pip install --no-deps lpips==0\.1\.4"):
        lpips(backbone[0], backbone[2])
    assert not shift_tolerant_installed()


def test_specifications(monkeypatch):
    opened = []
    loaded = LoadedNetwork(PerceptualNetwork(architecture("alex", False)), "x", "1")
    for name in ("shift_tolerant_network", "lpips_network"):
        monkeypatch.setattr(perceptual_weights, name, lambda *given, name=name: opened.append((name, *given)) or loaded)
    open_perceptual("st-lpips")
    open_perceptual("lpips-alex:a.pth", Path("h.pth"))
    assert open_perceptual("st-lpips:vgg", device="meta").device.type == "meta"
    assert opened == [
        ("shift_tolerant_network", "alex"),
        ("lpips_network", "alex", Path("a.pth"), Path("h.pth")),
        ("shift_tolerant_network", "vgg"),
    ]
    for wrong in ("lpips", "lpips-alex", "st-lpips:squeeze", "lpips-squeeze:x"):
        with pytest.raises(ConfigError, match=r"use st-lpips, st-lpips:vgg, lpips-alex:FILE"):
            open_perceptual(wrong)
    with pytest.raises(ConfigError, match="heads go with lpips only"):
        open_perceptual("st-lpips", Path("h.pth"))


def test_blur_pool_is_a_binomial_filter_with_reflected_borders():
    x = torch.rand(1, 2, 9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for channel in range(2):
        padded = np.pad(x[0, channel].numpy(), 2, mode="reflect")
        expected = convolve(padded, kernel)[1:-1, 1:-1][::2, ::2]
        assert BlurPool()(x)[0, channel].numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_both_forms_have_the_same_convolutions(network):
    shapes = [
        [tuple(value.shape) for value in PerceptualNetwork(architecture(network, tolerant)).state_dict().values()]
        for tolerant in (False, True)
    ]
    assert shapes[0] == shapes[1]


@needs_weights
def test_st_lpips_equals_the_original_implementation(photographs):
    # expected: stlpips_pytorch.stlpips.LPIPS(net=..., variant="shift_tolerant") on the same pictures
    clean, noisy = photographs
    odd = tensor(clean[:65, :83]), tensor(noisy[:65, :83])
    score = shift_tolerant_lpips("alex")
    assert score(tensor(clean), tensor(noisy)).item() == pytest.approx(0.39459335803985596, rel=1e-5)
    assert score(tensor(clean), tensor(np.roll(clean, 1, axis=1))).item() == pytest.approx(0.0032856026664, rel=1e-4)
    assert score(*odd).item() == pytest.approx(0.37343263626098633, rel=1e-5)
    assert shift_tolerant_lpips("vgg")(*odd).item() == pytest.approx(0.36734676361083984, rel=1e-5)
    assert "sha256" in score.version


@needs_weights
def test_a_changed_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "alex.pth"
    torch.save({}, path)
    monkeypatch.setattr(perceptual_weights, "_installed", lambda package, file: path)
    with pytest.raises(ModelError, match="SHA-256 starts with"):
        shift_tolerant_lpips()
