"""Several sources, repeats, weights, regularisation, kohya's layout, quarantine and the split that respects them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from flowgrain.config import load_config
from flowgrain.data.captions import decorate
from flowgrain.data.dataset import DataConfig, SliceDataset, SourceConfig, open_dataset, open_split
from flowgrain.data.quarantine import write_quarantine
from flowgrain.data.records import MANIFEST_NAME
from flowgrain.errors import ConfigError, DataError


def picture(path: Path, seed: int, caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def decompose(folder: Path, image: str, digest: str, levels=("macro", "micro")) -> None:
    lines = []
    for level in levels:
        picture(folder / f"{image}.{level}.png", len(lines))
        line = {
            "slice_id": f"{image}/{level}0", "root": image, "image": f"{image}.png", "image_sha1": digest,
            "level": level, "granularity": level, "path": f"{image}.{level}.png", "width": 32, "height": 32,
            "box": [0, 0, 32, 32], "crop": [0, 0, 32, 32], "scale": 1.0, "action": "native", "reason": "test",
            "parent": None, "detector": "test", "score": 1.0, "caption": "", "caption_source": "none",
        }  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    with (folder / MANIFEST_NAME).open("a") as stream:
        stream.writelines(lines)


@pytest.fixture
def folders(tmp_path) -> Path:
    for number in range(3):
        picture(tmp_path / "fox" / f"{number}.png", number, f"fox {number}")
    picture(tmp_path / "eyes" / "0.png", 10)
    picture(tmp_path / "reg" / "0.png", 20, "a dog")
    picture(tmp_path / "reg" / "1.png", 21)
    return tmp_path


def opened(*sources: dict, **options) -> SliceDataset:
    return open_dataset(DataConfig.model_validate({"resolution": 32, "sources": list(sources), **options}), 16)


def test_several_sources(folders):
    dataset = opened(
        {"path": folders / "fox", "weight": 2, "caption_prefix": "photo of", "caption_suffix": ", film"},
        {"path": folders / "eyes", "name": "close-ups", "granularity": "micro", "caption": "an eye", "trigger": "ohwx"},
        {"path": folders / "reg", "regularisation": True, "weight": 0.5, "caption": "an animal"},
        trigger="sks",
    )
    assert [s.slice_id for s in dataset.slices] == sorted(s.slice_id for s in dataset.slices)
    rows = {(s.source, s.image): s for s in dataset.slices}
    assert {key: s.caption for key, s in rows.items()} == {
        ("fox", "fox/0.png"): "sks, photo of fox 0, film",
        ("fox", "fox/1.png"): "sks, photo of fox 1, film",
        ("fox", "fox/2.png"): "sks, photo of fox 2, film",
        ("close-ups", "close-ups/0.png"): "ohwx, an eye",
        ("reg", "reg/0.png"): "a dog",
        ("reg", "reg/1.png"): "an animal",
    }
    assert {s.source: (s.weight, s.level, s.granularity, s.regularisation) for s in dataset.slices} == {
        "fox": (2.0, "macro", 0, False),
        "close-ups": (1.0, "micro", 2, False),
        "reg": (0.5, "macro", 0, True),
    }
    assert all(s.slice_id.startswith(f"{s.source}/") and s.slice_id.startswith(f"{s.root}/") for s in dataset.slices)
    assert dataset.table.weight.tolist() == [s.weight for s in dataset.slices]
    assert dataset.missing_captions == 0


def test_one_source_is_the_path(folders):
    by_path = open_dataset(DataConfig(path=folders / "fox", resolution=32), 16)
    assert opened({"path": folders / "fox"}).slices == by_path.slices
    assert by_path.table.weight.tolist() == [1.0] * 3


def test_repeats_are_units_with_noise_of_their_own_and_the_same_pixels(folders):
    dataset = opened({"path": folders / "fox", "repeats": 3}, flip=True)
    once = opened({"path": folders / "fox"}, flip=True)
    assert len(dataset) == 9 and len({s.slice_id for s in dataset.slices}) == 9
    assert len(set(dataset.table.root.tolist())) == 9
    for s in once.slices:
        copies = [c for c in dataset.slices if c.slice_id.partition("#")[0] == s.slice_id]
        assert [c.slice_id for c in copies] == [s.slice_id, f"{s.slice_id}#2", f"{s.slice_id}#3"]
        assert [c.root for c in copies] == [s.root, f"{s.root}#2", f"{s.root}#3"]
        assert {(c.digest, c.transform, c.image) for c in copies} == {(s.digest, s.transform, s.image)}
    assert dataset.fingerprint != once.fingerprint
    assert opened({"path": folders / "fox", "repeats": 3}, max_roots=2).table.root.tolist() == [0, 1, 2, 3, 4, 5]
    assert opened({"path": folders / "eyes", "repeats": 3}).missing_captions == 3


@pytest.mark.parametrize("change", [{"weight": 2.0}, {"caption_suffix": "x"}, {"repeats": 2}, {"granularity": "micro"}])
def test_what_changes_the_run_changes_the_fingerprint(folders, change):
    path = folders / "fox"
    assert opened({"path": path}).fingerprint != opened({"path": path, **change}).fingerprint


def test_sources_have_shapes_and_levels_of_their_own(folders, tmp_path):
    decompose(tmp_path / "cut", "owl", "1" * 40)
    sources = [{"path": tmp_path / "cut", "levels": ["micro"]}, {"path": folders / "fox", "buckets": [[64, 16]]}]
    dataset = opened(*sources, {"path": folders / "eyes"})
    assert {(s.source, s.level, s.bucket) for s in dataset.slices} == {
        ("cut", "micro", (32, 32)), ("fox", "macro", (64, 16)), ("eyes", "macro", (32, 32)),
    }  # fmt: skip
    assert {
        s.source for s in opened({"path": tmp_path / "cut"}, {"path": folders / "fox"}, levels=["micro"]).slices
    } == {"cut"}
    with pytest.raises(DataError, match="no slice of level 'eyes'; levels here: macro, micro"):
        opened({"path": tmp_path / "cut"}, {"path": folders / "fox"}, levels=["eyes"])
    with pytest.raises(DataError, match="fox: no slice of level 'micro'; levels here: macro"):
        opened({"path": tmp_path / "cut"}, {"path": folders / "fox", "levels": ["micro"]})


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ({"resolution": 64}, {}, r"data\.sources\.0\.resolution: .*decomposed data set"),
        ({"granularity": "micro"}, {}, r"data\.sources\.0\.granularity: .*decomposed data set"),
        ({}, {"resolution": 64}, r"data\.resolution: .*decomposed data set"),
        ({}, {"background": [0, 0, 0]}, r"data\.background: .*decomposed data set"),
        ({}, {"caption_extension": ".txt"}, r"data\.caption_extension: .*decomposed data set"),
        ({"levels": ["macro"]}, {"levels": ["macro"]}, r"data\.levels: every source has levels of its own"),
    ],
)
def test_keys_that_nothing_reads(tmp_path, source, options, words):
    decompose(tmp_path / "cut", "owl", "1" * 40)
    with pytest.raises(ConfigError, match=words):
        opened({"path": tmp_path / "cut", **source}, **{"resolution": None, **options})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trigger=x"], "data.path"),
        (["path=a", "sources=[{path: b}]"], "not both"),
        (["sources=[{path: b, repeats: 0}]"], "sources.0.repeats"),
        (["sources=[{path: b, weight: 0}]"], "sources.0.weight"),
        (["sources=[{path: b, repeat: 2}]"], "did you mean 'repeats'"),
        (["sources=[{path: b, regularisation: true, trigger: x}]"], "trigger is not read in a regularisation source"),
        (["sources=[{path: x/b}, {path: y/b}]"], "two sources are called 'b'"),
        (["sources=[{path: b, name: x/y}]"], "sources.0.name"),
        (["path=a", "holdout=1.0"], "holdout"),
        (["path=a", "background=[0, 0, 256]"], "background.2"),
    ],
)
def test_wrong_configurations(overrides, words):
    with pytest.raises(ConfigError) as caught:
        load_config(DataConfig, None, overrides)
    assert words in str(caught.value)


def test_resolution_and_buckets_of_a_source_exclude_each_other():
    with pytest.raises(ValidationError, match="not both"):
        SourceConfig(path=Path("x"), resolution=64, buckets=((64, 64),))


def test_kohya_layout(tmp_path):
    picture(tmp_path / "img" / "3_ohwx woman" / "a.png", 0)
    picture(tmp_path / "img" / "3_ohwx woman" / "b.png", 1)
    (tmp_path / "img" / "3_ohwx woman" / "b.caption").write_text("ohwx woman on a beach")
    picture(tmp_path / "img" / "1_style_x" / "a.png", 2)
    picture(tmp_path / "img" / "0_resting" / "a.png", 3)
    (tmp_path / "img" / "log").mkdir()
    (tmp_path / "img" / "notes.md").write_text("")
    dataset = open_dataset(DataConfig(path=tmp_path / "img", resolution=32), 16)
    assert sorted((s.source, s.image, s.caption, s.repeat) for s in dataset.slices) == [
        ("1_style_x", "1_style_x/a.png", "style_x", 1),
        *[("3_ohwx woman", "3_ohwx woman/a.png", "ohwx woman", n) for n in (1, 2, 3)],
        *[("3_ohwx woman", "3_ohwx woman/b.png", "ohwx woman on a beach", n) for n in (1, 2, 3)],
    ]
    assert [(path.name, reason) for path, reason in dataset.problems] == [
        ("0_resting", "0 repeats in its name, left out as kohya does")
    ]


def test_kohya_layout_beside_a_regularisation_folder(tmp_path):
    picture(tmp_path / "img" / "2_ohwx" / "a.png", 0)
    picture(tmp_path / "reg" / "1_woman" / "a.png", 1)
    dataset = opened(
        {"path": tmp_path / "img", "repeats": 2},
        {"path": tmp_path / "reg", "regularisation": True},
        trigger="zz",
    )
    assert [(s.source, s.caption, s.repeat, s.regularisation) for s in dataset.slices] == [
        *[("img/2_ohwx", "zz, ohwx", n, False) for n in (1, 2, 3, 4)],
        ("reg/1_woman", "woman", 1, True),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loose.png", r"'loose\.png' lies beside kohya folders such as '10_x'"),
        ("other/deep/a.png", r"'other/' lies beside kohya folders such as '10_x'"),
        ("2023_holiday/a.png", "its name asks for 2023 repeats"),
    ],
)
def test_a_mixed_kohya_layout_is_an_error_with_a_way_out(tmp_path, name, words):
    picture(tmp_path / "10_x" / "a.png", 0)
    picture(tmp_path / name, 1)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    assert "layout: plain" in str(caught.value)
    assert len(opened({"path": tmp_path, "layout": "plain"})) == 2


def test_only_resting_kohya_folders(tmp_path):
    picture(tmp_path / "0_x" / "a.png", 0)
    with pytest.raises(DataError, match="0 repeats"):
        open_dataset(DataConfig(path=tmp_path, resolution=32), 16)


def test_ids_that_end_like_copies(tmp_path):
    decompose(tmp_path / "cut", "owl", "1" * 40, ("macro",))
    decompose(tmp_path / "cut", "owl#2", "2" * 40, ("macro",))
    with pytest.raises(DataError, match=r"root 'owl#2' stands for .* and "):
        opened({"path": tmp_path / "cut", "repeats": 2}, resolution=None)


def test_quarantine(folders, tmp_path):
    (folders / "fox" / "broken.png").write_bytes(b"")
    (folders / "fox" / "1.txt").write_bytes(b"caf\xe9")
    dataset = opened({"path": folders / "fox"}, {"path": folders / "eyes"})
    assert [s.image for s in dataset.slices if s.source == "fox"] == ["fox/0.png", "fox/2.png"]
    write_quarantine(tmp_path / "quarantine.jsonl", dataset.problems)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [
        {"file": str(folders / "fox/1.png"), "reason": "1.txt: caption is not UTF-8 (byte 3); save the file as UTF-8"},
        {"file": str(folders / "fox/broken.png"), "reason": "not an image: the file is empty (0 bytes)"},
    ]
    write_quarantine(tmp_path / "quarantine.jsonl", [])
    assert (tmp_path / "quarantine.jsonl").read_text() == ""


def test_all_corrupt_says_how_many_and_why(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of its 5 pictures.*the first 3: 0\.png: .*; 1\.png: .*; 2\.png: "
    ) as error:
        open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    assert "\n" not in str(error.value) and "3.png" not in str(error.value)


def test_two_different_captions_are_an_error(folders):
    (folders / "fox" / "1.caption").write_text("fox  1")
    assert len(opened({"path": folders / "fox"})) == 3
    (folders / "fox" / "1.caption").write_text("a badger")
    with pytest.raises(DataError, match=r"1\.txt and 1\.caption hold different captions of 1\.png"):
        opened({"path": folders / "fox"})
    chosen = opened({"path": folders / "fox"}, caption_extension=".caption")
    assert sorted(s.caption for s in chosen.slices) == ["", "", "a badger"]


def test_background_is_part_of_the_transform(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "a.png")
    white = open_dataset(DataConfig(path=tmp_path, resolution=32), 16)
    blue = open_dataset(DataConfig(path=tmp_path, resolution=32, background=(0, 0, 255)), 16)
    assert white.slices[0].transform == "none" and blue.slices[0].transform == "none over 0,0,255"
    assert torch.equal(white.pixels(0), torch.ones(3, 32, 32))
    assert blue.pixels(0)[:, 5, 5].tolist() == [-1, -1, 1]
    assert white.fingerprint != blue.fingerprint


def test_split_keeps_copies_of_a_picture_together(tmp_path):
    """Repeats, the same file in another source under another name, and the slices cut from it: one side."""
    for number in range(12):
        path = picture(tmp_path / "fox" / f"{number}.png", number)
        (tmp_path / "more").mkdir(exist_ok=True)
        (tmp_path / "more" / f"copy {11 - number}.png").write_bytes(path.read_bytes())
    plain = open_dataset(DataConfig(path=tmp_path / "fox", resolution=32), 16)
    for s in plain.slices:
        decompose(tmp_path / "cut", s.image[:-4], s.digest)
    picture(tmp_path / "reg" / "0.png", 100)
    (tmp_path / "reg" / "1.png").write_bytes((tmp_path / "fox" / "3.png").read_bytes())
    dataset = opened(
        {"path": tmp_path / "fox", "repeats": 2},
        {"path": tmp_path / "more"},
        {"path": tmp_path / "cut"},
        {"path": tmp_path / "reg", "regularisation": True},
    )
    for seed in range(4):
        train, held = dataset.split(0.4, seed)
        assert len(train) + len(held) == len(dataset)
        digests = [{s.image_digest for s in side.slices} for side in (train, held)]
        assert not digests[0] & digests[1] and len(digests[1]) == round(0.4 * 11)
        assert len(held) == len(digests[1]) * 5
        assert not any(s.regularisation for s in held.slices)
        assert "fox/3.png" in {s.image for s in train.slices}


def test_split_counts_only_what_may_be_held_out(folders):
    dataset = opened({"path": folders / "eyes"}, {"path": folders / "reg", "regularisation": True})
    with pytest.raises(
        DataError, match="1 image beside the regularisation pictures, holding some out needs at least 2"
    ):
        dataset.split(0.5)


def test_open_split(folders):
    config = DataConfig.model_validate(
        {
            "sources": [{"path": folders / "fox", "repeats": 4}],
            "resolution": 32, "holdout": 0.3, "flip": True, "caption_dropout": 0.5,
        }
    )  # fmt: skip
    train, held = open_split(config, 16)
    assert held is not None
    assert (len(train), len(held)) == (8, 1)
    assert held.flips == (False,) and "" not in held.captions(0) and train.flips == (False, True)
    assert {s.slice_id for s in held.slices} < {s.slice_id for s in open_dataset(config, 16).slices}
    whole, nothing = open_split(config.model_copy(update={"holdout": None}), 16)
    assert nothing is None and len(whole) == 12


words = st.text("ab ,.", max_size=8).map(str.strip)


@given(prefix=words, caption=words, suffix=words)
def test_decoration_keeps_every_character_in_order(prefix, caption, suffix):
    text = decorate(caption, prefix, suffix)
    assert text.replace(" ", "") == (prefix + caption + suffix).replace(" ", "")
    assert text == text.strip() and caption in text


def test_no_upscale_keeps_small_pictures_and_leaves_tiny_ones_out(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, size in (("large", (640, 480)), ("small", (100, 70)), ("tiny", (20, 200))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    dataset = open_dataset(DataConfig(path=folder, resolution=128, no_upscale=True), 16)
    shapes = {Path(item.file.name).stem: (item.bucket, item.crop.resize) for item in dataset.slices}
    # steps of 32 px at 128; the large one is shrunk to about 128 x 128 pixels of area
    assert shapes["small"] == ((96, 64), (100, 70))
    bucket, resize = shapes["large"]
    assert bucket[0] * bucket[1] <= 128 * 128 and resize[0] < 640
    assert [path.name for path, _ in dataset.problems] == ["tiny.png"] and "20x200" in dataset.problems[0][1]
    assert dataset.pixels(0).shape[1:] == (dataset.slices[0].bucket[1], dataset.slices[0].bucket[0])
