"""The target grid: numbers of the paper's setting, the rule's laws, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flowgrain.align.grids import Grid, GridConfig, aspect_distortion, encoder_input
from flowgrain.errors import ConfigError

sides = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("tokens", "at_32", "at_64"),
    [
        ((128, 128), (32, 32), (64, 64)),
        ((128, 96), (32, 24), (64, 48)),
        ((128, 72), (32, 18), (64, 36)),
        ((128, 80), (32, 20), (64, 40)),
        ((96, 128), (24, 32), (48, 64)),
    ],
)
def test_buckets_of_4k(tokens, at_32, at_64):
    assert GridConfig().of(*tokens) == at_32
    assert GridConfig(edge=64).of(*tokens) == at_64
    # pixels and latents have the same grid: only the ratio counts
    assert GridConfig().of(32 * tokens[0], 32 * tokens[1]) == at_32
    assert GridConfig().of(2 * tokens[0], 2 * tokens[1]) == at_32


@pytest.mark.parametrize(("edge", "inputs"), [(32, (448, 512, 1024)), (64, (896, 1024, 2048))])
def test_what_the_encoders_see(edge, inputs):
    grid = GridConfig(edge=edge).of(128, 96)
    for patch, long in zip((14, 16, 32), inputs, strict=True):
        assert encoder_input(grid, patch) == (long, long * 3 // 4)


def test_autoencoders_have_squares():
    # 512 pixels, 32 x 32 latents: DINOv2 sees 448 and DINOv3 512; SAM2 sees 512 and gives 16 x 16 (spec b)
    square = GridConfig(shape="square")
    assert encoder_input(square.of(512, 512), 14) == (448, 448)
    assert encoder_input(square.of(512, 512), 16) == (512, 512)
    assert encoder_input(GridConfig(shape="square", edge=16).of(512, 512), 32) == (512, 512)
    assert square.of(512, 300) == (32, 32)


@given(sides, sides, st.integers(1, 64))
def test_the_rule(height, width, edge):
    grid = GridConfig(edge=edge).of(height, width)
    assert max(grid) == edge and min(grid) >= 1
    assert (grid.height >= grid.width) if height >= width else (grid.height <= grid.width)
    short = edge * min(height, width) / max(height, width)
    assert abs(min(grid) - short) <= 0.5 or min(grid) == 1
    assert GridConfig(edge=edge).of(width, height) == (grid.width, grid.height)


def test_halves_are_rounded_up():
    # 32 * 45 / 64 = 22.5 and 32 * 43 / 64 = 21.5: the convolution with stride 2 gives 23 and 22 rows as well
    assert GridConfig().of(64, 45) == (32, 23)
    assert GridConfig().of(43, 64) == (22, 32)


@given(sides, sides, st.integers(1, 16), st.sampled_from([1, 2, 4, 8]))
def test_multiples(height, width, times, multiple):
    grid = GridConfig(edge=times * multiple).of(height, width, multiple)
    assert all(side % multiple == 0 and side > 0 for side in grid) and max(grid) == times * multiple
    short = times * multiple * min(height, width) / max(height, width)
    assert abs(min(grid) - short) <= multiple / 2 or min(grid) == multiple


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 64))
def test_no_finer_than_the_features(height, width, edge):
    finest = Grid(height, width)
    grid = GridConfig(edge=edge).of(height, width, finest=finest)
    assert grid.height <= height and grid.width <= width
    assert max(grid) == min(edge, max(finest))
    if edge >= max(finest):
        assert grid == finest


def test_small_pictures_get_smaller_grids():
    # 1024 and 512 pixels of FLUX, 64 and 32 tokens, behind a stride of 2
    assert GridConfig().of(1024, 1024, finest=Grid(32, 32)) == (32, 32)
    assert GridConfig().of(512, 384, finest=Grid(16, 12)) == (16, 12)
    assert GridConfig().of(512, 384, multiple=8, finest=Grid(18, 13)) == (16, 8)
    with pytest.raises(ConfigError, match="a grid of 3 x 9, the encoder's have at least 4 x 4"):
        GridConfig().of(100, 300, multiple=4, finest=Grid(3, 9))


def test_distortion():
    assert aspect_distortion(Grid(32, 24), 128, 96) == 0
    # 1280 x 896: 32 * 896 / 1280 = 22.4 places become 22, so the picture is seen 1.8 % narrower
    assert GridConfig().of(1280, 896) == (32, 22)
    assert aspect_distortion(Grid(32, 22), 1280, 896) == pytest.approx(22 / 22.4 - 1)
    assert aspect_distortion(Grid(22, 32), 896, 1280) == pytest.approx(22.4 / 22 - 1)
    assert aspect_distortion(Grid(32, 32), 512, 256) == pytest.approx(1.0)


@given(sides, sides, st.integers(1, 64))
def test_distortion_is_at_most_half_a_place(height, width, edge):
    grid = GridConfig(edge=edge).of(height, width)
    seen = grid.width / grid.height * height / width
    assert aspect_distortion(grid, height, width) == pytest.approx(seen - 1)
    if min(grid) > 1:
        assert max(seen, 1 / seen) <= min(grid) / (min(grid) - 0.5) + 1e-9


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="grid edge 33: sides of this encoder's grids must be multiples of 2"):
        GridConfig(edge=33).of(100, 100, multiple=2)
    with pytest.raises(ValueError, match="sides must be positive, got 0 x 5"):
        GridConfig().of(0, 5)
    with pytest.raises(ValidationError):
        GridConfig(edge=0)
