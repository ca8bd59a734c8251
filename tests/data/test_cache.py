"""Caches: cached equals live bit for bit, keys follow content, broken shards are passed over."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import flowgrain
from flowgrain.data import shards
from flowgrain.data.cache import (
    EmbeddingCache,
    LiveEmbeddings,
    LivePosteriors,
    PosteriorCache,
    forecast_bytes,
    forecast_embedding_bytes,
)
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.errors import DataError
from flowgrain.families.base import Capabilities, CutCaptions, Family, Posterior, TextEmbedding

TINY_FLUX = Path(flowgrain.__file__).parent / "assets" / "tiny-flux"


class TinyAutoencoder(Family):
    """A random convolutional encoder with an AutoencoderKL's posterior, and a text encoder of byte histograms."""

    name = "tiny"
    capabilities = Capabilities("none", pixel_multiple=16, latent_channels=4, latent_scale=8)

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = nn.Conv2d(3, 8, 8, stride=8, dtype=dtype)
        self.seed, self.dtype = seed, dtype
        self.batches: list[int] = []
        self.captions: list[str] = []

    def fingerprint(self) -> str:
        return f"tiny-{self.seed}-{self.dtype}"

    @torch.no_grad()
    def encode_pixels(self, pixels):
        self.batches.append(len(pixels))
        mean, logvar = self.encoder(pixels.to(self.dtype)).chunk(2, dim=1)
        return Posterior(mean, logvar)

    def embed_text(self, captions):
        self.captions += captions
        rows = [np.bincount(list(caption.encode()), minlength=256) for caption in captions]
        states = torch.tensor(np.array(rows), dtype=self.dtype)
        return TextEmbedding({"states": states[:, None], "pooled": states.sum(1, keepdim=True)})

    def cut_captions(self, captions):
        return CutCaptions(40, {caption: len(caption) for caption in captions if len(caption) > 40})

    @classmethod
    def load(cls, model, dtype, device, quantization="none"):
        return cls(0, dtype)

    def components(self):
        return {"encoder": self.encoder}

    def _unused(self, *_: Any) -> Any:
        raise NotImplementedError

    skeleton = encoders = blocks = gradient_checkpointing = compile = offload_encoders = _unused
    latents = decode = tokens = condition = predict = adapter_targets = _unused
    default_path = default_shift = pipeline = pipeline_options = read_capabilities = backbone = _unused


@pytest.fixture
def dataset(tmp_path) -> SliceDataset:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (width, height) in enumerate([(64, 64), (96, 48), (48, 96), (80, 64)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number % 2}")
    return open_dataset(DataConfig(path=folder, resolution=64, flip=True, caption_dropout=0.1), 16)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def assert_equals_live(cache: PosteriorCache, dataset: SliceDataset, family: Family) -> None:
    live = LivePosteriors(dataset, family)
    for index in range(len(dataset)):
        for flip in dataset.flips:
            cached, fresh = cache.get(index, flip), live.get(index, flip)
            assert same_bits(cached.mean, fresh.mean) and same_bits(cached.logvar, fresh.logvar)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_equals_live_bitwise(dataset, tmp_path, on_disk, dtype):
    family = TinyAutoencoder(dtype=dtype)
    cache = PosteriorCache(tmp_path / "cache" if on_disk else None, family)
    assert cache.fill(dataset, dataset.flips) == 8
    assert_equals_live(cache, dataset, family)
    assert set(family.batches) == {1}


def test_second_run_encodes_nothing(dataset, tmp_path):
    PosteriorCache(tmp_path / "cache", TinyAutoencoder()).fill(dataset, dataset.flips)
    family = TinyAutoencoder()
    cache = PosteriorCache(tmp_path / "cache", family)
    assert cache.fill(dataset, dataset.flips) == 0
    assert family.batches == []
    assert_equals_live(cache, dataset, family)


def test_mirrored_posteriors_are_their_own(dataset):
    cache = PosteriorCache(None, TinyAutoencoder())
    cache.fill(dataset, (False, True))
    assert not torch.equal(cache.get(0, False).mean, cache.get(0, True).mean)
    cache.fill(dataset, (False,))
    with pytest.raises(KeyError):
        cache.get(0, True)


def test_only_what_is_new_is_encoded(dataset, tmp_path):
    folder = dataset.config.path
    cache = PosteriorCache(tmp_path / "cache", TinyAutoencoder())
    cache.fill(dataset)
    Image.new("RGB", (64, 64), "red").save(folder / "new.png")
    grown = open_dataset(dataset.config, 16)
    assert PosteriorCache(tmp_path / "cache", TinyAutoencoder()).fill(grown) == 1
    (folder / "0.txt").write_text("another caption")
    assert PosteriorCache(tmp_path / "cache", TinyAutoencoder()).fill(open_dataset(dataset.config, 16)) == 0
    Image.new("RGB", (64, 64), "blue").save(folder / "0.png")
    assert PosteriorCache(tmp_path / "cache", TinyAutoencoder()).fill(open_dataset(dataset.config, 16)) == 1


def test_another_crop_is_another_entry(dataset, tmp_path):
    PosteriorCache(tmp_path / "cache", TinyAutoencoder()).fill(dataset)
    smaller = open_dataset(DataConfig(path=dataset.config.path, resolution=48), 16)
    cache = PosteriorCache(tmp_path / "cache", TinyAutoencoder())
    assert cache.fill(smaller) == len(smaller)
    assert_equals_live(cache, smaller, TinyAutoencoder())


def test_same_bytes_share_an_entry(dataset):
    folder = dataset.config.path
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    twice = open_dataset(dataset.config, 16)
    assert len(twice) == 5
    assert PosteriorCache(None, TinyAutoencoder()).fill(twice) == 4


def only_shard(folder: Path) -> Path:
    [shard] = folder.glob("posterior-*.safetensors")
    return shard


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_damaged_shard_is_computed_anew(dataset, tmp_path, caplog, damage):
    folder = tmp_path / "cache"
    PosteriorCache(folder, TinyAutoencoder()).fill(dataset)
    shard = only_shard(folder)
    data = shard.read_bytes()
    shard.write_bytes({"truncated": data[:-9], "header": b"\xff" * 8 + data[8:], "empty": b""}[damage])
    family = TinyAutoencoder()
    with caplog.at_level(logging.WARNING):
        cache = PosteriorCache(folder, family)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: posterior shards passed over and computed anew where needed: 1 damaged or truncated ({shard.name})"
    ]
    assert cache.fill(dataset) == 4
    assert_equals_live_without_flips(cache, dataset, family)
    assert PosteriorCache(folder, family).fill(dataset) == 0


def assert_equals_live_without_flips(cache: PosteriorCache, dataset: SliceDataset, family: Family) -> None:
    live = LivePosteriors(dataset, family)
    for index in range(len(dataset)):
        assert same_bits(cache.get(index, False).mean, live.get(index, False).mean)


def test_other_model_is_never_read(dataset, tmp_path, caplog):
    folder = tmp_path / "cache"
    PosteriorCache(folder, TinyAutoencoder(seed=1)).fill(dataset)
    family = TinyAutoencoder(seed=2)
    with caplog.at_level(logging.WARNING):
        cache = PosteriorCache(folder, family)
    assert "1 of another model or precision" in caplog.text
    assert cache.fill(dataset, dataset.flips) == 8
    assert_equals_live(cache, dataset, family)
    assert PosteriorCache(folder, TinyAutoencoder(seed=1)).fill(dataset) == 0


def test_other_code_version_is_never_read(dataset, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "cache"
    PosteriorCache(folder, TinyAutoencoder()).fill(dataset)
    monkeypatch.setattr(shards, "CODE_VERSION", "other")
    with caplog.at_level(logging.WARNING):
        cache = PosteriorCache(folder, TinyAutoencoder())
    assert "1 of another code version" in caplog.text
    assert cache.fill(dataset) == 4


def test_foreign_file_is_passed_over(dataset, tmp_path, caplog):
    folder = tmp_path / "cache"
    folder.mkdir()
    save_file({"x.mean": torch.zeros(1)}, folder / "posterior-mine.safetensors")
    with caplog.at_level(logging.WARNING):
        assert PosteriorCache(folder, TinyAutoencoder()).fill(dataset) == 4
    assert "1 not written by flowgrain" in caplog.text


def test_shards_hold_a_limited_number(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ENTRIES", 3)
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 1)
    folder = tmp_path / "cache"
    family = TinyAutoencoder()
    cache = PosteriorCache(folder, family)
    cache.fill(dataset, dataset.flips)
    entries = []
    for shard in folder.iterdir():
        with safe_open(shard, framework="pt") as stream:
            entries.append(len({name.partition(".")[0] for name in stream.keys()}))
    assert sorted(entries) == [2, 3, 3]
    assert_equals_live(cache, dataset, family)
    reopened = PosteriorCache(folder, family)
    assert reopened.fill(dataset, dataset.flips) == 0
    assert_equals_live(reopened, dataset, family)


def test_stopping_keeps_what_was_done(dataset, tmp_path):
    def stop_after_two(done: int, total: int) -> None:
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        PosteriorCache(folder, TinyAutoencoder()).fill(dataset, on_progress=stop_after_two)
    assert PosteriorCache(folder, TinyAutoencoder()).fill(dataset) == 2


def test_progress(dataset):
    seen = []
    PosteriorCache(None, TinyAutoencoder()).fill(dataset, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_shard_removed_while_in_use_is_encoded_again(dataset, tmp_path, caplog):
    family = TinyAutoencoder()
    cache = PosteriorCache(tmp_path / "cache", family)
    cache.fill(dataset, dataset.flips)
    shard = only_shard(tmp_path / "cache")
    shard.unlink()
    with caplog.at_level(logging.WARNING):
        assert_equals_live(cache, dataset, family)
    [record] = caplog.records
    assert record.getMessage().startswith(f"{shard}: an entry cannot be read")


def test_get_before_fill(dataset, tmp_path):
    with pytest.raises(KeyError):
        PosteriorCache(None, TinyAutoencoder()).get(0, False)


@pytest.mark.parametrize("kind", ["posterior", "embedding"])
def test_flipped_bit_is_found_and_encoded_again(dataset, tmp_path, caplog, kind):
    family = TinyAutoencoder()
    folder = tmp_path / "cache"
    PosteriorCache(folder, family).fill(dataset, dataset.flips)
    EmbeddingCache(folder, family).fill(dataset.captions(0))
    [shard] = folder.glob(f"{kind}-*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    posteriors, embeddings = PosteriorCache(folder, family), EmbeddingCache(folder, family)
    assert (posteriors.fill(dataset, dataset.flips), embeddings.fill(dataset.captions(0))) == (0, 0)
    with caplog.at_level(logging.WARNING):
        assert_equals_live(posteriors, dataset, family)
        for caption in dataset.captions(0):
            cached, fresh = embeddings.get(caption).tensors, LiveEmbeddings(family).get(caption).tensors
            assert all(same_bits(cached[name], fresh[name]) for name in fresh)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [str(shard)]
    assert "is damaged (checksum)" in caplog.text


def test_corrupt_picture_found_while_filling_names_it_and_keeps_the_rest(dataset, tmp_path):
    folder = tmp_path / "cache"
    broken = Path(dataset.slices[2].file.place())
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=broken.name):
        PosteriorCache(folder, TinyAutoencoder()).fill(dataset)
    with safe_open(only_shard(folder), framework="pt") as stream:
        assert len(list(stream.keys())) == 4


def test_forecast_of_embeddings_is_what_is_stored(dataset):
    cache = EmbeddingCache(None, TinyAutoencoder(dtype=torch.bfloat16))
    cache.fill(dataset.captions(0))
    stored = [cache.get(caption) for caption in dataset.captions(0)]
    size = sum(tensor.nbytes for row in stored for tensor in row.tensors.values())
    assert forecast_embedding_bytes(len(dataset.captions(0)), stored[0]) == size == 3 * (256 + 1) * 2


def test_folder_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache"):
        PosteriorCache(tmp_path / "file" / "cache", TinyAutoencoder()).fill(dataset)


@pytest.mark.parametrize("on_disk", [False, True])
def test_embeddings(dataset, tmp_path, on_disk):
    family = TinyAutoencoder(dtype=torch.bfloat16)
    folder = tmp_path / "cache" if on_disk else None
    cache = EmbeddingCache(folder, family)
    assert dataset.captions(0) == ("", "picture 0", "picture 1")
    assert cache.fill(dataset.captions(0)) == 3
    assert family.captions == ["", "picture 0", "picture 1"]
    live = LiveEmbeddings(family)
    for caption in dataset.captions(0):
        cached, fresh = cache.get(caption).tensors, live.get(caption).tensors
        assert set(cached) == set(fresh) == {"states", "pooled"}
        assert all(same_bits(cached[name], fresh[name]) for name in fresh)
    assert EmbeddingCache(folder, TinyAutoencoder(dtype=torch.bfloat16)).fill(dataset.captions(0)) == (
        0 if on_disk else 3
    )


def test_cut_captions_are_told_once(caplog):
    captions = ["short", "a" * 41, "b" * 60]
    for _ in range(2):
        EmbeddingCache(None, TinyAutoencoder()).fill(captions)
    assert [record.message for record in caplog.records] == [
        "2 of 3 captions are longer than the 40 tokens that the model reads: it does not see their end; "
        "flowgrain check names them"
    ]


def test_posteriors_and_embeddings_share_a_folder(dataset, tmp_path, caplog):
    folder = tmp_path / "cache"
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            PosteriorCache(folder, TinyAutoencoder()).fill(dataset)
            EmbeddingCache(folder, TinyAutoencoder()).fill(dataset.captions(0))
    assert caplog.records == []
    assert len(list(folder.iterdir())) == 2


def test_forecast_is_what_is_stored(dataset):
    family = TinyAutoencoder()
    cache = PosteriorCache(None, family)
    cache.fill(dataset, dataset.flips)
    stored = [cache.get(index, flip) for index in range(len(dataset)) for flip in dataset.flips]
    assert forecast_bytes(dataset, family.capabilities) == sum(p.mean.nbytes + p.logvar.nbytes for p in stored)


def test_importable_without_the_model_libraries():
    code = (
        "import sys, flowgrain.data.cache, flowgrain.data.literal; "
        "print(sorted({'diffusers', 'transformers', 'peft'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_with_the_embedded_model(dataset, tmp_path):
    from flowgrain.families.flux import Flux

    family = Flux.load(str(TINY_FLUX), torch.float32, torch.device("cpu"))
    cache = PosteriorCache(tmp_path / "cache", family)
    cache.fill(dataset, dataset.flips)
    assert_equals_live(cache, dataset, family)
    prompts = EmbeddingCache(tmp_path / "cache", family)
    prompts.fill(dataset.captions(0))
    for caption in dataset.captions(0):
        cached, fresh = prompts.get(caption).tensors, LiveEmbeddings(family).get(caption).tensors
        assert all(same_bits(cached[name], fresh[name]) for name in fresh)
    assert forecast_bytes(dataset, family.capabilities) == sum(
        p.mean.nbytes + p.logvar.nbytes
        for p in (cache.get(index, flip) for index in range(len(dataset)) for flip in dataset.flips)
    )
