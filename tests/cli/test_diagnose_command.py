"""``flowgrain diagnose``: page and numbers, going on after a stop, and mistakes as one clear line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "diagnose"))

from drawn_slices import write_slices

from flowgrain.diagnose import conduct as conducting
from flowgrain.report.diagnose_page import diagnose_page, summary_lines
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe

SMALL = ("--sections", "interference", "--levels", "0.5,0.97", "--queries", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_flux):
    """A finished run of two updates on plain pictures cut into three levels."""
    folder = tmp_path_factory.mktemp("command")
    values = {
        "name": "fox",
        "output": str(folder / "run"),
        "model": {"path": str(small_flux)},
        "data": {"path": str(write_slices(folder / "slices", 4))},
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4},
        "precision": "fp32",
        "budget": {"amount": 2, "checkpoints": [0.5, 1.0]},
    }
    train(Recipe.model_validate(values), False, Observer())
    return folder / "run"


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """The folder of one small diagnosis."""
    from typer.testing import CliRunner

    from flowgrain.cli.main import app

    out = tmp_path_factory.mktemp("diagnosis")
    result = CliRunner().invoke(app, ["diagnose", str(run), *SMALL, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    return out


def document(out):
    return json.loads((out / "diagnose.json").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else_and_is_made_of_the_file_alone(command, measured, tmp_path):
    html = (measured / "diagnose.html").read_text(encoding="utf-8")
    assert "://" not in re.sub(r'src(set)?="data:[^"]*"', "", html)
    for words in (
        "The geometry of fox",
        "Where groups meet",
        "destructive",
        "random groups as",
        "How this was measured",
    ):
        assert words in html
    for line in summary_lines(document(measured)):
        assert line.split(" (")[0].replace("'", "&#39;") in html
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(measured / "diagnose.json", alone)
    result = command("diagnose", "no-such-run", "--rebuild", "--out", alone)
    assert result.code == 0 and (alone / "diagnose.html").read_text(encoding="utf-8") == html


def test_finished_parts_are_kept_and_other_settings_measure_again(command, run, measured, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(measured, out)
    before = document(out)

    def no_model(*_arguments):
        raise AssertionError("the model was loaded for what was measured before")

    with monkeypatch.context() as patch:
        patch.setattr(conducting, "open_run", no_model)
        result = command("diagnose", run, *SMALL, "--out", out)
        assert result.code == 0 and "measured before and kept: interference" in result.err
        assert document(out) == before
        with pytest.raises(AssertionError, match="the model was loaded"):
            command("diagnose", run, *SMALL, "--out", out, "--fresh")
        with pytest.raises(AssertionError, match="the model was loaded"):
            command("diagnose", run, *SMALL, "--out", out, "--seed", "1")
        with pytest.raises(AssertionError, match="the model was loaded"):
            command("diagnose", run, *SMALL, "--out", out, "--checkpoint", "2")
    assert document(out) == before
    assert command("diagnose", run, *SMALL, "--out", out, "--checkpoint", "2").code == 0
    after = document(out)["sections"]["interference"]
    assert after["values"]["points"] == ["without adapter", "update 2"]
    assert after["digest"] != before["sections"]["interference"]["digest"]


def test_a_stopped_diagnosis_keeps_what_was_done(command, run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    entries = [
        conducting.SectionEntry("first", "works", lambda *_: {"answer": 42}),
        conducting.SectionEntry("second", "is stopped", _stopped),
        conducting.SectionEntry("third", "cannot tell", _cannot_tell),
    ]
    plan = conducting.make_plan(run, out, _config(), [], tuple(entries), False)
    with pytest.raises(KeyboardInterrupt):
        conducting.conduct(plan, lambda *_: None)
    assert document(out)["sections"]["first"]["values"] == {"answer": 42}
    entries[1] = conducting.SectionEntry("second", "works now", lambda *_: {"answer": 43})
    again = conducting.make_plan(run, out, _config(), [], tuple(entries), False)
    assert [entry.name for entry in again.pending] == ["second", "third"]
    sections = conducting.conduct(again, lambda *_: None)["sections"]
    assert sections["first"]["values"] == {"answer": 42} and sections["second"]["values"] == {"answer": 43}
    assert sections["third"]["values"] is None and sections["third"]["reason"] == "one level only"


def _stopped(*_):
    raise KeyboardInterrupt


def _cannot_tell(*_):
    raise conducting.NotMeasurable("one level only")


def _config():
    from flowgrain.diagnose.config import DiagnoseConfig

    return DiagnoseConfig()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(command, run, tmp_path):
    result = command("diagnose", run, "--out", tmp_path / "out", "--dry-run")
    assert result.code == 0 and not (tmp_path / "out").exists()
    assert "states: without adapter, update 1, update 2" in result.err
    for name in ("interference", "gradients", "kernel", "path", "smoothness"):
        assert f"to measure: {name}" in result.err


def test_mistakes_are_one_clear_line(command, run, measured, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "diagnose.json").write_text("{}")
    for arguments, words in (
        ((tmp_path,), "no recipe.yaml here; give a folder written by 'flowgrain train'"),
        ((run, "--checkpoint", "7"), "no complete checkpoint after update 7; there are: 1, 2"),
        ((run, "--sections", "colours"), "no section 'colours'; there are: interference, gradients"),
        ((run, "--levels", "0.5,high"), "give numbers between 0 and 1"),
        ((run, "--levels", "1"), "lie strictly between 0 (data) and 1 (noise)"),
        ((run, "--rebuild", "--out", tmp_path), "no diagnose.json here"),
        ((run, "--out", damaged), "not a readable diagnosis"),
        ((run, "--data", tmp_path, f"data.path={tmp_path}"), "give one of them"),
        ((run, *SMALL, "--out", tmp_path / "a", "--data", tmp_path / "gone"), "if the data moved, say where"),
        ((run, *SMALL, "--out", tmp_path / "b", "model.path=nowhere"), "nowhere"),
        ((run, *SMALL, "--out", tmp_path / "c", "seed=3"), "measures the run as it was trained"),
    ):
        result = command("diagnose", *arguments)
        lines = [line for line in result.err.splitlines() if "error" in line]
        assert result.code == 2 and len(lines) == 1 and words in lines[0], (arguments, result.err)


def test_a_part_that_could_not_be_measured_says_why(measured):
    told = document(measured)
    told["sections"]["kernel"] = {"digest": "", "seconds": 0.0, "values": None, "reason": "one level only"}
    page = diagnose_page(told)
    section = next(section for section in page.sections if section.anchor == "kernel")
    assert section.blocks[0].text == "This run cannot tell: one level only."
    assert "one level only" in page.render()
