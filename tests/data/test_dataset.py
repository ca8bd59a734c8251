"""Reading data sets: identity, captions, flips, shapes, and what is refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgrain.config import Config
from flowgrain.data.buckets import best_aspect_match, bucket_list
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.images import to_tensor
from flowgrain.data.records import MANIFEST_NAME
from flowgrain.data.tuples import TupleConfig, plan_epoch, plan_hash
from flowgrain.errors import ConfigError, DataError

SIZES = {"b.png": (64, 64), "a.png": (96, 48), "sub/a.png": (48, 96), "c.png": (100, 80)}


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *size]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def plain(tmp_path) -> Path:
    for name, size in SIZES.items():
        picture(tmp_path / name, size)
    (tmp_path / "a.txt").write_text("a red fox")
    (tmp_path / "b.txt").write_text("ohwx statue")
    return tmp_path


def record(slice_id: str, root: str, level: str = "macro", granularity: str = "macro", **changes) -> dict:
    values = {
        "slice_id": slice_id, "root": root, "image": "fox.png", "level": level,
        "granularity": granularity, "path": f"slices/{slice_id}.png", "width": 64, "height": 32,
        "box": [10.0, 20.0, 110.0, 90.0], "crop": [10.0, 25.0, 110.0, 75.0], "scale": 0.64, "action": "downscale",
        "reason": "test", "parent": None, "detector": "test", "score": 1.0, "caption": f"caption of {slice_id}",
        "caption_source": "root",
    }  # fmt: skip
    values |= changes
    return {**values, "image_sha1": hashlib.sha1(values["image"].encode()).hexdigest()}


def write_manifest(folder: Path, records: list[dict]) -> Path:
    for number, values in enumerate(records):
        picture(folder / values["path"], (values["width"], values["height"]), seed=number)
    (folder / MANIFEST_NAME).write_text("".join(json.dumps(values) + "\n" for values in records))
    return folder


@pytest.fixture
def decomposed(tmp_path) -> Path:
    records = [
        record("fox/p0/micro0", "fox/p0", "eyes", "micro"),
        record("fox/p0/macro0", "fox/p0"),
        record("owl/p0/macro0", "owl/p0", image="owl.png"),
        record("fox/p1/macro0", "fox/p1", caption=""),
        record("fox/p0/micro1", "fox/p0", "eyes", "micro", width=32),
    ]
    return write_manifest(tmp_path, records)


def opened(path: Path, **options) -> SliceDataset:
    return open_dataset(DataConfig(path=path, **options), 16)


def test_plain_folder(plain):
    dataset = opened(plain, resolution=64)
    assert [s.slice_id for s in dataset.slices] == sorted(s.slice_id for s in dataset.slices)
    by_image = {s.image: s for s in dataset.slices}
    assert set(by_image) == set(SIZES)
    shapes = bucket_list(64, 16)
    for name, s in by_image.items():
        assert s.bucket == best_aspect_match(*SIZES[name], shapes)
        assert s.native == SIZES[name]
        assert (s.level, s.granularity) == ("macro", 0)
        assert s.root == f"{name[:-4]}-{s.digest[:8]}" and s.slice_id == f"{s.root}/macro0"
    assert by_image["a.png"].caption == "a red fox"
    assert dataset.missing_captions == 2
    assert dataset.problems == ()


def test_pixels_fill_the_bucket_undistorted(plain):
    dataset = opened(plain, resolution=64)
    for index, s in enumerate(dataset.slices):
        pixels = dataset.pixels(index)
        assert pixels.shape == (3, s.bucket[1], s.bucket[0])
        assert torch.equal(dataset.pixels(index, flip=True), pixels.flip(-1))
    index = next(i for i, s in enumerate(dataset.slices) if s.image == "b.png")
    assert dataset.slices[index].transform == "none"
    assert torch.equal(dataset.pixels(index), to_tensor(Image.open(plain / "b.png")))


def test_crop_is_centred(tmp_path):
    """A picture that is white in the middle half only: what is left of it after the crop is white."""
    pixels = np.zeros((64, 256, 3), np.uint8)
    pixels[:, 64:192] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    dataset = opened(tmp_path, buckets=((64, 64),))
    s = dataset.slices[0]
    assert (s.bucket, s.native) == ((64, 64), (256, 64))
    assert bool((dataset.pixels(0) == 1).all())


def test_explicit_buckets(plain):
    dataset = opened(plain, buckets=((64, 32), (32, 64)))
    assert {s.bucket for s in dataset.slices} == {(64, 32), (32, 64)}
    with pytest.raises(ConfigError, match="63x32"):
        opened(plain, buckets=((63, 32),))


def test_resolution_and_buckets_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        DataConfig(path=Path("x"), resolution=64, buckets=((64, 64),))


def test_default_resolution_is_kohyas_list(plain):
    shapes = set(bucket_list(1024, 64, 512, 2048))
    assert {s.bucket for s in opened(plain).slices} <= shapes


def test_fingerprint_follows_content_not_names_of_the_folder(plain, tmp_path_factory):
    first = opened(plain, resolution=64)
    other = tmp_path_factory.mktemp("copy")
    for path in sorted(plain.rglob("*.*"), reverse=True):
        target = other / path.relative_to(plain)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    second = opened(other, resolution=64)
    assert first.fingerprint == second.fingerprint
    plans = [plan_hash(plan_epoch(d.table, TupleConfig(batch_size=2), 0, 3)) for d in (first, second)]
    assert plans[0] == plans[1]
    (other / "a.txt").write_text("a grey fox")
    assert opened(other, resolution=64).fingerprint != first.fingerprint
    assert opened(plain, resolution=96).fingerprint != first.fingerprint


def test_trigger(plain):
    captions = {s.image: s.caption for s in opened(plain, trigger="ohwx").slices}
    assert captions["a.png"] == "ohwx, a red fox"
    assert captions["b.png"] == "ohwx statue"
    assert captions["c.png"] == "ohwx"
    captions = {s.image: s.caption for s in opened(plain, trigger="ohw").slices}
    assert captions["b.png"] == "ohw, ohwx statue"


def test_caption_dropout(plain):
    dataset = opened(plain, caption_dropout=0.25)
    index = next(i for i, s in enumerate(dataset.slices) if s.image == "a.png")
    drawn = [dataset.caption(index, 0, epoch) for epoch in range(2000)]
    assert set(drawn) == {"", "a red fox"}
    assert 0.21 < drawn.count("") / 2000 < 0.29
    assert drawn == [dataset.caption(index, 0, epoch) for epoch in range(2000)]
    assert drawn != [dataset.caption(index, 1, epoch) for epoch in range(2000)]
    assert set(dataset.captions(0)) == {"", "a red fox", "ohwx statue"}
    assert opened(plain).caption(index, 0, 0) == "a red fox"


def test_flip_scope(decomposed):
    together, alone = opened(decomposed, flip=True), opened(decomposed, flip=True, flip_scope="slice")
    fox = [i for i, s in enumerate(together.slices) if s.root == "fox/p0"]
    epochs = range(400)
    drawn = np.array([[together.flipped(i, 0, e) for e in epochs] for i in fox])
    assert (drawn == drawn[0]).all()
    assert 0.4 < drawn[0].mean() < 0.6
    drawn = np.array([[alone.flipped(i, 0, e) for e in epochs] for i in fox])
    assert (drawn[0] != drawn[1]).any()
    assert (opened(decomposed).flips, together.flips) == ((False,), (False, True))
    assert not any(opened(decomposed).flipped(0, 0, e) for e in epochs)


def test_decomposed(decomposed):
    dataset = opened(decomposed)
    assert [s.slice_id for s in dataset.slices] == [
        "fox/p0/macro0", "fox/p0/micro0", "fox/p0/micro1", "fox/p1/macro0", "owl/p0/macro0",
    ]  # fmt: skip
    table = dataset.table
    assert table.root.tolist() == [0, 0, 0, 1, 2]
    assert table.granularity.tolist() == [0, 2, 2, 0, 0]
    assert table.level.tolist() == [1, 0, 0, 1, 1]
    assert table.bucket.tolist() == [1, 1, 0, 1, 1]
    assert dataset.missing_captions == 1
    first = dataset.slices[0]
    assert (first.bucket, first.native, first.crop) == ((64, 32), (100, 70), None)
    assert first.offset == (0, 3)
    assert dataset.pixels(2).shape == (3, 32, 32)


def test_line_order_does_not_matter(decomposed):
    before = opened(decomposed)
    manifest = decomposed / MANIFEST_NAME
    manifest.write_text("\n".join(reversed(manifest.read_text().splitlines())))
    after = opened(decomposed)
    assert after.slices == before.slices and after.fingerprint == before.fingerprint


def test_levels_and_max_roots(decomposed):
    assert {s.level for s in opened(decomposed, levels=("eyes",)).slices} == {"eyes"}
    assert {s.root for s in opened(decomposed, max_roots=2).slices} == {"fox/p0", "fox/p1"}
    with pytest.raises(DataError, match=r"no slice of level 'head'; levels here: eyes, macro"):
        opened(decomposed, levels=("head",))


def test_split_is_by_source_image(decomposed):
    dataset = opened(decomposed)
    train, held = dataset.split(0.5)
    assert {s.image for s in train.slices} | {s.image for s in held.slices} == {"fox.png", "owl.png"}
    assert not {s.image for s in train.slices} & {s.image for s in held.slices}
    assert len(train) + len(held) == len(dataset)
    assert dataset.split(0.01)[1].slices == held.slices
    with pytest.raises(DataError, match="at least 2"):
        held.split(0.5)
    with pytest.raises(ValueError, match="strictly between"):
        dataset.split(1.0)


def test_split_keeps_sides_when_pictures_are_added(tmp_path):
    for number in range(20):
        picture(tmp_path / f"{number:02}.png", (16, 16), number)
    first = {s.image for s in opened(tmp_path, resolution=16).split(0.2)[0].slices}
    picture(tmp_path / "new.png", (16, 16), 99)
    second = {s.image for s in opened(tmp_path, resolution=16).split(0.2)[0].slices}
    assert len(first - second) <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, r"manifest\.jsonl:2: width: .*greater than 0"),
        ({"width": 40}, r"manifest\.jsonl:2: .*40x32 px, but the model needs multiples of 16"),
        ({"slice_id": "one"}, r"manifest\.jsonl:2: slice_id 'one' was already used at line 1"),
        ({"colour": "red"}, r"manifest\.jsonl:2: colour: "),
        ({"path": "slices/none.png"}, r"manifest\.jsonl:2: file 'slices/none\.png' is missing"),
        ({"path": "../none.png"}, r"manifest\.jsonl:2: .*inside the data set's folder"),
        ({"granularity": "nano"}, r"manifest\.jsonl:2: granularity: "),
    ],
)
def test_wrong_line(tmp_path, changes, words):
    write_manifest(tmp_path, [record("one", "r")])
    line = json.dumps({**record("two", "r", path="slices/one.png"), **changes})
    with (tmp_path / MANIFEST_NAME).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(DataError, match=words) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_broken_json_line(tmp_path):
    write_manifest(tmp_path, [record("one", "r")])
    with (tmp_path / MANIFEST_NAME).open("a") as stream:
        stream.write('{"slice_id": "tw')
    with pytest.raises(DataError, match=r"manifest\.jsonl:2: Invalid JSON"):
        opened(tmp_path)


def test_empty_manifest(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text("\n")
    with pytest.raises(DataError, match="no slice in it"):
        opened(tmp_path)


def test_sizes_of_a_decomposed_set_are_fixed(decomposed):
    with pytest.raises(ConfigError, match=r"data\.resolution"):
        opened(decomposed, resolution=64)


def test_slice_file_of_another_size(decomposed):
    picture(decomposed / "slices/fox/p0/macro0.png", (48, 32))
    with pytest.raises(DataError, match="48x32 px, but slice 'fox/p0/macro0' is recorded as 64x32"):
        opened(decomposed)


def test_slice_file_that_changes_after_opening(decomposed):
    dataset = opened(decomposed)
    picture(decomposed / "slices/fox/p0/macro0.png", (48, 32))
    with pytest.raises(DataError, match="48x32 px, but slice 'fox/p0/macro0' is recorded as 64x32"):
        dataset.pixels(0)


def test_unreadable_pictures_are_listed(plain):
    (plain / "broken.png").write_bytes(b"no picture")
    dataset = opened(plain, resolution=64)
    assert len(dataset) == len(SIZES)
    [(path, reason)] = dataset.problems
    assert path.name == "broken.png" and reason and str(plain) not in reason


def test_same_picture_twice_under_one_name(plain):
    (plain / "b.bmp.png").write_bytes((plain / "b.png").read_bytes())
    (plain / "b.jpg").write_bytes((plain / "b.png").read_bytes())
    dataset = opened(plain, resolution=64)
    assert len(dataset) == len(SIZES) + 1
    assert [(path.name, reason) for path, reason in dataset.problems] == [
        ("b.png", "the same picture as b.jpg, under the same name")
    ]


def test_nothing_readable(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of its 1 pictures can be read; the first: x\.png: "):
        opened(tmp_path)


def test_empty_or_missing_folder(tmp_path):
    with pytest.raises(DataError):
        opened(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "none")


def test_resolution_below_the_models_grid(plain):
    with pytest.raises(ConfigError, match=r"data\.resolution: 8"):
        opened(plain, resolution=8)


def test_config_is_a_config():
    assert issubclass(DataConfig, Config)
    with pytest.raises(ValueError):
        DataConfig(path=Path("x"), caption_dropout=1.0)
