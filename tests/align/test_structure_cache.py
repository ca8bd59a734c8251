"""The cache of structure tokens: cached equals live bit for bit, keys follow content, nothing is lost."""

import logging
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.normalisation import HALF
from flowgrain.align.features import FeatureCache, LiveFeatures, forecast_feature_bytes
from flowgrain.align.grids import GridConfig
from flowgrain.data import shards
from flowgrain.data.dataset import DataConfig, open_dataset
from flowgrain.errors import DataError, ModelError

RULE = GridConfig(edge=4).of


class Stripes(StructureEncoder):
    """A random convolution as wide as its patches, times ``scale``."""

    def __init__(self, seed=0, scale=1.0):
        super().__init__(
            kind="stripes", label="stripes", origin=f"seed {seed} scale {scale}", patch=8, width=6, normalisation=HALF
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Conv2d(3, 6, 8, stride=8)
        self.scale = scale
        self.batches = []

    def feature_map(self, pixels):
        self.batches.append(len(pixels))
        return self.network(pixels) * self.scale


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (width, height) in enumerate([(64, 64), (96, 48), (48, 96), (80, 64)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return open_dataset(DataConfig(path=folder, resolution=64, flip=True), 16)


def assert_equals_live(cache, dataset, encoder, kept="float16"):
    live = LiveFeatures(dataset, encoder, RULE, kept)
    for index in range(len(dataset)):
        assert cache.grid(index) == live.grid(index)
        for flip in dataset.flips:
            cached, fresh = cache.get(index, flip), live.get(index, flip)
            assert cached.dtype == fresh.dtype == getattr(torch, kept) and torch.equal(cached, fresh)


@pytest.mark.parametrize("kept", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_equals_live_bitwise(dataset, tmp_path, on_disk, kept):
    encoder = Stripes()
    folder = tmp_path / "cache" if on_disk else None
    cache = FeatureCache(folder, encoder, RULE, kept)
    seen = []
    assert cache.fill(dataset, dataset.flips, lambda done, total: seen.append((done, total))) == 8
    assert seen == [(done, 8) for done in range(1, 9)]
    assert set(encoder.batches) == {1}
    assert_equals_live(cache, dataset, encoder, kept)
    if on_disk:
        again = Stripes()
        reopened = FeatureCache(folder, again, RULE, kept)
        assert reopened.fill(dataset, dataset.flips) == 0 and again.batches == []
        assert_equals_live(reopened, dataset, again, kept)


def test_entries_are_what_the_encoder_says(dataset):
    encoder = Stripes()
    cache = FeatureCache(None, encoder, RULE)
    cache.fill(dataset, dataset.flips)
    for index, chosen in enumerate(dataset.slices):
        grid = cache.grid(index)
        assert grid == RULE(chosen.bucket[1], chosen.bucket[0])
        for flip in (False, True):
            tokens = encoder.tokens(dataset.pixels(index, flip)[None], grid)
            assert tokens.shape == (1, grid.places, 6)
            assert torch.equal(cache.get(index, flip), tokens.half())
        assert not torch.equal(cache.get(index, False), cache.get(index, True))
    assert {cache.grid(index) for index in range(4)} >= {(4, 4), (4, 2), (2, 4)}


def test_what_was_not_filled_is_an_error(dataset):
    cache = FeatureCache(None, Stripes(), RULE)
    with pytest.raises(KeyError):
        cache.get(0, False)
    with pytest.raises(KeyError):
        cache.grid(0)
    cache.fill(dataset)
    with pytest.raises(KeyError):
        cache.get(0, True)


@pytest.mark.parametrize(
    ("encoder", "rule", "kept"),
    [(Stripes(seed=1), RULE, "float16"), (Stripes(), GridConfig(edge=8).of, "float16"), (Stripes(), RULE, "float32")],
)
def test_another_encoder_grid_or_precision_is_another_entry(dataset, tmp_path, encoder, rule, kept):
    FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset)
    assert FeatureCache(tmp_path / "cache", encoder, rule, kept).fill(dataset) == 4
    assert FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset) == 0


def test_another_picture_is_another_entry_and_a_copy_is_none(dataset, tmp_path):
    folder = dataset.config.path
    FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    grown = open_dataset(dataset.config, 16)
    assert len(grown) == 5
    assert FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(grown) == 0
    Image.new("RGB", (64, 64), "blue").save(folder / "0.png")
    changed = open_dataset(dataset.config, 16)
    assert FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(changed) == 1


def test_forecast_is_what_the_entries_take(dataset):
    cache = FeatureCache(None, Stripes(), RULE)
    cache.fill(dataset, dataset.flips)
    taken = sum(cache.get(index, flip).nbytes for index in range(4) for flip in dataset.flips)
    assert forecast_feature_bytes(dataset, 6, RULE) == taken
    assert forecast_feature_bytes(dataset, 6, RULE, "float32") == 2 * taken
    plain = open_dataset(DataConfig(path=dataset.config.path, resolution=64), 16)
    assert forecast_feature_bytes(plain, 6, RULE) == taken / 2


def test_a_square_of_32_places_takes_a_megabyte_and_a_half(dataset):
    square = GridConfig(shape="square").of
    assert forecast_feature_bytes(dataset, 768, square) == 4 * 2 * 1.5 * 2**20


def test_damaged_shard_is_computed_anew(dataset, tmp_path, caplog):
    folder = tmp_path / "cache"
    FeatureCache(folder, Stripes(), RULE).fill(dataset)
    [shard] = folder.glob("structure-stripes-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        cache = FeatureCache(folder, Stripes(), RULE)
    assert "1 damaged or truncated" in caplog.text
    assert cache.fill(dataset, dataset.flips) == 8
    assert_equals_live(cache, dataset, Stripes())


def test_a_flipped_bit_is_found(dataset, tmp_path, caplog):
    folder = tmp_path / "cache"
    FeatureCache(folder, Stripes(), RULE).fill(dataset, dataset.flips)
    [shard] = folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    cache = FeatureCache(folder, Stripes(), RULE)
    cache.fill(dataset, dataset.flips)
    with caplog.at_level(logging.WARNING):
        assert_equals_live(cache, dataset, Stripes())
    assert "is damaged (checksum)" in caplog.text


def test_stopping_keeps_what_was_done(dataset, tmp_path):
    def stop_after_two(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset, on_progress=stop_after_two)
    assert FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset) == 2


def test_a_picture_that_cannot_be_read_is_named_and_keeps_the_rest(dataset, tmp_path):
    broken = dataset.config.path / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"2\.png"):
        FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset)
    (dataset.config.path / "2.png").unlink()
    assert FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(open_dataset(dataset.config, 16)) == 1


def test_too_little_room_is_said_after_the_first_entry(dataset, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    need = forecast_feature_bytes(dataset, 6, RULE) // 2
    encoder = Stripes()
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage(10**9, 0, need - 1))
    with pytest.raises(DataError, match=r"caching 4 structure-stripes entries needs 0\.00 GiB"):
        FeatureCache(tmp_path / "cache", encoder, RULE).fill(dataset)
    assert len(encoder.batches) == 1
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage(10**9, 0, need))
    assert FeatureCache(tmp_path / "cache", encoder, RULE).fill(dataset) == 3


def test_disk_full_while_writing_is_a_clear_error(dataset, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "atomic_write_bytes", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        FeatureCache(tmp_path / "cache", Stripes(), RULE).fill(dataset)


def test_features_beyond_half_precision_are_named(dataset):
    with pytest.raises(ModelError, match=r"slice '0.*': features of stripes.* reach .*, more than float16 holds"):
        LiveFeatures(dataset, Stripes(scale=1e6), RULE).get(0, False)
    assert LiveFeatures(dataset, Stripes(scale=1e6), RULE, "bfloat16").get(0, False).isfinite().all()
    with pytest.raises(ModelError, match="are not finite; compute them in float32"):
        LiveFeatures(dataset, Stripes(scale=float("nan")), RULE, "float32").get(0, False)
