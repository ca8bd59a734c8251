"""SAM 2's image encoder: the trunk's last stage and the pyramid's levels are those of transformers' own forward."""

import pytest
import torch
from structure_models import sam2, saved
from torch.testing import assert_close
from transformers import Sam2HieraDetConfig

from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.encoders.sam2 import stage_strides
from flowgrain.align.grids import Grid, GridConfig
from flowgrain.errors import ConfigError, ModelError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module", params=["sam2", "sam2_video", "sam2_vision_model"])
def folder_and_vision(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2") / request.param
    model = saved(sam2(request.param), folder)
    return folder, model if request.param == "sam2_vision_model" else model.vision_encoder


@pytest.fixture(scope="module")
def output(folder_and_vision):
    """Of transformers, for a picture of 96 x 64."""
    _, vision = folder_and_vision
    channels = [(picture()[:, c] * 0.5 + 0.5 - MEAN[c]) / STD[c] for c in range(3)]
    return vision(torch.stack(channels, dim=1))


def picture():
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


def opened(folder, level=None):
    return open_structure_encoder(EncoderConfig(model=f"sam2:{folder}", level=level))


def test_the_default_is_the_last_stage_of_the_trunk(folder_and_vision, output):
    encoder = opened(folder_and_vision[0])
    assert (encoder.patch, encoder.width, encoder.grid_multiple) == (32, 20, 1)
    tokens = encoder.tokens(picture(), Grid(3, 2))
    # transformers gives b, rows, columns, channels
    assert output.last_hidden_state.shape == (2, 3, 2, 20)
    assert_close(tokens, output.last_hidden_state.flatten(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("level", "place", "grid"), [("fpn16", 2, (6, 4)), ("fpn8", 1, (12, 8)), ("fpn4", 0, (24, 16))]
)
def test_levels_are_those_that_transformers_returns(folder_and_vision, output, level, place, grid):
    encoder = opened(folder_and_vision[0], level)
    stride = int(level.removeprefix("fpn"))
    assert (encoder.patch, encoder.width, encoder.grid_multiple) == (stride, 16, 32 // stride)
    tokens = encoder.tokens(picture(), Grid(*grid))
    assert_close(tokens, output.fpn_hidden_states[place].flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_the_coarsest_level_is_what_the_neck_makes_of_the_trunk(folder_and_vision, output):
    folder, vision = folder_and_vision
    lateral = vision.neck.convs[0](output.last_hidden_state.permute(0, 3, 1, 2))
    tokens = opened(folder, "fpn32").tokens(picture(), Grid(3, 2))
    assert_close(tokens, lateral.flatten(2).mT, rtol=1e-5, atol=1e-5)


def test_levels_have_versions_of_their_own(folder_and_vision):
    versions = {opened(folder_and_vision[0], level).version for level in (None, "fpn32", "fpn16")}
    assert len(versions) == 3
    assert opened(folder_and_vision[0], "trunk").version in versions


def test_strides_of_the_published_trunks():
    assert stage_strides(Sam2HieraDetConfig()) == [4, 8, 16, 32]
    assert stage_strides(Sam2HieraDetConfig(query_stride=[4, 4], num_query_pool_stages=1)) == [4, 16, 16, 16]


def test_grids_that_its_windows_do_not_fill_are_refused(folder_and_vision):
    encoder = opened(folder_and_vision[0], "fpn16")
    with pytest.raises(ConfigError, match="grid 3 x 4; sides must be positive multiples of 2"):
        encoder.tokens(picture(), Grid(3, 4))
    grid = GridConfig(edge=6).of(96, 54, encoder.grid_multiple)
    assert grid == (6, 4)
    assert encoder.tokens(picture(), grid).shape == (2, 24, 16)


def test_a_level_that_the_model_lacks_is_named(tmp_path, monkeypatch):
    import structure_models

    monkeypatch.setitem(structure_models.TRUNK, "num_query_pool_stages", 2)
    saved(sam2("sam2_vision_model"), tmp_path / "m")
    with pytest.raises(ModelError, match="this SAM 2 has no level fpn32; it has trunk, fpn4, fpn8, fpn16"):
        opened(tmp_path / "m", "fpn32")
