"""LoCon: convolutions through peft against the closed form, and through files and diffusers."""

import copy
import json

import pytest
import torch
from live_adapters import disturb, inputs, predict, sdxl
from peft import LoraConfig, inject_adapter_in_model
from random_unet import random_sd15, random_sdxl_pipeline
from safetensors import safe_open
from torch import nn
from torch.func import functional_call

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig
from flowgrain.adapters.dora import FactoredConvolutionDora
from flowgrain.adapters.lora import ADAPTER_NAME
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.source import read_adapter
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.sdxl import StableDiffusionXL

KINDS = ("lora", "dora")
LOCON = {"rank": 2, "alpha": 3.0, "conv_rank": 3, "conv_alpha": 4.5}


def convolutions(unet, spatial):
    found = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Conv2d)}
    return {name: module for name, module in found.items() if (module.kernel_size != (1, 1)) == spatial}


def new_weight(update, weight):
    """Spec b.5: dW = alpha / r (up as a matrix) (down as a matrix), in the weight's shape; DoRA scales its rows."""
    matrix = update["up"].flatten(1) @ update["down"].flatten(1) * (update["alpha"] / len(update["down"]))
    total = weight + matrix.view(weight.shape)
    if "magnitude" not in update:
        return total
    lengths = torch.linalg.vector_norm(total.detach().flatten(1), dim=1)  # a constant in the backward pass
    return total * (update["magnitude"].flatten() / lengths).view(-1, *[1] * (weight.ndim - 1))


def updates_of(adapter):
    """The adapter's own parameters by layer."""
    found = {name: {"alpha": alpha} for name, (_, alpha) in adapter.scalings().items()}
    parts = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude"}
    for name, parameter in adapter.parameters():
        suffix = next(part for part in parts if name.endswith(part))
        found[name.removeprefix("unet.").removesuffix(f".{suffix}")][parts[suffix]] = parameter
    return found


def call(unet, weights=None):
    """The U-Net alone, in float64, with some of its weights replaced."""
    x, _ = inputs()
    generator, config = torch.Generator().manual_seed(2), unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = torch.randn(2, 12, config.cross_attention_dim, generator=generator, dtype=torch.float64)
    added = {
        "text_embeds": torch.randn(2, pooled, generator=generator, dtype=torch.float64),
        "time_ids": torch.ones(2, 6),
    }
    options = {"encoder_hidden_states": text, "added_cond_kwargs": added, "return_dict": False}
    return functional_call(unet, weights or {}, (x.double(), torch.tensor([700, 20])), options)[0]


def test_spatial_convolutions_take_the_conv_rank_and_all_else_the_linear_rank():
    family = sdxl()
    unet = family.components()["unet"]
    spatial, pointwise = convolutions(unet, True), convolutions(unet, False)
    scalings = inject(family, AdapterConfig(kind="lora", **LOCON), seed=0).scalings()
    inside = [name for name in spatial if name not in ("conv_in", "conv_out")]
    assert len(inside) == len(spatial) - 2 and {scalings[name] for name in inside} == {(3, 4.5)}
    assert any(".downsamplers." in name for name in inside) and any(".upsamplers." in name for name in inside)
    assert {scalings[name] for name in pointwise} == {(2, 3.0)} and all("conv_shortcut" in name for name in pointwise)
    others = scalings.keys() - set(inside) - pointwise.keys()
    assert {scalings[name] for name in others} == {(2, 3.0)}
    assert any("time_emb_proj" in name for name in others) and any("attn2.to_k" in name for name in others)
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & scalings.keys()


def test_convolutions_scale_as_linear_layers_where_no_alpha_is_given():
    config = AdapterConfig(kind="lora", rank=2, alpha=3.0, conv_rank=4, targets=["*.attn1.to_q", "*.conv1"])
    scalings = inject(sdxl(), config, seed=0).scalings()
    assert set(scalings.values()) == {(2, 3.0), (4, 6.0)}
    assert scalings["mid_block.resnets.0.conv1"] == (4, 6.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit(kind, dtype):
    family = sdxl(dtype)
    before = predict(family)
    adapter = inject(family, AdapterConfig(kind=kind, **LOCON), seed=1)
    assert torch.equal(predict(family), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict(family)
    disturb(adapter)
    assert not torch.equal(predict(family), before)
    adapter.remove()
    assert torch.equal(predict(family), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(family), inside)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_closed_form(kind):
    family = sdxl(torch.float64)
    unet = family.components()["unet"]
    plain = copy.deepcopy(unet)
    adapter = inject(family, AdapterConfig(kind=kind, **LOCON), seed=1)
    disturb(adapter)
    unet.double()  # the adapter too
    updates, parameters = updates_of(adapter), [parameter for _, parameter in adapter.parameters()]
    output = call(unet)
    ours = torch.autograd.grad(output.square().mean(), parameters)
    base = dict(plain.named_parameters())
    weights = {f"{name}.weight": new_weight(update, base[f"{name}.weight"]) for name, update in updates.items()}
    expected = call(plain, weights)
    theirs = torch.autograd.grad(expected.square().mean(), parameters)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-7)
    assert len(ours) == (3 if kind == "dora" else 2) * len(updates)
    for (name, _), one, other in zip(adapter.parameters(), ours, theirs, strict=True):
        # the row norms of linear layers are float32 (adapters/dora.py)
        assert float((one - other).norm()) <= 1e-5 * float(other.norm()) + 1e-12, name
    assert max(gradient.norm() for gradient in ours) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_closed_form(kind):
    family = sdxl()
    unet = family.components()["unet"]
    base = {name: weight.clone() for name, weight in unet.state_dict().items()}
    adapter = inject(family, AdapterConfig(kind=kind, **LOCON), seed=1)
    disturb(adapter)
    live, updates = predict(family), updates_of(adapter)
    adapter.merge()
    weights = unet.state_dict()
    assert weights.keys() == base.keys() and not any(p.requires_grad for p in unet.parameters())
    for name, update in updates.items():
        expected = new_weight(update, base[f"{name}.weight"]).detach()
        torch.testing.assert_close(weights[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predict(family), live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_what_the_live_adapter_draws(kind, tmp_path):
    family = sdxl()
    base = predict(family)
    adapter = inject(family, AdapterConfig(kind=kind, **LOCON), seed=1)
    disturb(adapter)
    adapter.save(tmp_path, {})
    live = predict(family)
    pipeline = random_sdxl_pipeline()
    pipeline.load_lora_weights(tmp_path)
    loaded = predict(StableDiffusionXL(pipeline, "loaded"))
    assert (live - base).abs().max() > 0.05
    torch.testing.assert_close(loaded, live, rtol=1e-4, atol=1e-5)
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as file:
        described = json.loads(file.metadata()["lora_adapter_metadata"])
        down = file.get_slice("unet.mid_block.resnets.0.conv1.lora_A.weight").get_shape()
    assert down == [3, 8, 3, 3]
    assert set(described["unet.rank_pattern"].values()) == {3} and (
        described["unet.r"],
        described["unet.lora_alpha"],
    ) == (2, 3.0)


def test_the_transformers_1x1_convolutions_of_sd_15_are_linear_layers(tmp_path):
    family = random_sd15()
    adapter = inject(family, AdapterConfig(kind="dora", rank=2, alpha=3.0), seed=1)
    name = "mid_block.attentions.0.proj_in"
    assert isinstance(family.components()["unet"].get_submodule(name).get_base_layer(), nn.Conv2d)
    assert set(adapter.scalings().values()) == {(2, 3.0)} and name in adapter.scalings()
    disturb(adapter)
    live = predict(family)
    adapter.save(tmp_path, {})
    assert read_adapter(tmp_path).components["unet"][name].magnitude.shape == (8,)
    adapter.remove()
    family.pipeline(tmp_path)
    torch.testing.assert_close(predict(family), live, rtol=1e-4, atol=1e-5)


def test_settings_and_layers_that_do_not_go_together_are_refused(flux):
    def refused(message, family=None, error=ConfigError, **options):
        with pytest.raises(error, match=message):
            inject(family or sdxl(), AdapterConfig(kind="lora", **{"rank": 2, **options}), seed=0)

    refused(r"mid_block\.resnets\.0\.conv1 is a 3x3 convolution; set adapter\.conv_rank", targets=["mid_block*conv1"])
    refused("conv_rank: not read, no convolution larger than 1x1", conv_rank=2, targets=["*.attn1.to_q"])
    refused("conv_rank: 9 is more than 8, the smallest side of mid_block", conv_rank=9, targets=["mid_block*conv1"])
    refused("rank: 9 is more than 4, the smallest side of down_blocks", rank=9, targets=["*.conv_shortcut"])
    refused(r"ranks: 9 is more", conv_rank=2, targets=["mid_block*conv1"], ranks={"mid_block.resnets.0.conv1": 9})
    refused("has no convolutions to adapt in transformer", flux, ModelError, conv_rank=2)
    grouped = sdxl()
    grouped.components()["unet"].mid_block.resnets[0].conv1 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
    refused("mid_block.resnets.0.conv1 is a grouped, dilated or", grouped, conv_rank=2)
    with pytest.raises(ValueError, match="conv_alpha is not read without"):
        AdapterConfig(conv_alpha=1.0)


def test_dora_refuses_kernels_of_zeros():
    family = sdxl()
    with torch.no_grad():
        family.components()["unet"].mid_block.resnets[0].conv1.weight[5] = 0
    with pytest.raises(ConfigError, match=r"1 of 8 rows of mid_block\.resnets\.0\.conv1 are zero"):
        inject(family, AdapterConfig(kind="dora", **LOCON), seed=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_convolutions_dora_is_pefts_with_and_without_dropout(bias, dropout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=bias)).requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, use_dora=True, target_modules=["0"])
    theirs = inject_adapter_in_model(config, model, ADAPTER_NAME)[0]
    with torch.no_grad():
        theirs.lora_B[ADAPTER_NAME].weight.normal_(std=0.1)
    ours = copy.deepcopy(theirs)
    ours.lora_variant[ADAPTER_NAME] = FactoredConvolutionDora()
    results = []
    for layer in (ours, theirs):
        x = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(7)  # the same dropout
        output = layer(x)
        output.sin().sum().backward()
        trained = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
        results.append([output.detach(), x.grad, *trained])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(results[0]) == 5
