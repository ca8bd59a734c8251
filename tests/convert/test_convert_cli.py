"""``flowgrain convert``: writes once, prints on request, refuses to overwrite."""

import pytest
import yaml

from flowgrain.cli.main import main

TRAIN = """
pretrained_model_name_or_path = "black-forest-labs/FLUX.1-dev"
network_module = "networks.lora_flux"
output_name = "x"
max_train_steps = 5
"""
DATA = 'resolution = 512\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pictures"\n'


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text(TRAIN)
    (tmp_path / "data.toml").write_text(DATA)
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code or 0


def test_a_converted_recipe_is_valid_and_never_overwritten(files, capsys):
    command = ("convert", "kohya", "train.toml", "--dataset", "data.toml", "--out", "recipe.yaml")
    assert run(*command) == 0
    assert "not supported" in capsys.readouterr().out
    assert run("train", "recipe.yaml", "--validate-only") == 0
    written = (files / "recipe.yaml").read_bytes()
    assert run(*command) == 2 and "--force" in capsys.readouterr().err
    (files / "recipe.yaml").write_text("mine")
    assert run(*command) == 2 and (files / "recipe.yaml").read_text() == "mine"
    assert run(*command, "--force") == 0 and (files / "recipe.yaml").read_bytes() == written


def test_a_dry_run_prints_the_recipe_alone_and_writes_nothing(files, capsys):
    before = sorted(files.iterdir())
    assert run("convert", "kohya", "train.toml", "--dataset", "data.toml", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["name"] == "x" and "converted (" in err
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("train.toml", "--dataset", "data.toml"),
        ("train.toml", "--out", "recipe.txt"),
        ("--out", "r.yaml"),
        ("none.toml", "--out", "r.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(files, capsys, arguments):
    assert run("convert", "kohya", *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("flowgrain: error: ") and err.count("\n") == 1
