"""An exported file, loaded by diffusers' own loaders, predicts what the live adapter does."""

import json

import pytest
import torch
from random_adapters import PIPELINES, UNETS, options, predict, untouched
from safetensors import safe_open
from safetensors.torch import load_file

from flowgrain.adapters.source import read_adapter
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.export.adapter_export import convert, write_exported
from flowgrain.export.layout import file_format


def exported(file, model, target, tmp_path, dtype=torch.float32):
    family = untouched(model)
    path = tmp_path / f"{target}.safetensors"
    write_exported(convert(family, file, file_format(family, target)), path, dtype)
    return path


def loaded(model, weights):
    """What a fresh model predicts after diffusers' own loader."""
    pipeline, kind = PIPELINES[model]
    pipe = pipeline()
    pipe.load_lora_weights(weights)
    return predict(kind(pipe, "random"))


def header_of(path):
    with safe_open(path, framework="pt") as stream:
        return stream.metadata()


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        *((model, "lora") for model in ("sd15", "sdxl", "sd35")),
        *((model, "dora") for model in ("sd21", "sdxl", "sd3", "flux")),
    ],
)
def test_diffusers_file_with_and_without_metadata(saved, tmp_path, model, kind):
    file, live, _ = saved(model, options(model, kind))
    path = exported(file, model, "diffusers", tmp_path)
    torch.testing.assert_close(loaded(model, str(path)), live, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loaded(model, load_file(path)), live, rtol=1e-3, atol=1e-4)
    settings = json.loads(header_of(path)["lora_adapter_metadata"])
    for component in {key.partition(".")[0] for key in settings}:
        own = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith(f"{component}.")}
        assert (own["r"], own["rank_pattern"]) == (own["lora_alpha"], own["alpha_pattern"])


@pytest.mark.parametrize("model", UNETS)
def test_kohya_file_of_a_unet_through_diffusers_converter(saved, tmp_path, model):
    # diffusers 0.42 forgets alphas of single attention layers in kohya's files, hence none here
    file, live, _ = saved(model, options(model, alphas={}))
    path = exported(file, model, "kohya", tmp_path)
    torch.testing.assert_close(loaded(model, str(path)), live, rtol=1e-3, atol=1e-4)
    assert exported(file, model, "comfyui", tmp_path).read_bytes() == path.read_bytes()


def test_every_layer_of_an_sdxl_unet_has_its_name(saved, tmp_path):
    config = options("sdxl", targets=["*"], text_encoders={"rank": 2}, rank=2, conv_rank=2, ranks={}, alphas={})
    file, live, _ = saved("sdxl", config)
    path = exported(file, "sdxl", "kohya", tmp_path)
    names = {key.split(".")[0] for key in load_file(path)}
    assert {
        "lora_unet_input_blocks_0_0", "lora_unet_out_2", "lora_unet_time_embed_0", "lora_unet_label_emb_0_2",
        "lora_unet_input_blocks_2_0_op", "lora_unet_input_blocks_3_0_skip_connection",
        "lora_unet_middle_block_2_in_layers_2", "lora_unet_output_blocks_1_2_conv",
        "lora_unet_output_blocks_4_0_emb_layers_1",
        "lora_unet_output_blocks_0_1_transformer_blocks_1_attn2_to_out_0", "lora_unet_middle_block_1_proj_in",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_1_self_attn_out_proj",
    } <= names  # fmt: skip
    torch.testing.assert_close(loaded("sdxl", str(path)), live, rtol=1e-3, atol=1e-4)


def test_kohya_file_of_flux_double_blocks_through_diffusers_converter(saved, tmp_path):
    # diffusers' converter knows single blocks of the published width alone: test_export_names.py
    config = options("flux", targets=["transformer_blocks.0.*"], ranks={}, alphas={})
    file, live, _ = saved("flux", config)
    path = exported(file, "flux", "kohya", tmp_path)
    assert load_file(path)["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (12, 32)
    torch.testing.assert_close(loaded("flux", str(path)), live, rtol=1e-3, atol=1e-4)


def test_comfyui_file_of_flux_loads_in_diffusers_too(saved, tmp_path):
    file, live, _ = saved("flux")
    path = exported(file, "flux", "comfyui", tmp_path)
    assert "transformer.single_transformer_blocks.0.attn.to_v.alpha" in load_file(path)
    torch.testing.assert_close(loaded("flux", str(path)), live, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_rounds_the_matrices_alone(saved, tmp_path, dtype, error):
    file, _, _ = saved("sdxl", options("sdxl", "dora"))
    whole, half = (load_file(exported(file, "sdxl", "kohya", tmp_path, kind)) for kind in (torch.float32, dtype))
    for key, tensor in whole.items():
        if key.endswith((".alpha", ".dora_scale")):
            assert torch.equal(half[key], tensor)
        else:
            assert half[key].dtype == dtype
            torch.testing.assert_close(half[key].float(), tensor, rtol=error, atol=1e-7)


def test_alphas_ranks_and_metadata_are_in_the_kohya_file(saved, tmp_path):
    file, _, _ = saved("sdxl")
    path = exported(file, "sdxl", "kohya", tmp_path)
    tensors, header = load_file(path), header_of(path)
    source = read_adapter(file)
    assert sum(key.endswith(".alpha") for key in tensors) == sum(map(len, source.components.values()))
    query = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
    assert tensors[f"{query}.lora_down.weight"].shape == (2, 8)
    assert tensors[f"{query}.alpha"].item() == 3.0
    assert tensors["lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_v.alpha"].item() == 5.0
    conv = "lora_unet_input_blocks_3_0_in_layers_2"
    assert tensors[f"{conv}.lora_down.weight"].shape == (2, 4, 3, 3)
    assert tensors[f"{conv}.lora_up.weight"].shape == (8, 2, 1, 1)
    assert tensors[f"{conv}.alpha"].item() == pytest.approx(0.7)
    assert {"ss_network_dim": "4", "modelspec.title": "fox", "flowgrain_recipe": "fox"}.items() <= header.items()
    assert "lora_adapter_metadata" not in header  # diffusers would count alpha twice
    assert header["modelspec.implementation"] != "diffusers"
    assert header["modelspec.hash_sha256"] != header_of(file)["modelspec.hash_sha256"]


def test_the_same_adapter_gives_the_same_bytes(saved, tmp_path):
    file, _, _ = saved("flux")
    first = exported(file, "flux", "kohya", tmp_path).read_bytes()
    assert exported(file, "flux", "kohya", tmp_path / "again").read_bytes() == first


# --- arithmetic of other programs, from their formulas ---


def patched(weight, up, down, alpha):
    """How kohya's tools and ComfyUI change a weight: W + up down alpha / rank."""
    return weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * (alpha / down.shape[0])


def lycoris_dora(weight, up, down, alpha, dora_scale):
    """LyCORIS' weight_decompose: lengths of the changed rows, plus epsilon."""
    changed = patched(weight, up, down, alpha)
    lengths = changed.reshape(len(changed), -1).norm(dim=1).reshape(-1, *[1] * (changed.ndim - 1))
    return changed * (dora_scale / (lengths + torch.finfo(torch.float32).eps))


def comfyui_dora(weight, up, down, alpha, dora_scale):
    """ComfyUI's weight_decompose for scales by output row (comfy/weight_adapter/base.py): lengths of W itself."""
    lengths = weight.reshape(len(weight), -1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    return patched(weight, up, down, alpha) * (dora_scale / (lengths + torch.finfo(torch.float32).eps))


def expected_weights(model, file):
    """(component, layer) -> weight before, weight with the adapter merged by its own formula."""
    family = untouched(model)
    found = {}
    for component, updates in read_adapter(file).components.items():
        layers = dict(family.components()[component].named_modules())
        for name, update in updates.items():
            own = name if name in layers else name.removeprefix("text_model.")
            weight = layers[own].weight.detach()
            found[component, own] = (weight, update.merged(weight))
    return found


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd35", "flux"])
def test_patch_arithmetic_by_mapped_names_gives_the_merged_weight(saved, tmp_path, model, target):
    file, _, _ = saved(model)
    family = untouched(model)
    form = file_format(family, target)
    tensors = load_file(exported(file, model, target, tmp_path))
    expected = expected_weights(model, file)
    layers = {name: dict(module.named_modules()) for name, module in family.components().items()}
    seen = set()
    for module in form.modules:
        if module.name + form.keys.up not in tensors:
            continue
        own = [layers[module.component][rows.layer].weight.detach()[rows.start : rows.stop] for rows in module.rows]
        parts = (tensors.pop(module.name + end) for end in (form.keys.up, form.keys.down, form.keys.alpha))
        changed = torch.split(patched(torch.cat(own), *parts), [len(weight) for weight in own])
        for rows, found, before in zip(module.rows, changed, own, strict=True):
            seen.add((module.component, rows.layer))
            after = expected.get((module.component, rows.layer), (None, before))[1]
            torch.testing.assert_close(found, after[: len(found)], rtol=1e-5, atol=1e-5)
    assert not tensors
    assert expected.keys() <= seen


def test_dora_scale_is_exact_by_lycoris_formula_and_not_by_comfyuis(saved, tmp_path):
    file, _, _ = saved("sdxl", options("sdxl", "dora"))
    family = untouched("sdxl")
    form = file_format(family, "kohya")
    tensors = load_file(exported(file, "sdxl", "kohya", tmp_path))
    expected, worst = expected_weights("sdxl", file), 0.0
    for module in form.modules:
        if module.name + ".dora_scale" in tensors:
            before, after = expected[module.component, module.rows[0].layer]
            endings = (".lora_up.weight", ".lora_down.weight", ".alpha", ".dora_scale")
            parts = [tensors[module.name + end] for end in endings]
            assert parts[3].shape == (len(before), *[1] * (before.ndim - 1))
            torch.testing.assert_close(lycoris_dora(before, *parts), after, rtol=1e-5, atol=1e-6)
            worst = max(worst, float((comfyui_dora(before, *parts) - after).norm() / after.norm()))
    assert worst > 0.05
    with pytest.raises(CheckpointError, match=r"ComfyUI divides by the row lengths of W .* --to merged$"):
        convert(family, file, file_format(family, "comfyui"))


def test_dora_of_a_joined_weight_holds_all_of_it_or_none(saved, tmp_path):
    every = options("flux", "dora", targets=["transformer_blocks.0.attn.to_*"], ranks={}, alphas={"attn.to_k": 1.0})
    file, _, _ = saved("flux", every)
    tensors = load_file(exported(file, "flux", "kohya", tmp_path))
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    layers = [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    expected = expected_weights("flux", file)
    before, after = (torch.cat([expected["transformer", layer][i] for layer in layers]) for i in (0, 1))
    parts = [tensors[name + end] for end in (".lora_up.weight", ".lora_down.weight", ".alpha", ".dora_scale")]
    torch.testing.assert_close(lycoris_dora(before, *parts), after, rtol=1e-5, atol=1e-6)

    file, _, _ = saved("flux", options("flux", "dora", targets=["transformer_blocks.0.attn.to_q"], ranks={}, alphas={}))
    family = untouched("flux")
    with pytest.raises(CheckpointError, match=r"is a DoRA without .*to_k, .*to_v, whose row lengths .*img_attn_qkv"):
        convert(family, file, file_format(family, "kohya"))


def test_formats_that_a_family_has_not(saved):
    from random_auraflow import random_auraflow_pipeline

    from flowgrain.families.auraflow import AuraFlow

    family = AuraFlow(random_auraflow_pipeline(), "random")
    with pytest.raises(ConfigError, match="--to kohya: there is no such layout for auraflow models, only for"):
        file_format(family, "kohya")
    names = {module.rows[0].layer for module in file_format(family, "comfyui").modules}
    assert "joint_transformer_blocks.0.attn.to_q" in names
    assert "proj_out" not in names


def test_an_adapter_of_another_model(saved):
    file, _, _ = saved("sd15")
    family = untouched("sdxl")
    with pytest.raises(CheckpointError, match="; give its own model"):
        convert(family, file, file_format(family, "kohya"))
