"""Projection heads: their sizes and grids are the paper's, their weights those of the run's seed."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F
from torch.testing import assert_close

from flowgrain.align.grids import Grid, GridConfig
from flowgrain.align.heads import ConvHeadConfig, HeadConfig, IdentityHeadConfig, MlpHeadConfig, check_width
from flowgrain.errors import ConfigError

CONV, MLP, IDENTITY = ConvHeadConfig(), MlpHeadConfig(hidden=12), IdentityHeadConfig()


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def parameters(config, *widths):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build(*widths, seed=0, name="tap").parameters())


def test_sizes_of_the_paper():
    # FLUX to DINOv2-B (spec b): 21.2M with kernel 3, 2.36M with kernel 1
    assert parameters(ConvHeadConfig(stride=2), 3072, 768) == 3072 * 768 * 9 + 768 == 21_234_432
    assert parameters(ConvHeadConfig(kernel=1, bias=False), 3072, 768) == 2_359_296
    assert parameters(MlpHeadConfig(), 1152, 768) == 1153 * 2048 + 2049 * 2048 + 2049 * 768
    assert parameters(IDENTITY, 16, 16) == 0


@pytest.mark.parametrize(
    ("tokens", "behind", "grid"),
    [((128, 96), (64, 48), (32, 24)), ((128, 72), (64, 36), (32, 18)), ((128, 80), (64, 40), (32, 20))],
)
def test_grids_of_4k(tokens, behind, grid):
    head = ConvHeadConfig(stride=2).build(2, 3, 0, "tap")
    shape = Grid(*tokens)
    assert head.output_grid(shape) == behind == head.project(noise(1, 2, *tokens)).shape[2:]
    target = GridConfig().of(*tokens, finest=head.output_grid(shape))
    assert target == grid
    assert head(noise(1, shape.places, 2), target, shape).shape == (1, target.places, 3)
    # long edge 64: pooling has nothing to do
    finer = GridConfig(edge=64).of(*tokens)
    maps = noise(1, 2, *tokens)
    assert finer == behind and torch.equal(head(maps, finer), head.conv(maps).flatten(2).mT)


@pytest.mark.parametrize("config", [CONV, MLP, IDENTITY])
def test_tokens_and_maps_are_the_same_features(config):
    head = config.build(4, 4, 0, "tap")
    maps, grid = noise(2, 4, 6, 5), Grid(6, 5)
    tokens = torch.stack([maps[:, :, row, column] for row in range(6) for column in range(5)], dim=1)
    assert torch.equal(head(maps, grid), head(tokens, grid, grid))


def test_convolution_then_pooling():
    head = CONV.build(4, 3, 0, "tap")
    maps = noise(2, 4, 8, 12)
    out = head(maps, Grid(4, 4))
    whole = F.conv2d(maps, head.conv.weight, head.conv.bias, padding=1)
    for row in range(4):
        for column in range(4):
            cell = whole[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].mean(dim=(2, 3))
            assert_close(out[:, 4 * row + column], cell)


def test_mlp_sees_each_token_alone():
    head = MLP.build(4, 3, 0, "tap")
    tokens = noise(2, 6, 4)
    first, second, third = (head.layers[i] for i in (0, 2, 4))
    by_hand = third(F.silu(second(F.silu(first(tokens)))))
    assert_close(head(tokens, Grid(2, 3), Grid(2, 3)), by_hand)
    assert_close(head(tokens, Grid(1, 3), Grid(2, 3)), by_hand.unflatten(1, (2, 3)).mean(dim=1))


def test_identity_gives_what_it_got():
    tokens = noise(2, 6, 4)
    assert torch.equal(IDENTITY.build(4, 4, 0, "tap")(tokens, Grid(2, 3), Grid(2, 3)), tokens)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (CONV, ["conv.weight", "conv.bias"]),
        (ConvHeadConfig(bias=False), ["conv.weight"]),
        (MLP, [f"layers.{i}.{what}" for i in (0, 2, 4) for what in ("weight", "bias")]),
        (IDENTITY, []),
    ],
)
def test_names_in_checkpoints(config, names):
    assert list(config.build(4, 4, 0, "tap").state_dict()) == names


@pytest.mark.parametrize("config", [CONV, MLP])
def test_weights_are_those_of_seed_and_name(config):
    def weights(seed, name):
        return torch.cat([p.flatten() for p in config.build(4, 3, seed, name).parameters()])

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    made = weights(1, "tap")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(1, "tap"), made)
    assert not torch.equal(weights(2, "tap"), made) and not torch.equal(weights(1, "other"), made)
    # torch's own bounds, 1 / sqrt(inputs of a value); a standard normal would leave them
    fan_in = 36 if config is CONV else 4
    assert 0.5 * fan_in**-0.5 < made.abs().max() <= fan_in**-0.5


def test_precision_of_the_weights_decides():
    out = CONV.build(4, 3, 0, "tap")(noise(1, 4, 3, 3).bfloat16(), Grid(3, 3))
    assert out.dtype == torch.float32
    assert MLP.build(4, 3, 0, "tap")(noise(1, 4, 3, 3).bfloat16(), Grid(3, 3)).dtype == torch.float32


@pytest.mark.parametrize("config", [CONV, MLP])
def test_everything_in_it_trains(config):
    head = config.build(4, 3, 0, "tap")
    features = noise(1, 4, 4, 4).requires_grad_()
    head(features, Grid(2, 2)).square().sum().backward()
    assert features.grad is not None and features.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


@pytest.mark.parametrize(
    ("config", "shape", "grid", "message"),
    [
        (CONV, (4, 4), (8, 8), "gives a grid of 4 x 4, coarser than the reference's 8 x 8; pooling cannot add places"),
        (CONV, (4, 9), (4, 10), "4 x 9, coarser than the reference's 4 x 10"),
        (MLP, (4, 4), (5, 4), "coarser than the reference's 5 x 4"),
        (
            IDENTITY,
            (4, 4),
            (2, 2),
            "head.kind is identity, but the features have a grid of 4 x 4 and the",
        ),
    ],
)
def test_grids_that_cannot_come_out(config, shape, grid, message):
    with pytest.raises(ConfigError, match=message):
        config.build(4, 4, 0, "tap")(noise(1, 4, *shape), Grid(*grid))


def test_output_grid_is_that_of_the_convolution():
    for kernel, stride, padding in ((3, 1, None), (3, 2, None), (1, 2, None), (4, 3, 0), (5, 2, 1), (2, 2, None)):
        head = ConvHeadConfig(kernel=kernel, stride=stride, padding=padding).build(1, 1, 0, "tap")
        for shape in (Grid(7, 9), Grid(8, 5)):
            assert head.output_grid(shape) == head.project(noise(1, 1, *shape)).shape[2:]
    with pytest.raises(ConfigError, match="a map of 2 x 9 is smaller than the kernel of 5"):
        ConvHeadConfig(kernel=5, padding=0).build(1, 1, 0, "tap").output_grid(Grid(2, 9))


def test_other_mistakes():
    head = CONV.build(4, 3, 0, "tap")
    with pytest.raises(ValueError, match="6 tokens do not form a map of 2 x 4"):
        head(noise(1, 6, 4), Grid(2, 2), Grid(2, 4))
    with pytest.raises(ValueError, match="6 tokens do not form a map of None"):
        head(noise(1, 6, 4), Grid(2, 2))
    check_width(head, 3, "repa")
    with pytest.raises(ConfigError, match="repa compares channels: the features have 4, the reference 768"):
        check_width(IDENTITY.build(4, 768, 0, "tap"), 768, "repa")


def test_configuration():
    adapter = TypeAdapter(HeadConfig)
    assert adapter.validate_python({"kind": "conv", "stride": 2}) == ConvHeadConfig(stride=2)
    assert adapter.validate_python({"kind": "mlp"}).hidden == 2048
    for wrong in ({"kind": "conv", "hidden": 3}, {"kind": "identity", "kernel": 3}, {"kind": "conv", "stride": 0}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
    with pytest.raises(ValidationError):
        CONV.stride = 2
