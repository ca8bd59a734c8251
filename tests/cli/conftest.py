"""A random SDXL as a folder and as a single file, a few pictures, and the command line called in this process."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "families"))  # the random models of the families' tests

from flowgrain.cli.main import main


@pytest.fixture(scope="session")
def sdxl_files(tmp_path_factory):
    """(diffusers folder, single file in the original layout) of one random SDXL."""
    from original_layout import original_sdxl
    from random_unet import random_sdxl_pipeline
    from safetensors.torch import save_file

    place, pipeline = tmp_path_factory.mktemp("sdxl"), random_sdxl_pipeline()
    pipeline.save_pretrained(place / "folder")
    state = {name: tensor.clone().contiguous() for name, tensor in original_sdxl(pipeline).items()}
    save_file(state, place / "pony.safetensors")
    return place / "folder", place / "pony.safetensors"


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A plain folder of three pictures with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 40, 200 - 60 * number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a square, number {number}")
    return folder


@pytest.fixture
def command(capfd):
    """Run ``flowgrain ARGUMENTS``: exit code, and what it wrote to both streams."""

    def run(*arguments):
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run
