import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from flowgrain.cli.sample import sample
from flowgrain.errors import FlowgrainError


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red fox\nan apple\n")
    return str(path)


def call(*arguments):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(sample)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_base_model_draws(tmp_path, prompts):
    out = tmp_path / "out"
    options = ("--model", "tiny-flux", "--prompts", prompts, "--steps", 1, "--size", "32x16", "--device", "cpu")
    result = call(*options, "--out", out)
    assert result.exit_code == 0, result.output
    assert "2 pictures drawn, 0 kept" in result.output
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["width"], line["height"]) for line in lines] == [
        ("a red fox", 32, 16),
        ("an apple", 32, 16),
    ]
    assert lines[0]["adapter_sha256"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "samples/update-000150-steps28-guidance3.5"),
        (("--at", 1.0, "--steps", 4), "samples/update-000100-steps4-guidance3.5"),
        (("--size", "64x32", "--guidance", 2), "samples/update-000150-steps28-guidance2-64x32"),
    ],
)
def test_dry_run_names_weights_and_folder_and_writes_nothing(run, prompts, options, expected):
    result = call(run, "--prompts", prompts, "--seeds", 3, "--dry-run", *options)
    assert result.exit_code == 0, result.output
    assert "2 prompts x 3 seeds = 6 pictures" in result.output
    assert result.output.strip().endswith(str(run / expected))
    assert not (run / "samples").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("RUN", "--model", "tiny-flux"), "either RUN"),
        ((), "either RUN"),
        (("--model", "tiny-flux", "--at", 1.0), "--at chooses among the checkpoints of RUN"),
        (("RUN", "--at", 9.0), "no checkpoint at budget fraction 9"),
        (("RUN", "--size", "64"), "expected WIDTHxHEIGHT"),
        (("RUN", "--checkpoint", "nowhere"), "nowhere: no such checkpoint folder"),
        (("RUN", "--device", "gpu"), "--device gpu: no such device"),
        (("RUN", "--prompts", "missing.txt"), "missing.txt: no such file"),
    ],
)
def test_unusable_options_are_one_clear_line(run, prompts, options, message):
    arguments = [run if option == "RUN" else option for option in options]
    if "--prompts" not in arguments:
        arguments += ["--prompts", prompts]
    result = call(*arguments)
    assert isinstance(result.exception, FlowgrainError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_the_command_imports_nothing_heavy_until_it_is_called():
    code = "import sys, flowgrain.cli.sample; print({'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout.strip() == "set()"
