"""``flowgrain export`` and ``flowgrain import`` as a user runs them."""

import json
import shutil

import pytest
import typer
import yaml
from random_adapters import PIPELINES, options, predict, random_family
from safetensors.torch import load_file
from typer.testing import CliRunner

from flowgrain.cli.export import export, import_adapter
from flowgrain.errors import FlowgrainError

app = typer.Typer()
app.command(name="export")(export)
app.command(name="import")(import_adapter)


def run(*arguments):
    """(output, error output); a user's error is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def refusal(*arguments):
    with pytest.raises(FlowgrainError) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "flux"
    PIPELINES["flux"][0]().save_pretrained(folder)
    return folder


@pytest.fixture
def fox(saved, model, tmp_path):
    """A run folder with two checkpoints."""
    run = tmp_path / "runs" / "fox"
    for update, fraction in ((1, 0.5), (2, 1.0)):
        name = f"runs/fox/checkpoints/update-{update:06d}"
        file, live, _ = saved("flux", options("flux", alpha=float(update)))
        shutil.copytree(file.parent, tmp_path / name / "adapter")
        state = {"update": update, "budget_fraction": fraction, "budget_fractions": [fraction]}
        (tmp_path / name / "state.json").write_text(json.dumps(state))
        (tmp_path / name / "COMPLETE").touch()
    recipe = {"name": "fox", "model": {"path": str(model), "family": None, "dtype": "float32"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run, live


def test_a_run_for_every_program_and_back(fox, model, tmp_path):
    folder, live = fox
    out, _ = run("export", folder, "--to", "kohya")
    file = folder / "exports" / "fox-update-000002-kohya.safetensors"
    assert str(file) in out
    assert load_file(file)["lora_unet_double_blocks_0_img_mlp_0.alpha"] == 2.0
    run("export", folder, "--to", "comfyui", "--at", "0.5", "--dtype", "bfloat16", "--out", tmp_path / "half")
    half = load_file(tmp_path / "half" / "fox-update-000001-comfyui.safetensors")
    assert half["transformer.transformer_blocks.0.ff.net.2.alpha"] == 1.0
    run("export", folder / "checkpoints" / "update-000001", "--to", "diffusers", "--out", tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").is_file()

    out, _ = run("import", file, "--model", model, "--out", tmp_path / "back")
    assert "LoRA of 22 layers of transformer" in out
    family = random_family("flux")
    family.pipeline(tmp_path / "back" / "adapter")
    assert (predict(family) - live).abs().max() < 1e-4
    run("export", tmp_path / "back", "--model", model, "--to", "diffusers", "--out", tmp_path / "again.safetensors")

    out, _ = run("export", folder, "--to", "merged", "--component-only", "--dtype", "bfloat16")
    assert "merged into transformer" in out
    merged = folder / "exports" / "fox-update-000002-merged"
    assert (merged / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    run("export", folder, "--to", "merged", "--force")  # its own folder may be replaced
    assert (merged / "model_index.json").is_file()


def test_dry_runs_write_nothing(fox, model, tmp_path):
    folder, _ = fox
    for target in ("diffusers", "kohya", "comfyui", "merged"):
        out, _ = run("export", folder, "--to", target, "--dry-run")
        assert "would be written to" in out
        joined = "transformer.transformer_blocks.*.attn.to_q + transformer.transformer_blocks.*.attn.to_k"
        assert (joined in out) == (target == "kohya")
    assert not (folder / "exports").exists()
    run("export", folder, "--to", "kohya", "--out", tmp_path / "x.safetensors")
    run("import", tmp_path / "x.safetensors", "--model", model, "--out", tmp_path / "back", "--dry-run")
    assert not (tmp_path / "back").exists()


def test_refusals(fox, model, tmp_path):
    folder, _ = fox
    file = tmp_path / "x.safetensors"
    run("export", folder, "--to", "kohya", "--out", file)
    assert "exists; choose another name or use --force" in refusal("export", folder, "--to", "kohya", "--out", file)
    run("export", folder, "--to", "kohya", "--out", file, "--force")
    assert "did not write" in refusal("export", folder, "--to", "merged", "--out", model, "--force")
    assert "did not write" in refusal("import", file, "--model", model, "--out", tmp_path, "--force")
    assert "--component-only is read with --to merged" in refusal("export", folder, "--to", "kohya", "--component-only")
    assert "--model is missing" in refusal("export", file, "--to", "diffusers")
    assert "choose among the checkpoints of a run" in refusal("export", file, "--to", "kohya", "--at", "1.0")
    both = ("--at", "1.0", "--checkpoint", "best")
    assert "both choose a checkpoint" in refusal("export", folder, "--to", "kohya", *both)
    assert "no such adapter" in refusal("export", tmp_path / "none", "--to", "kohya", "--model", model)
    assert "no such file" in refusal("import", tmp_path / "none", "--model", model, "--out", tmp_path / "o")
    assert "must be positive" in refusal("import", file, "--model", model, "--out", tmp_path / "o", "--alpha", "0")
    assert "convert the file first" in refusal("export", file, "--to", "diffusers", "--model", model)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "full.json").write_text(json.dumps({"components": ["transformer"]}))
    message = refusal("export", whole, "--to", "kohya", "--model", model)
    assert message.endswith("which no adapter file does; use --to merged")


def test_dora_says_where_it_can_go(saved, model, tmp_path):
    file, _, _ = saved("flux", options("flux", "dora"))
    _, notes = run("export", file, "--model", model, "--to", "kohya", "--out", tmp_path / "k.safetensors")
    assert "LyCORIS alone" in notes
    message = refusal("export", file, "--model", model, "--to", "comfyui", "--out", tmp_path / "c.safetensors")
    assert message.endswith("use --to merged")
