"""The command line as a user meets it: help without heavy imports, one clear line and exit code 2 on mistakes."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "diffusers", "transformers", "peft", "matplotlib", "scipy", "PIL", "pydantic")


def flowgrain(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "flowgrain", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom flowgrain.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
    assert all(command in done.stdout for command in ("decompose", "train", "sample", "demo"))


@pytest.mark.parametrize("command", ["decompose", "train", "sample", "demo"])
def test_every_command_has_help_with_an_example(command):
    done = flowgrain(command, "--help")
    assert done.returncode == 0
    assert f"flowgrain {command}" in done.stdout.split("Example", 1)[1]


def one_line(done):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["train", "tiny-flux-granularty"],
            ["no recipe 'tiny-flux-granularty'", "did you mean 'tiny-flux-granularity'"],
        ),
        (["train", "missing.yaml"], ["missing.yaml", "no such file"]),
        (["train", "tiny-flux-baseline", "data.path=x", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean 'lr'"]),
        (
            ["train", "tiny-flux-baseline", "data.path=x", "optimizer.lr=-1"],
            ["optimizer.lr", "greater than 0", "command line"],
        ),
        (["train", "tiny-flux-baseline"], ["data.path", "required"]),
        (["train", "tiny-flux-baseline", "data.path=nowhere"], ["nowhere"]),
        (["train", "tiny-flux-baseline", "data.path"], ["override 'data.path'", "key=value"]),
        (["train", "tiny-flux-baseline", "data.path=.", "model.path=no/such/model"], ["no/such/model"]),
        (["train", "tiny-flux-baseline", "data.path=x", "tuples.reduction=level"], ["tuples", "reduction"]),
        (["decompose", "nowhere", "--out", "out"], ["nowhere"]),
        (["sample", "nowhere", "--prompts", "prompts.txt"], ["nowhere"]),
        (["demo", "--domain", "fluent"], ["fluent3d"]),
    ],
)
def test_mistakes_get_one_clear_line_and_exit_code_2(arguments, parts, tmp_path):
    line = one_line(flowgrain(*arguments, cwd=tmp_path))
    assert all(part in line for part in parts), line


def test_an_empty_folder_and_a_folder_of_broken_images(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"\x89PNG not really")
    for command in (["decompose", "{}", "--out", "out"], ["train", "tiny-flux-baseline", "data.path={}"]):
        for folder in ("empty", "broken"):
            line = one_line(flowgrain(*[part.format(folder) for part in command], cwd=tmp_path))
            assert folder in line


def test_validate_only_reads_no_data(tmp_path):
    done = flowgrain("train", "tiny-flux-granularity", "data.path=nowhere", "--validate-only", cwd=tmp_path)
    assert done.returncode == 0 and "is valid" in done.stdout


def test_print_config_says_where_each_value_comes_from(tmp_path):
    done = flowgrain(
        "train", "tiny-flux-granularity", "data.path=x", "optimizer.lr=5e-4", "--print-config", cwd=tmp_path
    )
    lines = dict(line.split("    # ") for line in done.stdout.strip().splitlines())
    assert lines["optimizer.lr = 0.0005"] == "command line"
    assert "granularity.yaml" in lines["time.granularity_shift.macro = 0.5"]
    assert lines["clip = 1.0"] == "default"
