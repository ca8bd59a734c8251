"""The perceptual losses against the networks themselves and against evaluation's LPIPS on the same files."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from torch import nn

from flowgrain.errors import ConfigError, DataError, ModelError
from flowgrain.evaluate.reconstruction.perceptual_weights import lpips
from flowgrain.pretrained.mobilenet import MEAN, STD, WEIGHTS_PACKAGE, load_mobilenet_v2
from flowgrain.pretrained.perceptual import PerceptualNetwork, architecture
from flowgrain.vae.perceptual import open_perceptual_loss

needs_mobilenet = pytest.mark.skipif(find_spec(WEIGHTS_PACKAGE) is None, reason="MobileNetV2 weights are not installed")
HEADS = Path(reference.__file__).parent / "lpips_models"


def pair(side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
    return images, (images + 0.3 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def stand_in():
    return open_perceptual_loss("mobilenet")


@needs_mobilenet
def test_stand_in_equals_its_definition(stand_in):
    images, output = pair()
    network = load_mobilenet_v2()
    expected = torch.zeros(2)
    maps = []
    for pixels in (images, output):
        x, found = ((pixels + 1) / 2 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), {}
        for number in range(7):
            x = network.features[number](x)
            found[number] = x.clone()
        maps.append(found)
    for number in (1, 3, 6):
        a, b = (found[number] / found[number].norm(dim=1, keepdim=True) for found in maps)
        expected += (a - b).pow(2).sum(1).mean((1, 2))
    assert torch.allclose(stand_in(output, images), expected, rtol=1e-5)
    assert stand_in(images, images).tolist() == [0, 0]
    assert "stand-in" in stand_in.title


@needs_mobilenet
def test_gradient_reaches_the_output_alone_and_agrees_with_differences(stand_in):
    images, output = pair(16)
    output = output.clone().requires_grad_(True)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    stand_in(output, images).sum().backward()
    assert all(parameter.grad is None for parameter in stand_in.parameters())
    step = 1e-3
    ends = [stand_in(output.detach() + sign * step * direction, images).sum() for sign in (1, -1)]
    slope = ((ends[0] - ends[1]) / (2 * step)).item()
    assert (output.grad * direction).sum().item() == pytest.approx(slope, rel=0.05)


@needs_mobilenet
def test_stays_in_evaluation_mode_and_in_float32(stand_in):
    images, output = pair()
    expected = stand_in(output, images)
    holder = nn.ModuleList([stand_in]).train()
    assert not any(module.training for module in stand_in.modules())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(holder[0](output, images), expected)


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_lpips_is_evaluations_lpips_and_lpips_alone(network, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = PerceptualNetwork(architecture(network, shift_tolerant=False))
    state = {
        key.replace("layers", "features"): value for key, value in random.layers.state_dict(prefix="layers.").items()
    }
    path = tmp_path / "backbone.pth"
    torch.save(state, path)
    heads = HEADS / f"{network}.pth"
    images, output = pair(40)
    loss = open_perceptual_loss(f"lpips-{network}:{path}", heads)
    score = lpips(network, path, heads)
    expected = score((output + 1) / 2, (images + 1) / 2)
    assert torch.allclose(loss(output, images).double(), expected, rtol=1e-5)
    output.requires_grad_(True)
    loss(output, images).sum().backward()
    assert output.grad.abs().max() > 0
    assert loss.title == score.title


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match=r"'lpips'; use mobilenet \(a stand-in for LPIPS\), st-lpips"):
        open_perceptual_loss("lpips")
    with pytest.raises(ConfigError, match="has no heads"):
        open_perceptual_loss("mobilenet", tmp_path / "heads.pth")
    with pytest.raises(ModelError, match=r"missing\.pth"):
        open_perceptual_loss(f"lpips-vgg:{tmp_path / 'missing.pth'}", HEADS / "vgg.pth")


@needs_mobilenet
def test_small_pictures_are_refused(stand_in):
    with pytest.raises(DataError, match="12x12 pixels: MobileNetV2 stand-in for LPIPS needs 16"):
        stand_in(torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 12))
