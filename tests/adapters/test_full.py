"""All weights of a component as an adapter: float32, saved as ordinary component folders, undone bit for bit."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from live_adapters import disturb, output, predict, sdxl
from random_unet import random_sdxl_pipeline
from torch import nn
from transformers import CLIPTextModel

from flowgrain.adapters.base import FULL_NAME, AdapterConfig, InitConfig, TextEncoderAdapterConfig
from flowgrain.adapters.fusing import fuse, fuse_recorded
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.source import init_digest, locate_adapter, read_adapter, recorded_fusions
from flowgrain.errors import CheckpointError, ConfigError, ModelError
from flowgrain.families.sdxl import StableDiffusionXL
from flowgrain.train.activations import on_meta

FULL = AdapterConfig(kind="full")
WITH_TEXT = AdapterConfig(kind="full", text_encoders=TextEncoderAdapterConfig())
BOTH = pytest.mark.parametrize("config", [FULL, WITH_TEXT], ids=["unet", "with text encoders"])


def train(family, adapter, steps=2):
    optimizer = torch.optim.SGD([parameter for _, parameter in adapter.parameters()], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        output(family, grad=adapter.trains_text).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def states(family):
    return {
        f"{name}.{key}": value.clone()
        for name, module in family.components().items()
        for key, value in module.state_dict().items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_weights_train_in_float32_and_removal_restores_every_bit(config, dtype):
    family = sdxl(dtype)
    before, base = states(family), predict(family)
    adapter = inject(family, config, seed=1)
    trained = ["unet", "text_encoder", "text_encoder_2"] if adapter.trains_text else ["unet"]
    weights = {
        f"{name}.{key}": value for name in trained for key, value in family.components()[name].named_parameters()
    }
    assert dict(adapter.parameters()) == weights and list(weights) == [name for name, _ in adapter.parameters()]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert all(value.requires_grad for value in weights.values())
    if dtype == torch.float32:  # torch multiplies by weights that require a gradient in another order
        torch.testing.assert_close(predict(family), base, rtol=1e-5, atol=1e-6)
    train(family, adapter)
    moved = [name for name, value in weights.items() if not torch.equal(value, before[name].float())]
    assert len(moved) > 0.9 * len(weights)
    adapter.remove()
    assert same(states(family), before) and torch.equal(predict(family), base)
    assert not any(value.requires_grad for module in family.components().values() for value in module.parameters())


@BOTH
def test_enabled_switches_to_the_base_weights_and_back(config):
    family = sdxl()
    base = predict(family)
    adapter = inject(family, config, seed=1)
    train(family, adapter)
    live = predict(family)
    assert not torch.equal(live, base)
    with adapter.enabled(False):
        assert torch.equal(predict(family), base)
        with adapter.enabled(True):
            assert torch.equal(predict(family), live)
        assert torch.equal(predict(family), base)
    assert torch.equal(predict(family), live)
    train(family, adapter)
    assert not torch.equal(predict(family), live)


@BOTH
def test_saved_components_are_ordinary_folders_that_diffusers_draws_with(config, tmp_path):
    family = sdxl()
    adapter = inject(family, config, seed=1)
    train(family, adapter)
    adapter.save(tmp_path, {"modelspec.title": "fox"})
    live = predict(family)
    marker = json.loads((tmp_path / FULL_NAME).read_text())
    assert marker["metadata"] == {"modelspec.title": "fox"} and marker["components"][0] == "unet"
    pipeline = random_sdxl_pipeline()
    pipeline.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    if adapter.trains_text:
        pipeline.text_encoder = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
        pipeline.text_encoder_2 = type(pipeline.text_encoder_2).from_pretrained(tmp_path / "text_encoder_2")
    torch.testing.assert_close(predict(StableDiffusionXL(pipeline, "loaded")), live, rtol=1e-5, atol=1e-6)
    adapter.remove()
    base = predict(family)
    swapped = StableDiffusionXL(family.pipeline(tmp_path), "swapped")
    torch.testing.assert_close(predict(swapped), live, rtol=1e-5, atol=1e-6)
    assert (live - base).abs().max() > 1e-3
    assert torch.equal(predict(family), base)  # the family keeps its own
    assert recorded_fusions(tmp_path) == fuse_recorded(family, tmp_path) == ()


def test_a_bfloat16_model_loads_trained_weights_in_its_own_dtype(tmp_path):
    family = sdxl(torch.bfloat16)
    adapter = inject(family, WITH_TEXT, seed=1)
    train(family, adapter)
    adapter.save(tmp_path, {})
    adapter.merge()
    merged = states(family)
    assert {value.dtype for value in merged.values() if value.is_floating_point()} == {torch.bfloat16}
    other = sdxl(torch.bfloat16)
    swapped = StableDiffusionXL(other.pipeline(tmp_path), "swapped")
    assert same(states(swapped), merged)


@BOTH
def test_save_and_load_are_bitwise_and_other_components_are_refused(config, tmp_path):
    family = sdxl(torch.bfloat16)
    adapter = inject(family, config, seed=1)
    train(family, adapter)
    adapter.save(tmp_path, {})
    saved = adapter.state_dict()
    again = inject(sdxl(torch.bfloat16), config, seed=2)
    again.load(tmp_path)
    assert same(again.state_dict(), saved)
    other = FULL if adapter.trains_text else WITH_TEXT
    with pytest.raises(CheckpointError, match=r"holds unet.*, this run trains unet"):
        inject(sdxl(), other, seed=1).load(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be loaded as a UNet2DConditionModel"):
        again.load(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded as a UNet2DConditionModel"):
        sdxl().pipeline(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read as that of whole weights"):
        again.load(tmp_path / "unet")


def test_missing_weights_of_a_component_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    adapter = inject(sdxl(), WITH_TEXT, seed=1)
    adapter.save(tmp_path, {})
    for component, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = tmp_path / component / f"{name}.safetensors"
        whole = load_file(path)
        save_file(dict(list(whole.items())[1:]), path, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"{component}: 1 weights are missing"):
            sdxl().pipeline(tmp_path)
        save_file(whole, path, metadata={"format": "pt"})


def test_runs_start_from_whole_weights_and_from_adapters(tmp_path):
    family = sdxl()
    first = inject(family, FULL, seed=1)
    train(family, first)
    checkpoint = tmp_path / "run" / "checkpoints" / "update-000010"
    first.save(checkpoint / "adapter", {})
    (checkpoint / "COMPLETE").touch()
    state = first.state_dict()
    for path in (tmp_path / "run", checkpoint, checkpoint / "adapter"):
        assert locate_adapter(path) == checkpoint / "adapter"
        started = inject(sdxl(), FULL.model_copy(update={"init_from": InitConfig(path=path)}), seed=2)
        assert same(started.state_dict(), state)
    digest = init_digest(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds whole weights"):
        read_adapter(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds whole weights"):
        fuse(sdxl(), tmp_path / "run")
    train(family, first, steps=1)
    first.save(checkpoint / "adapter", {})
    assert init_digest(tmp_path / "run") != digest
    # a low-rank adapter joins the weights before they train
    other = sdxl()
    low = inject(other, AdapterConfig(kind="lora", rank=2, alpha=3.0), seed=1)
    disturb(low)
    low.save(tmp_path / "low", {})
    live = predict(other)
    low.remove()
    init = InitConfig(path=tmp_path / "low", mode="fuse")
    inject(other, FULL.model_copy(update={"init_from": init}), seed=1)
    torch.testing.assert_close(predict(other), live, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="cannot be read as that of whole weights"):
        inject(sdxl(), FULL.model_copy(update={"init_from": InitConfig(path=tmp_path / "low")}), seed=1)


def test_quantised_weights_are_refused():
    family = sdxl()
    layer = family.components()["unet"].mid_block.attentions[0].proj_in
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"unet\.mid_block\.attentions\.0\.proj_in\.weight is quantised; set memory"):
        inject(family, FULL, seed=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 8}, r"adapter\.rank is not read by kind full"),
        ({"conv_rank": 8}, r"adapter\.conv_rank is not read by kind full"),
        ({"dropout": 0.1}, r"adapter\.dropout is not read by kind full"),
        ({"exclude": ["x"]}, r"adapter\.exclude is not read by kind full"),
        ({"ranks": {"x": 2}}, r"adapter\.ranks is not read by kind full"),
        ({"text_encoders": {"rank": 2}}, r"adapter\.text_encoders\.rank is not read by kind full"),
        ({"init_from": {"path": "x", "alpha": 2.0}}, r"init_from\.alpha is not read where whole weights"),
    ],
)
def test_keys_that_whole_weights_do_not_read_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig.model_validate({"kind": "full", **values})


def test_the_resolved_configuration_stays_valid():
    for config in (FULL, WITH_TEXT, AdapterConfig(conv_rank=4, text_encoders=TextEncoderAdapterConfig(rank=2))):
        assert AdapterConfig.model_validate(config.model_dump()) == config


def test_a_forecast_injects_without_values():
    family = sdxl()
    for module in family.components().values():
        module.to("meta")
    with on_meta():
        adapter = inject(family, WITH_TEXT, seed=1)
    assert all(parameter.is_meta and parameter.dtype == torch.float32 for _, parameter in adapter.parameters())
