"""Masks: chosen, checked, and brought to the bucket as the picture is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgrain.data.collections import Folder, Item
from flowgrain.data.dataset import DataConfig, SliceDataset, open_dataset
from flowgrain.data.masks import mask_beside
from flowgrain.data.records import MANIFEST_NAME
from flowgrain.errors import DataError


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def left_half(size: tuple[int, int]) -> Image.Image:
    """White left, black right."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def opened(path: Path, **options) -> SliceDataset:
    return open_dataset(DataConfig.model_validate({"path": path, "buckets": [[32, 32]], **options}), 16)


@pytest.fixture
def pictures(tmp_path) -> Path:
    noise((96, 64)).save(tmp_path / "a.png")
    left_half((96, 64)).save(tmp_path / "a.mask.png")
    noise((64, 64), 1).save(tmp_path / "b.jpg")
    left_half((32, 32)).save(tmp_path / "b-masklabel.png")
    noise((64, 64), 2).save(tmp_path / "c.png")
    return tmp_path


def test_masks_are_never_pictures(pictures):
    for options in ({}, {"mask": "file"}):
        assert [s.image for s in opened(pictures, **options).slices] == ["a.png", "b.jpg", "c.png"]
    assert all(s.mask is None for s in opened(pictures).slices)
    assert opened(pictures).mask(0) is None


def test_a_mask_follows_its_picture(pictures):
    """The crop is centred: what is left of the edge in the file is left of the middle of the bucket."""
    dataset = opened(pictures, mask="file")
    for index in (0, 1):
        mask = dataset.mask(index)
        assert mask.shape == dataset.pixels(index).shape[1:] and mask.dtype == torch.float32
        assert bool((mask[:, :14] == 1).all()) and bool((mask[:, 18:] == 0).all())
        assert 0 <= mask.min() and mask.max() <= 1
        assert torch.equal(dataset.mask(index, flip=True), mask.flip(-1))
    assert dataset.mask(2) is None


def test_a_mask_sits_where_the_pixels_do(tmp_path):
    """A picture and a mask of the same values come out alike, but for the filter: the same rows and columns."""
    grey = np.zeros((96, 160), np.uint8)
    grey[24:72, 64:88] = 255
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "a.mask.png")
    dataset = opened(tmp_path, mask="file")
    assert torch.equal(dataset.mask(0) > 0.5, dataset.pixels(0)[0] > 0)


@pytest.mark.parametrize("value", [1, 128, 255])
def test_a_constant_mask_stays_constant(tmp_path, value):
    noise((90, 50)).save(tmp_path / "a.png")
    Image.new("L", (90, 50), value).save(tmp_path / "a.mask.png")
    assert torch.allclose(opened(tmp_path, mask="file").mask(0), torch.full((32, 32), value / 255), atol=1e-6)


def test_alpha(tmp_path):
    image = noise((64, 64)).convert("RGBA")
    image.putalpha(left_half((64, 64)))
    image.save(tmp_path / "a.png")
    noise((64, 64), 1).save(tmp_path / "b.png")
    dataset = opened(tmp_path, mask="alpha")
    mask = dataset.mask(0)
    assert bool((mask[:, :15] == 1).all()) and bool((mask[:, 17:] == 0).all())
    assert dataset.mask(1) is None


def test_a_mask_changes_the_fingerprint_and_nothing_else(pictures):
    plain, first = opened(pictures), opened(pictures, mask="file")
    left_half((96, 64)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "a.mask.png")
    second = opened(pictures, mask="file")
    assert len({plain.fingerprint, first.fingerprint, second.fingerprint}) == 3
    for dataset in (first, second):
        assert [(s.slice_id, s.digest, s.transform) for s in dataset.slices] == [
            (s.slice_id, s.digest, s.transform) for s in plain.slices
        ]


def test_masks_that_cannot_be_used(pictures):
    Image.new("L", (96, 64), 0).save(pictures / "a.mask.png")
    left_half((64, 64)).save(pictures / "b.mask.png")
    left_half((64, 40)).save(pictures / "c.mask.png")
    noise((64, 64), 3).save(pictures / "d.png")
    (pictures / "d.mask.png").write_bytes(b"no picture")
    noise((64, 64), 4).save(pictures / "e.png")
    left_half((64, 64)).save(pictures / "e.mask.png")
    dataset = opened(pictures, mask="file")
    assert [s.image for s in dataset.slices] == ["e.png"]
    reasons = {path.name: reason for path, reason in dataset.problems}
    assert reasons["a.png"] == "a.mask.png: a mask that is black everywhere leaves nothing to train on"
    assert reasons["b.jpg"] == "has two masks, b.mask.png and b-masklabel.png; remove one"
    assert reasons["c.png"] == "c.mask.png: a mask of 64x40 px for a picture of 64x64: another aspect ratio"
    assert reasons["d.png"].startswith("d.mask.png: not an image")


def test_a_transparent_picture_has_nothing_to_train_on(tmp_path):
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "a.png")
    Image.new("RGBA", (32, 32), (9, 9, 9, 9)).save(tmp_path / "b.png")
    [(path, reason)] = opened(tmp_path, mask="alpha").problems
    assert path.name == "a.png" and "transparent everywhere" in reason


@pytest.mark.parametrize("mask", ["alpha", "file"])
def test_asking_for_masks_that_nobody_has(tmp_path, mask):
    noise((32, 32)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=f"data.mask is '{mask}', but no picture has a mask"):
        opened(tmp_path, mask=mask)


def test_a_picture_that_lost_its_alpha(tmp_path):
    Image.new("RGBA", (32, 32), (9, 9, 9, 9)).save(tmp_path / "a.png")
    dataset = opened(tmp_path, mask="alpha")
    noise((32, 32)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has lost its alpha"):
        dataset.mask(0)


@pytest.mark.parametrize("mask", ["alpha", "file"])
def test_masks_of_a_decomposed_set(tmp_path, mask):
    (tmp_path / "slices").mkdir()
    lines = []
    for number in range(2):
        noise((32, 48), number).save(tmp_path / f"slices/{number}.png")
        line = {
            "slice_id": f"{number}/macro0", "root": str(number), "image": f"{number}.jpg", "image_sha1": str(number),
            "level": "macro", "granularity": "macro", "path": f"slices/{number}.png", "width": 32, "height": 48,
            "box": [0, 0, 32, 48], "crop": [0, 0, 32, 48], "scale": 1.0, "action": "native", "reason": "test",
            "parent": None, "detector": "test", "score": 1.0, "caption": "", "caption_source": "none",
        }  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    (tmp_path / MANIFEST_NAME).write_text("".join(lines))
    left_half((32, 48)).save(tmp_path / "slices/1.mask.png")
    dataset = opened(tmp_path, mask=mask, buckets=None)
    assert dataset.mask(0) is None
    assert torch.equal(dataset.mask(1), torch.from_numpy(np.asarray(left_half((32, 48))) / np.float32(255)))
    Image.new("L", (32, 48), 0).save(tmp_path / "slices/1.mask.png")
    with pytest.raises(DataError, match=r"1\.mask\.png: a mask that is black"):
        opened(tmp_path, mask=mask, buckets=None)


def test_the_mask_beside_a_picture_of_any_collection(pictures):
    folder = Folder(pictures)
    assert mask_beside(Item(folder, "a.png")) == (".mask.png", (pictures / "a.mask.png").read_bytes())
    assert mask_beside(Item(folder, "b.jpg")) == ("-masklabel.png", (pictures / "b-masklabel.png").read_bytes())
    assert mask_beside(Item(folder, "c.png")) is None
    (pictures / "a-masklabel.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: has two masks, a\.mask\.png and a-masklabel\.png; remove one"):
        mask_beside(Item(folder, "a.png"))
    (pictures / "c.mask.png").symlink_to(pictures / "gone.png")
    with pytest.raises(DataError, match=r"c\.mask\.png: no such file"):
        mask_beside(Item(folder, "c.png"))
