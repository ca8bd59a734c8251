"""Masks are cut along with the pictures, and training reads what was cut."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from flowgrain.data.dataset import DataConfig, open_dataset
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose


def config(**values):
    level = {"targets": [[64, 64]], "max_upscale": 4}
    return DecomposeConfig.model_validate({
        "levels": {
            "macro": {"granularity": "macro", **level},
            "micro": {"granularity": "micro", "detector": {"kind": "boxes"}, "max_instances": 4, **level},
        },
        "lanczos_max": 4,
        **values,
    })  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """A picture whose left half is masked in, with one box in each half."""
    folder = tmp_path / "source"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    alpha = np.zeros((128, 128), np.uint8)
    alpha[:, :64] = 255
    Image.fromarray(np.dstack([pixels, alpha])).save(folder / "half.png")
    boxes = [{"box": [0, 0, 48, 48], "label": "micro"}, {"box": [80, 80, 128, 128], "label": "micro"}]
    (folder / "half.boxes.json").write_text(json.dumps(boxes))
    return folder


def test_alpha_is_cut_and_slices_outside_are_refused(source, tmp_path):
    summary = decompose(source, tmp_path / "out", config(masks="alpha"))
    assert dict(summary.slices_by_level) == {"macro": 1, "micro": 1}
    assert summary.rejects["micro", "outside_mask"] == 1
    dataset = open_dataset(DataConfig(path=tmp_path / "out", mask="file"), 16)
    masks = {item.level: dataset.mask(index) for index, item in enumerate(dataset.slices)}
    assert torch.equal(masks["micro"], torch.ones(64, 64))
    assert masks["macro"][:, :28].min() == 1 and masks["macro"][:, 36:].max() == 0  # sharp but for the filter's reach


def test_mask_files_are_read_and_part_of_what_decides_a_rerun(source, tmp_path):
    grey = Image.new("L", (64, 64), 0)
    grey.paste(255, (32, 0, 64, 64))  # the right half, at half the picture's size
    grey.save(source / "half.mask.png")
    out = tmp_path / "out"
    decompose(source, out, config(masks="file"))
    dataset = open_dataset(DataConfig(path=out, mask="file"), 16)
    assert [item.level for item in dataset.slices] == ["macro", "micro"]
    assert decompose(source, out, config(masks="file")).unchanged == 1
    Image.new("L", (64, 64), 255).save(source / "half.mask.png")
    summary = decompose(source, out, config(masks="file"))
    assert summary.unchanged == 0 and summary.slices_by_level["micro"] == 2


def test_without_the_setting_no_mask_is_written(source, tmp_path):
    decompose(source, tmp_path / "out", config())
    assert not list((tmp_path / "out").rglob("*.mask.png"))


def test_an_unusable_mask_rejects_the_picture(source, tmp_path):
    Image.new("L", (100, 20), 255).save(source / "half.mask.png")
    Image.new("RGB", (128, 128), "red").save(source / "other.png")
    summary = decompose(source, tmp_path / "out", config(masks="file"))
    assert summary.rejects["", "unreadable"] == 1
    assert summary.slices_by_level["macro"] == 1
