"""Adapters over the U-Net and both text encoders: names, files, gradients."""

import json

import pytest
import torch
from live_adapters import CAPTIONS, EVERYTHING, TEXT, disturb, everything, inputs, output, predict, sdxl
from random_unet import random_sdxl_pipeline
from safetensors import safe_open

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig, TextEncoderAdapterConfig
from flowgrain.adapters.joint import JointAdapter
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import CheckpointError, ConfigError, ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.loading import unload_adapter
from flowgrain.families.sdxl import StableDiffusionXL
from flowgrain.flow.time_laws import UniformTime
from flowgrain.flow.weightings import Uniform
from flowgrain.train.objective import Batch, FineTuning

KINDS = ("lora", "dora")
ENCODERS = ("text_encoder", "text_encoder_2")


def named(adapter, component):
    return {name: value for name, value in adapter.parameters() if name.startswith(f"{component}.")}


def embedded(family):
    return family.embed_text(CAPTIONS).tensors


def batch(captions=CAPTIONS, embedding=None):
    x, _ = inputs()
    return Batch(
        x0=x,
        noise=x.flip(0),
        u=torch.tensor([0.3, 0.6], dtype=torch.float64),
        granularity=torch.zeros(2, dtype=torch.int64),
        tokens=torch.full((2,), 16),
        inputs=ConditionInputs(captions, embedding, 1.0),
        weight=torch.full((2,), 0.5),
    )


def objective(family, adapter):
    return FineTuning(family, adapter, family.default_path(), UniformTime(), Uniform())


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_backbones_then_each_encoders_by_the_names_of_the_file(kind, tmp_path):
    adapter = inject(sdxl(), everything(kind), seed=1)
    assert isinstance(adapter, JointAdapter) and adapter.trains_text
    names = [name for name, _ in adapter.parameters()]
    components = [name.partition(".")[0] for name in names]
    assert sorted(components, key=("unet", *ENCODERS).index) == components and set(components) == {"unet", *ENCODERS}
    first = "text_encoder.text_model.encoder.layers.0.self_attn.k_proj.lora_A.weight"
    assert first in names and first.replace("encoder.", "encoder_2.", 1) in names
    assert {value.shape[0] for name, value in named(adapter, "text_encoder_2").items() if "lora_A" in name} == {3}
    adapter.save(tmp_path, {})
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as file:
        assert set(file.keys()) == set(names)
        described = json.loads(file.metadata()["lora_adapter_metadata"])
    expected = {"unet": (2, 3.0), "text_encoder": (3, 4.0), "text_encoder_2": (3, 4.0)}
    for component, values in expected.items():
        assert (described[f"{component}.r"], described[f"{component}.lora_alpha"]) == values
        assert described[f"{component}.base_model_name_or_path"] is None  # no path of this machine


def test_initial_values_depend_on_the_seed_and_the_layer_alone():
    whole = inject(sdxl(), everything("lora"), seed=7).state_dict()
    alone = inject(sdxl(), everything("lora", text_encoders=TEXT.model_copy(update={"names": ["text_encoder_2"]})), 7)
    assert not named(alone, "text_encoder")
    assert all(torch.equal(whole[name], value) for name, value in alone.state_dict().items())
    backbone = inject(sdxl(), AdapterConfig(kind="lora", **EVERYTHING), seed=7)
    assert not backbone.trains_text
    assert all(torch.equal(whole[name], value) for name, value in backbone.state_dict().items())
    downs = [whole[f"{name}.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] for name in ENCODERS]
    assert not torch.equal(downs[0], downs[1])


def test_left_out_settings_are_those_of_the_backbone():
    config = AdapterConfig(kind="lora", rank=3, alpha=5.0, text_encoders=TextEncoderAdapterConfig(targets=["q_proj"]))
    adapter = inject(sdxl(), config, seed=0)
    for part in adapter.parts:
        assert set(part.scalings().values()) == {(3, 5.0)}
    assert len(adapter.parts[1].scalings()) == 2 and all("q_proj" in name for name in adapter.parts[1].scalings())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit_and_removal_leaves_none(kind, dtype):
    family = sdxl(dtype)
    before = predict(family)
    adapter = inject(family, everything(kind), seed=1)
    assert torch.equal(predict(family), before)
    assert {parameter.dtype for _, parameter in adapter.parameters()} == {torch.float32}
    disturb(adapter)
    changed = predict(family)
    assert not torch.equal(changed, before)
    with adapter.enabled(False):
        assert torch.equal(predict(family), before)
        with adapter.enabled(True):
            assert torch.equal(predict(family), changed)
    adapter.remove()
    assert torch.equal(predict(family), before)
    for module in family.components().values():
        assert not any("lora" in name for name in module.state_dict())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    inject(family, everything(kind), seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_all_components_from_one_file(kind, tmp_path):
    family = sdxl()
    adapter = inject(family, everything(kind), seed=1)
    disturb(adapter)
    adapter.save(tmp_path, {})
    live, text = predict(family), embedded(family)
    pipeline = random_sdxl_pipeline()
    pipeline.load_lora_weights(tmp_path)
    other = StableDiffusionXL(pipeline, "loaded")
    torch.testing.assert_close(predict(other), live, rtol=1e-4, atol=1e-5)
    for name, value in embedded(other).items():
        torch.testing.assert_close(value, text[name], rtol=1e-5, atol=1e-6)
    adapter.remove()
    base = predict(family)
    for name, value in embedded(family).items():
        assert (value - text[name]).abs().max() > 0.01
    loaded = family.pipeline(tmp_path)
    torch.testing.assert_close(predict(family), live, rtol=1e-4, atol=1e-5)
    unload_adapter(loaded)
    assert torch.equal(predict(family), base)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_predict_as_the_live_adapter(kind):
    family = sdxl()
    adapter = inject(family, everything(kind), seed=1)
    disturb(adapter)
    live = predict(family)
    adapter.merge()
    torch.testing.assert_close(predict(family), live, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for module in family.components().values() for name in module.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_are_bitwise_and_other_settings_are_refused(kind, tmp_path):
    adapter = inject(sdxl(), everything(kind), seed=1)
    disturb(adapter)
    adapter.save(tmp_path, {})
    again = inject(sdxl(), everything(kind), seed=2)
    again.load(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in adapter.state_dict().items())
    again.save(tmp_path / "again", {})
    assert (tmp_path / "again" / WEIGHTS_NAME).read_bytes() == (tmp_path / WEIGHTS_NAME).read_bytes()
    other = everything(kind, text_encoders=TextEncoderAdapterConfig(rank=3, alpha=5.0))
    with pytest.raises(CheckpointError, match=r"lora_alpha is 4\.0 there and 5\.0 in this run"):
        inject(sdxl(), other, seed=1).load(tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected text_encoder\.text_model"):
        inject(sdxl(), AdapterConfig(kind=kind, **EVERYTHING), seed=1).load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_both_encoders_through_the_objective(kind):
    family = sdxl()
    adapter = inject(family, everything(kind), seed=1)
    disturb(adapter)
    losses = objective(family, adapter).per_sample(batch())
    losses.total.sum().backward()
    # SDXL reads the layer before the first encoder's last one, and of the second encoder its pooled output too
    unread = {name for name in named(adapter, "text_encoder") if "encoder.layers.1." in name}
    for name, parameter in adapter.parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (name not in unread), name
    # the same gradient as that of the loss written out by hand
    names = [name for name in named(adapter, "text_encoder") if name not in unread]
    ours = [dict(adapter.parameters())[name].grad.clone() for name in names]
    sample = family.default_path()(batch().x0, batch().noise, losses.t)
    conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=True))
    error = family.predict(sample.x_t, sample.times, conditioning).prediction - sample.target
    by_hand = error.square().mean(dim=(1, 2, 3)).sum()
    theirs = torch.autograd.grad(by_hand, [dict(adapter.parameters())[name] for name in names])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def test_text_encoders_that_train_need_captions_and_frozen_ones_take_no_gradient():
    family = sdxl()
    embedding = family.embed_text(CAPTIONS)
    adapter = inject(family, everything("lora"), seed=1)
    with pytest.raises(ValueError, match="must carry captions"):
        objective(family, adapter).per_sample(batch(None, embedding))
    adapter.remove()
    alone = inject(family, AdapterConfig(kind="lora", **EVERYTHING), seed=1)
    losses = [objective(family, alone).per_sample(given).total for given in (batch(None, embedding), batch())]
    assert torch.equal(losses[0], losses[1])
    assert not family.condition(ConditionInputs(CAPTIONS, None, 1.0)).tensors["prompt_embeds"].requires_grad


def test_the_encoders_own_dropout_stays_off_while_the_adapters_acts():
    family = sdxl()
    for name in ENCODERS:
        for module in family.components()[name].modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.5  # CLIP's attention
    before = output(family, grad=True)
    adapter = inject(family, everything("lora"), seed=1)
    assert torch.equal(output(family, grad=True), before)
    adapter.remove()
    dropping = inject(family, everything("lora", dropout=0.5), seed=1)
    disturb(dropping)
    text = [family.condition(ConditionInputs(CAPTIONS, None, 1.0)).tensors["prompt_embeds"] for _ in range(2)]
    assert not torch.equal(*text)
    dropping.train(False)
    text = [family.condition(ConditionInputs(CAPTIONS, None, 1.0)).tensors["prompt_embeds"] for _ in range(2)]
    assert torch.equal(*text)


def test_a_pipeline_over_live_text_encoder_adapters_loads_no_other(tmp_path):
    family = sdxl()
    inject(family, everything("lora"), seed=1).save(tmp_path, {})
    with pytest.raises(ModelError, match="carries an adapter already"):
        family.pipeline(tmp_path)


def test_encoders_that_there_are_not_are_refused(flux):
    def refused(message, family=None, **options):
        text = TextEncoderAdapterConfig(**options)
        with pytest.raises((ConfigError, ModelError), match=message):
            inject(family or sdxl(), AdapterConfig(kind="lora", rank=2, text_encoders=text), seed=0)

    refused(r"names: 'vae' is no text encoder of a sdxl model; choose from text_encoder, text_encoder_2", names=["vae"])
    refused("names an encoder twice", names=["text_encoder", "text_encoder"])
    refused("text_encoders.rank: 99 is more than", rank=99)
    refused(r"text_encoders\.targets: 'to_q' names no linear layer", targets=["to_q"])
    refused("loads no adapter of a text encoder without a layer of its attention", targets=["mlp.fc1", "mlp.fc2"])
    refused("no text encoder of a flux model can be adapted; remove", flux)
    refused("has no component 'text_encoder' to adapt", flux, names=["text_encoder"])
    with pytest.raises(ConfigError, match=r"'text_encoder' is a text encoder, .* name it in adapter\.text_encoders"):
        inject(sdxl(), AdapterConfig(component="text_encoder"), seed=0)
    with pytest.raises(ConfigError, match="component: 'transformer' is unknown; remove it, or say unet"):
        inject(sdxl(), AdapterConfig(component="transformer"), seed=0)
