"""Buckets of one longer side, up to 4096 px: the shapes of 2K and 4K training (specs/spatial-gram.md, b)."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowgrain.config import load_config
from flowgrain.data.buckets import best_aspect_match, long_edge_crop, long_edge_list, long_edge_shrink
from flowgrain.data.config import DataConfig, LongEdge, SourceConfig
from flowgrain.data.dataset import SliceDataset, open_dataset
from flowgrain.errors import ConfigError, DataError

F16_PACKED = 32
"""Pixels of a token: an f16 autoencoder and 2x2 packing."""


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((3, 4), (96, 128)), ((9, 16), (72, 128)), ((5, 8), (80, 128)), ((1, 1), (128, 128)), ((16, 9), (128, 72))],
)
def test_the_papers_shapes_at_4096(size, tokens):
    """Tokens 128x96, 128x72 and 128x80 of 32 px each, 128x128 of a square: 12288, 9216, 10240 and 16384."""
    width, height = best_aspect_match(*size, long_edge_list(4096))
    assert (width // F16_PACKED, height // F16_PACKED) == tokens
    assert (width % F16_PACKED, height % F16_PACKED) == (0, 0)


def test_2048_has_half_of_each_and_half_the_step():
    double = {(2 * w, 2 * h) for w, h in long_edge_list(2048, 32)}
    assert double == set(long_edge_list(4096, 64))
    assert len(long_edge_list(4096, 64)) == 2 * (64 - 16) + 1  # short sides 1024 to 4096; the square once


@given(
    st.sampled_from([1024, 2048, 4096]), st.sampled_from([8, 16, 32, 64]), st.floats(1, 8), st.integers(1, 9000),
    st.integers(1, 9000),
)  # fmt: skip
def test_laws(edge, step, aspect, width, height):
    shapes = long_edge_list(edge, step, aspect)
    assert list(shapes) == sorted(set(shapes)) and (edge, edge) in shapes
    assert {(h, w) for w, h in shapes} == set(shapes)
    assert all(max(shape) == edge and min(shape) % step == 0 for shape in shapes)
    assert all(max(shape) <= aspect * min(shape) for shape in shapes)
    try:
        bucket, crop = long_edge_crop(width, height, edge, step, aspect)
    except DataError as error:
        assert f"{width}x{height}" in str(error) and "max_aspect" in str(error)
        assert max(width, height) > aspect * min(width, height)
        return
    # what is cut off: at most half a step of the shorter side, or its share of the longer one, and rounding. Beyond
    # the longest bucket, up to max_aspect, it is less than a whole step
    lost = 1 - bucket[0] * bucket[1] / (crop.resize[0] * crop.resize[1])
    shortest = min(min(shape) for shape in shapes)
    inside = max(width, height) * shortest <= edge * min(width, height)
    assert lost <= (0.5 if inside else 1) * step / min(bucket) + 2 / min(bucket)
    assert math.isclose(crop.resize[0] / width, crop.resize[1] / height, rel_tol=1.01 / min(width, height, *bucket))


@given(st.integers(64, 9000), st.integers(64, 9000), st.sampled_from([8, 32, 64]))
def test_never_enlarged(width, height, step):
    try:
        bucket, crop = long_edge_shrink(width, height, 4096, step)
    except DataError:
        assert max(width, height) > 4 * min(width, height)
        return
    assert max(crop.resize) == min(max(width, height), 4096)
    assert all(given >= resized for given, resized in zip((width, height), crop.resize, strict=True))
    assert all(
        0 <= resized - side < step and side % step == 0 for resized, side in zip(crop.resize, bucket, strict=True)
    )


@pytest.mark.parametrize("edge", [4000, 4100])
def test_edge_between_steps_says_which_fit(edge):
    low = edge // 64 * 64
    with pytest.raises(ConfigError, match=rf"long_edge {edge} px.*step \(64 px\): take {low} or {low + 64}"):
        long_edge_list(edge)
    with pytest.raises(ConfigError, match="take 64"):
        long_edge_list(32)


def pictures(folder: Path, **sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for number, (name, size) in enumerate(sizes.items()):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{name}.png")
    return folder


def read(folder: Path, resolution: object) -> DataConfig:
    file = folder.parent / "data.yaml"
    file.write_text(json.dumps({"path": str(folder), "resolution": resolution}))
    return load_config(DataConfig, file, [])[0]


def buckets_of(dataset: SliceDataset) -> dict[str, tuple[int, int]]:
    return {s.image.removesuffix(".png"): s.bucket for s in dataset.slices}


def test_in_a_data_set(tmp_path):
    """Every picture has the long edge; one that would be cut much is left out with the reason and the way out."""
    folder = pictures(tmp_path / "p", tall=(300, 400), square=(100, 100), wide=(640, 360), panorama=(500, 100))
    dataset = open_dataset(read(folder, {"long_edge": 512}), 16)
    assert buckets_of(dataset) == {"tall": (384, 512), "square": (512, 512), "wide": (512, 320)}
    assert dataset.pixels(0).shape[-2:] == dataset.slices[0].bucket[::-1]
    [(path, reason)] = dataset.problems
    assert path.name == "panorama.png" and "max_aspect" in reason
    wider = DataConfig(path=folder, resolution=LongEdge(long_edge=512, max_aspect=5))
    assert buckets_of(open_dataset(wider, 16))["panorama"] == (512, 128)


def test_without_enlarging_in_a_data_set(tmp_path):
    folder = pictures(tmp_path / "p", small=(300, 200), large=(2000, 1000))
    config = DataConfig(path=folder, resolution=LongEdge(long_edge=512), no_upscale=True)
    assert buckets_of(open_dataset(config, 16)) == {"small": (256, 192), "large": (512, 256)}


def test_a_source_may_have_its_own(tmp_path):
    folder, other = pictures(tmp_path / "p", one=(90, 60)), pictures(tmp_path / "q", two=(91, 61))
    own = SourceConfig(path=other, resolution=LongEdge(long_edge=256))
    config = DataConfig(sources=(SourceConfig(path=folder), own), resolution=128)
    found = {s.source: s.bucket for s in open_dataset(config, 16).slices}
    assert found["q"] == (256, 192) and max(found["p"]) < 256


@pytest.mark.parametrize(
    ("resolution", "words"),
    [({"long_edge": 500}, "take 448 or 512"), ({"long_egde": 512}, "long_e"), (0, "resolution"), ("4k", "resolution")],
)
def test_mistakes(tmp_path, resolution, words):
    folder = pictures(tmp_path / "p", one=(64, 64))
    with pytest.raises(ConfigError, match=words):
        open_dataset(read(folder, resolution), 16)
