"""``flowgrain decompose`` as a user meets it."""

import pytest
import typer
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from flowgrain.cli.decompose import decompose
from flowgrain.errors import FlowgrainError

app = typer.Typer()
app.command()(decompose)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "icons"
    folder.mkdir()
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((40, 60, 220, 200), fill="orange", outline="black", width=5)
    image.save(folder / "sun.png")
    (folder / "sun.txt").write_text("a sun")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_reports_counts_and_where_to_look(source, tmp_path):
    result = run(source, "--out", tmp_path / "out", "--preset", "tiny-128", "trigger=emo style")
    assert result.exit_code == 0, result.output
    for text in ("3 slices of 1 roots from 1 images", "K=3: 1", "128x128: 3", "template: 2, root: 1", "report.html"):
        assert text in result.output
    assert "close-up of a sun, emo style" in (tmp_path / "out" / "manifest.jsonl").read_text()


def test_dry_run_writes_nothing(source, tmp_path):
    result = run(source, "--preset", "tiny-128", "--dry-run")
    assert "dry run: 3 slices of 1 roots" in result.output
    assert sorted(tmp_path.iterdir()) == [source]


def test_print_config_and_validate_only_read_no_image(tmp_path):
    (tmp_path / "own.yaml").write_text("iou_threshold: 0.5\n")
    shown = run("nowhere", "--print-config", "--preset", "sdxl-1024", "--config", tmp_path / "own.yaml").output
    assert "iou_threshold = 0.5    # " in shown and "own.yaml:1" in shown
    assert "{caption}, close-up" in shown and "sdxl-1024.yaml" in shown
    assert "valid: levels macro, meso, micro; whole_image" in run("nowhere", "--validate-only").output


def test_a_config_alone_stands_on_the_defaults(source, tmp_path):
    (tmp_path / "own.yaml").write_text("levels: {all: {granularity: macro}}\ntargets: [[64, 64]]\n")
    assert "1 slices of 1 roots" in run(source, "--config", tmp_path / "own.yaml", "--dry-run").output


def test_missing_captions_and_empty_levels_are_told(source):
    (source / "sun.txt").unlink()
    result = run(source, "--preset", "tiny-128", "--dry-run", "levels.micro.min_score=1")
    assert "3 slices have no caption" not in result.output and "2 slices have no caption" in result.output
    assert "warning: level 'micro' has no slice" in result.output


def test_out_is_needed(source):
    result = run(source)
    assert result.exit_code == 2 and "--out" in result.output


@pytest.mark.parametrize("arguments", [["--preset", "tiny-12"], ["zzz=1"], ["levels.micro.detector.fractoin=1"]])
def test_mistakes_are_one_line_errors_with_exit_code_2(source, arguments):
    error = run(source, "--dry-run", *arguments).exception
    assert isinstance(error, FlowgrainError) and error.exit_code == 2
    assert "\n" not in str(error)
