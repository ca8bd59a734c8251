import json
import logging
import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_encoders import clip_folder, picture_files

from flowgrain.errors import DataError
from flowgrain.evaluate.encoders.base import ImageEncoder, open_rgb
from flowgrain.evaluate.encoders.clip import load_clip
from flowgrain.evaluate.feature_cache import CachedEncoder, content_digests


class Means(ImageEncoder):
    """Mean colours, and what it was asked to encode. A row depends on its batch in the last bits, as on a GPU."""

    family, name, version, size, resize, dimension = "Means", "Means", "1", 1, "box", 3

    def __init__(self, batch_size=4, **changes):
        self.batch_size = batch_size
        self.batches = []
        for key, value in changes.items():
            setattr(self, key, value)

    @property
    def encoded(self):
        return sum(self.batches)

    def __call__(self, images):
        rows = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            self.batches.append(len(batch))
            means = [np.asarray(open_rgb(image), dtype=np.float64).mean(axis=(0, 1)) for image in batch]
            rows += [mean * (1 + 1e-7 * len(batch)) for mean in means]
        return np.array(rows, dtype=np.float32).reshape(-1, 3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return picture_files(tmp_path_factory.mktemp("pictures"), 11)


def test_a_first_filling_and_every_later_reading_give_the_uncached_bits(paths, tmp_path):
    uncached = Means()(paths)
    cold = CachedEncoder(Means(), tmp_path)(paths)
    again = Means()
    warm = CachedEncoder(again, tmp_path)(paths)
    np.testing.assert_array_equal(cold, uncached)
    np.testing.assert_array_equal(warm, uncached)
    assert again.encoded == 0 and warm.dtype == np.float32


@settings(max_examples=25)
@given(first=st.lists(st.integers(0, 10)), second=st.lists(st.integers(0, 10)), batch=st.sampled_from([1, 4]))
def test_any_order_and_any_repeats_give_the_features_of_the_pictures(paths, tmp_path_factory, first, second, batch):
    folder = tmp_path_factory.mktemp("cache")
    truth = Means(batch)(paths)
    inner = Means(batch)
    cached = CachedEncoder(inner, folder)
    for chosen in (first, second):
        found = cached([paths[place] for place in chosen])
        if batch == 1:
            np.testing.assert_array_equal(found, truth[chosen])
        else:
            np.testing.assert_allclose(found, truth[chosen], rtol=1e-5)
    assert inner.encoded == len(set(first) | set(second))


def test_a_real_network_is_cached_to_the_bit(tmp_path):
    encoder = load_clip(str(clip_folder(tmp_path / "clip")), batch_size=4)
    cached = CachedEncoder(encoder, tmp_path / "cache")
    files = picture_files(tmp_path / "pictures", 9)
    uncached = encoder(files)
    np.testing.assert_array_equal(cached(files), uncached)
    np.testing.assert_array_equal(cached(files[::-1]), uncached[::-1])
    np.testing.assert_array_equal(cached.text(["a cat"]).features, encoder.text(["a cat"]).features)
    assert (cached.name, cached.family, cached.dimension) == (encoder.name, encoder.family, encoder.dimension)


def test_the_key_is_the_content_not_the_name(paths, tmp_path):
    inner = Means()
    cached = CachedEncoder(inner, tmp_path / "cache")
    cached(paths)
    copy = tmp_path / "other name.png"
    copy.write_bytes(paths[3].read_bytes())
    np.testing.assert_array_equal(cached([copy])[0], cached([paths[3]])[0])
    assert inner.encoded == len(paths)
    Image.new("RGB", (4, 4), (9, 9, 9)).save(copy)
    np.testing.assert_allclose(cached([copy])[0], [9, 9, 9], rtol=1e-5)
    assert inner.encoded == len(paths) + 1


def test_pictures_in_memory_are_known_by_their_pixels():
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    other = np.asarray(Image.new("RGB", (4, 2), "white"))
    digests = content_digests([wide, tall, other, np.asarray(wide), wide.copy()])
    assert len(set(digests)) == 3
    assert digests[0] == digests[3] == digests[4]


@pytest.mark.parametrize("changes", [{"name": "Means b"}, {"version": "2"}, {"resize": "bicubic"}, {"size": 2}])
def test_another_encoder_has_its_own_entries(paths, tmp_path, changes):
    CachedEncoder(Means(), tmp_path)(paths)
    other = Means(**changes)
    CachedEncoder(other, tmp_path)(paths)
    assert other.encoded == len(paths)
    told = [json.loads(file.read_text()) for file in tmp_path.rglob("encoder.json")]
    assert len(told) == 2 and all(about["family"] == "Means" for about in told)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_entries_are_encoded_anew(paths, tmp_path, damage, caplog):
    uncached = CachedEncoder(Means(1), tmp_path)(paths)
    (shard,) = tmp_path.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes({"flip": bytes(content), "cut": bytes(content[:-40]), "empty": b""}[damage])
    again = Means(1)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(CachedEncoder(again, tmp_path)(paths), uncached)
    assert 1 <= again.encoded <= len(paths)
    assert shard.name in caplog.text


def test_progress_counts_pictures(paths, tmp_path):
    seen = []
    cached = CachedEncoder(Means(), tmp_path, lambda done, total: seen.append((done, total)))
    cached(paths[:3])
    cached([*paths, paths[0]])
    assert seen == [(0, 3), (3, 3), (4, 12), (12, 12)]


def fill(folder, paths, start, results):
    encoder = Means(1)
    start.wait()
    results.put((CachedEncoder(encoder, folder)(paths), encoder.encoded))


def test_two_processes_share_a_folder(paths, tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=fill, args=(tmp_path, paths, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    uncached = Means(1)(paths)
    for features, _ in found:
        np.testing.assert_array_equal(features, uncached)
    after = Means(1)
    np.testing.assert_array_equal(CachedEncoder(after, tmp_path)(paths), uncached)
    assert after.encoded == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_was_encoded_before_a_stop_is_kept(paths, tmp_path):
    class Stopping(Means):
        def __call__(self, images):
            if self.encoded:
                raise KeyboardInterrupt
            return super().__call__(images)

    many = [np.full((2, 2, 3), (number % 256, number // 256, 0), dtype=np.uint8) for number in range(300)]
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Stopping(), tmp_path)(many)
    resumed = Means()
    features = CachedEncoder(resumed, tmp_path)(many)
    assert resumed.encoded == 300 - 256
    np.testing.assert_allclose(features, [[n % 256, n // 256, 0] for n in range(300)], rtol=1e-5)


def test_many_pictures_are_encoded_a_shard_at_a_time(tmp_path):
    asked = []

    class Watching(Means):
        def __call__(self, images):
            asked.append(len(images))
            return super().__call__(images)

    many = [np.full((2, 2, 3), (number % 256, number // 256, 0), dtype=np.uint8) for number in range(600)]
    CachedEncoder(Watching(batch_size=24), tmp_path)(many)
    assert asked == [240, 240, 120]  # whole batches, at most the 256 entries of a shard


def test_a_folder_that_cannot_be_written_is_named(paths, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="the feature cache cannot be written"):
        CachedEncoder(Means(), tmp_path / "cache")(paths)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"junk")
    for name, message in (("broken.png", "not an image"), ("absent.png", "no such file")):
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            CachedEncoder(Means(), tmp_path / "cache")([tmp_path / name])


def test_no_pictures_give_no_rows(tmp_path):
    assert CachedEncoder(Means(), tmp_path)([]).shape == (0, 3)
