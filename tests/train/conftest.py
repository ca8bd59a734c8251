"""A small decomposed data set of drawn images, and recipes over a small random model."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).parents[1] / "families"))  # the random models of the families' tests

from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.files import atomic_write_text
from flowgrain.train.recipe import Recipe

LEVELS = (("macro", (64, 64)), ("meso", (48, 64)), ("micro", (64, 48)))


def draw(index, size):
    rng = np.random.default_rng(index)
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        pen.ellipse(
            [x, y, x + int(rng.integers(8, 40)), y + int(rng.integers(8, 40))],
            fill=tuple(rng.integers(0, 255, 3).tolist()),
        )
    return image


def write_dataset(folder, roots=6):
    """Roots with one, two and three levels in turn, in three bucket shapes."""
    lines = []
    for r in range(roots):
        for k, (level, size) in enumerate(LEVELS[: 1 + r % 3]):
            path = folder / "slices" / f"r{r}.{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(10 * r + k, size).save(path)
            record = SliceRecord(
                slice_id=f"r{r}/{level}0", root=f"r{r}", image=f"r{r}.png",
                image_sha1=hashlib.sha1(path.read_bytes()).hexdigest(), level=level, granularity=level,
                path=f"slices/{path.name}", width=size[0], height=size[1], box=(0, 0, *size), crop=(0, 0, *size),
                scale=1.0, action="native", reason="test", parent=None if k == 0 else f"r{r}/macro0",
                detector="test", score=1.0, caption=f"a drawing number {r}, {level}", caption_source="sidecar",
            )  # fmt: skip
            lines.append(record.model_dump_json())
    atomic_write_text(folder / MANIFEST_NAME, "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory):
    """A StableDiffusionXLPipeline folder of random weights."""
    from random_unet import random_sdxl_pipeline

    folder = tmp_path_factory.mktemp("model") / "small-sdxl"
    random_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(dataset, small_flux, tmp_path):
    """A recipe of a few short updates; keyword arguments replace sections."""

    def build(output="run", **sections):
        values = {
            **_short_run(dataset, tmp_path / output),
            "model": {"path": str(small_flux)},
            "time": {"granularity_shift": {"macro": 0.5, "micro": -0.5}},
        }
        return Recipe.model_validate({**values, **sections})

    return build


@pytest.fixture
def unet_recipe(dataset, small_sdxl, tmp_path):
    """The same over a random SDXL, without a granularity shift."""

    def build(output="run", **sections):
        values = {**_short_run(dataset, tmp_path / output), "model": {"path": str(small_sdxl)}}
        return Recipe.model_validate({**values, **sections})

    return build


def _short_run(dataset, output):
    return {
        "name": "test",
        "output": str(output),
        "data": {"path": str(dataset), "flip": True},
        "tuples": {"batch_size": 2},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 2},
        "optimizer": {"lr": 1e-3},
        "precision": "fp32",
        "budget": {"amount": 4, "checkpoints": [1.0, 1.5]},
    }
