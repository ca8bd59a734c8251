"""The doctor: what it finds here, what it says of a broken installation, and its exit code."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from flowgrain import doctor as module
from flowgrain.doctor import Finding, as_json, examine


def found(findings, what):
    return next(finding for finding in findings if finding.what == what)


def test_this_installation_is_healthy_and_lines_say_so(tmp_path):
    findings = examine(tmp_path / "runs")
    assert not [finding for finding in findings if finding.level == "problem"]
    assert {"Python", "torch", "diffusers", "peft", "model tiny-flux", "output folder"} <= {f.what for f in findings}
    assert str(tmp_path) in found(findings, "output folder").found
    assert all("\n" not in finding.line() for finding in findings)


@pytest.mark.parametrize("answer", ["0.0.1", None])
def test_an_old_or_missing_library_is_a_problem_and_ends_the_examination(monkeypatch, tmp_path, answer):
    genuine = module.version

    def version(name):
        if name != "diffusers":
            return genuine(name)
        if answer is None:
            raise PackageNotFoundError(name)
        return answer

    monkeypatch.setattr(module, "version", version)
    findings = examine(tmp_path)
    problem = found(findings, "diffusers")
    assert problem.level == "problem" and "pip install 'diffusers>=" in problem.advice
    assert "model tiny-flux" not in {finding.what for finding in findings}


def test_a_token_is_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert "secretsecret" not in as_json(examine(tmp_path))


def test_a_folder_that_cannot_be_written_and_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    assert found(examine(tmp_path), "output folder").level == "problem"
    monkeypatch.undo()
    monkeypatch.setattr(module, "LOW_DISK", 2**80)
    assert found(examine(tmp_path), "output folder").level == "warning"


def test_an_incomplete_bundle_is_a_problem(monkeypatch, tmp_path):
    from flowgrain.families import registry

    monkeypatch.setattr(registry, "resolve_model", lambda name: str(tmp_path))
    finding = found(examine(tmp_path), "model tiny-flux")
    assert finding.level == "problem" and finding.advice == "reinstall flowgrain"


def test_json_names_the_worst_level():
    findings = [Finding("ok", "a", "b"), Finding("warning", "c", "d", "e"), Finding("ok", "f", "g")]
    parsed = json.loads(as_json(findings))
    assert parsed["level"] == "warning"
    assert parsed["findings"][1] == {"level": "warning", "what": "c", "found": "d", "advice": "e"}


def test_the_command_prints_json_and_exits_by_the_worst(monkeypatch, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flowgrain", "doctor", "--json", "--output", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout)["level"] in ("ok", "warning")

    from typer.testing import CliRunner

    from flowgrain.cli.main import app

    monkeypatch.setattr(module, "examine", lambda folder: [Finding("problem", "x", "y", "z")])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2 and "problem  x: y; z" in result.stdout
