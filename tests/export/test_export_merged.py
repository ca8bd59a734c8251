"""The merged model is the base model with the adapter in it, DoRA and whole weights too."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from random_adapters import HEADER, PIPELINES, options, predict, random_family, trained

from flowgrain.adapters.base import AdapterConfig
from flowgrain.errors import CheckpointError, ModelError
from flowgrain.export.merged import check_space, merge, plan_merge
from flowgrain.export.source import ExportSource
from flowgrain.families.registry import load_family, load_skeleton
from flowgrain.sample.run_folder import ModelChoice

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Model -> its diffusers folder."""
    made = {}

    def folder(model):
        if model not in made:
            made[model] = tmp_path_factory.mktemp("models") / model
            PIPELINES[model][0]().save_pretrained(made[model])
        return made[model]

    return folder


def merged(folder, adapter, out, dtype=torch.float32, **how):
    source = ExportSource("fox", adapter, ModelChoice(str(folder), None, "float32"), out.parent)
    plan = plan_merge(load_skeleton(str(folder), None, dtype), source, dtype, component_only=how.pop("only", False))
    merge(load_family(str(folder), None, dtype, CPU), plan, out)
    return plan


@pytest.mark.parametrize(("model", "kind"), [("sd15", "dora"), ("sdxl", "lora"), ("flux", "dora")])
def test_the_merged_folder_predicts_as_the_live_adapter(saved, folders, tmp_path, model, kind):
    file, live, _ = saved(model, options(model, kind))
    plan = merged(folders(model), file, tmp_path / "out")
    torch.testing.assert_close(
        predict(load_family(str(tmp_path / "out"), None, torch.float32, CPU)), live, rtol=1e-3, atol=1e-4
    )
    base = folders(model)
    parts = {path.relative_to(base): path for path in base.rglob("*") if path.is_file()}
    for relative, path in parts.items():
        if relative.parts[0] not in plan.components:
            assert (tmp_path / "out" / relative).read_bytes() == path.read_bytes()
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert plan.needed < size < plan.needed + 200_000  # headers and configurations come on top
    record = json.loads((tmp_path / "out" / "flowgrain.json").read_text())
    assert record["metadata"]["modelspec.title"] == HEADER["modelspec.title"]
    assert record["components"] == list(plan.components)


def test_whole_weights_replace_the_base_models(folders, tmp_path):
    family = random_family("sdxl")
    adapter = trained(family, AdapterConfig(kind="full", text_encoders={}))
    with torch.no_grad():
        for _, parameter in adapter.parameters():
            parameter.mul_(1.01)
    adapter.save(tmp_path / "adapter", HEADER)
    live = predict(family)
    merged(folders("sdxl"), tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(predict(load_family(str(tmp_path / "out"), None, torch.float32, CPU)), live)


def test_one_component_in_half_precision(saved, folders, tmp_path):
    file, _, _ = saved("flux")
    merged(folders("flux"), file, tmp_path / "out", torch.bfloat16, only=True)
    there = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert there == ["flowgrain.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    from diffusers import FluxTransformer2DModel

    half = FluxTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer").state_dict()
    family = random_family("flux")
    from flowgrain.adapters.fusing import fuse

    fuse(family, file)
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}  # from_pretrained's own default
    for name, tensor in family.backbone.state_dict().items():
        torch.testing.assert_close(half[name], tensor, rtol=2**-7, atol=2**-9)


def test_a_model_that_is_no_folder_is_saved_from_memory(saved, folders, tmp_path):
    file, live, _ = saved("flux")
    family = load_family(str(folders("flux")), None, torch.float32, CPU)
    source = ExportSource("fox", file, ModelChoice("owner/name", None, "float32"), tmp_path)
    plan = plan_merge(family, source, torch.float32, component_only=False)
    assert plan.copied == ()
    assert set(plan.saved) == {"text_encoder", "text_encoder_2", "vae"}
    merge(family, plan, tmp_path / "out")
    torch.testing.assert_close(
        predict(load_family(str(tmp_path / "out"), None, torch.float32, CPU)), live, rtol=1e-3, atol=1e-4
    )


def test_refusals(saved, folders, tmp_path, monkeypatch):
    file, _, _ = saved("flux", options("flux"))
    flux, source = (
        folders("flux"),
        ExportSource("fox", file, ModelChoice(str(folders("flux")), None, "float32"), tmp_path),
    )
    plan = plan_merge(load_skeleton(str(flux), None, torch.float32), source, torch.float32, component_only=False)
    check_space(plan, tmp_path / "a" / "b")
    with pytest.raises(CheckpointError, match=r"takes .* MiB, .* MiB are free; choose another disk"):
        check_space(replace(plan, needed=2**60), tmp_path / "a" / "b")
    sdxl = replace(source, model=ModelChoice(str(folders("sdxl")), None, "float32"))
    with pytest.raises(CheckpointError, match="changes transformer, which the model has not"):
        plan_merge(load_skeleton(str(folders("sdxl")), None, torch.float32), sdxl, torch.float32, component_only=True)

    family = load_family(str(flux), None, torch.float16, CPU)
    with torch.no_grad():
        family.backbone.proj_out.weight.mul_(1e6)
    with pytest.raises(ModelError, match=r"transformer.proj_out.weight: holds a value that float16 cannot"):
        merge(family, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(CheckpointError, match="cannot be written"):
        merge(load_family(str(flux), None, torch.float32, CPU), plan, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []  # nothing half-written stays
