"""A short run with two checkpoints on drawn pictures of three levels, opened for measuring."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "families"))  # the random models of the families' tests

from drawn_slices import SQUARE, TALL, write_slices

from flowgrain.diagnose.config import DiagnoseConfig
from flowgrain.diagnose.opened import open_run
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe


@pytest.fixture(scope="session")
def slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices"), 8)


@pytest.fixture(scope="session")
def held_slices(tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("held"), 3, first=100)


@pytest.fixture(scope="session")
def short_recipe(held_slices, small_flux):
    """A recipe of 4 updates; keyword arguments replace sections."""

    def build(data, output, **sections):
        values = {
            "name": "short",
            "output": str(output),
            "model": {"path": str(small_flux)},
            "data": {"path": str(data), "flip": True},
            "validation": {"path": str(held_slices), "keep_best": False},
            "tuples": {"batch_size": 2, "grouping": "root"},
            "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
            "optimizer": {"lr": 1e-2},
            "ema": {"decay": 0.5},
            "precision": "fp32",
            "budget": {"amount": 4, "checkpoints": [0.5, 1.0]},
        }
        return Recipe.model_validate({**values, **sections})

    return build


@pytest.fixture(scope="session")
def run_folder(slices, short_recipe, tmp_path_factory):
    """A finished run of 4 updates with checkpoints after 2 and 4; tests must not write to it."""
    output = tmp_path_factory.mktemp("runs") / "short"
    train(short_recipe(slices, output), False, Observer())
    return output


@pytest.fixture(scope="session")
def run_of_sizes(short_recipe, tmp_path_factory):
    """A run whose macro slices have a shape of their own, which meso and micro slices do not share."""
    folder = tmp_path_factory.mktemp("sizes")
    data, output = write_slices(folder / "slices", 6, (SQUARE, TALL, TALL)), folder / "run"
    train(short_recipe(data, output, budget={"amount": 2, "checkpoints": [1.0]}), False, Observer())
    return output


@pytest.fixture(scope="session")
def small_config():
    return DiagnoseConfig(levels=(0.5, 0.97), queries=6, resamples=100, updates=2, topics=2, bands=2)


@pytest.fixture(scope="session")
def open_short(run_folder, small_config, tmp_path_factory):
    """Open the run; keyword arguments replace settings."""
    cache = tmp_path_factory.mktemp("cache")

    def build(*overrides, run=run_folder, **settings):
        config = small_config.model_copy(update=settings)
        return open_run(run, config, list(overrides), cache, lambda _what, _done, _total: None)

    return build


@pytest.fixture(scope="session")
def opened(open_short):
    return open_short()
