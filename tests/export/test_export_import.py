"""Files of other programs come back as adapters of ours: the same numbers, or one clear error."""

import json
import re

import pytest
import torch
from random_adapters import PIPELINES, UNETS, options, predict, random_family, trained, untouched
from safetensors.torch import load_file, save_file

from flowgrain.adapters.adapter_file import read_header
from flowgrain.adapters.base import InitConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.source import read_adapter
from flowgrain.errors import CheckpointError
from flowgrain.export.adapter_export import convert, write_exported
from flowgrain.export.adapter_import import read_any, write_adapter
from flowgrain.export.layout import file_format
from flowgrain.sample.run_folder import open_checkpoint


def round_trip(file, model, target, tmp_path):
    """Ours -> another program's file -> ours; the adapter file that comes back."""
    family, path = untouched(model), tmp_path / f"{target}.safetensors"
    write_exported(convert(family, file, file_format(family, target)), path, torch.float32)
    write_adapter(family, read_any(family, path), tmp_path / "back")
    return tmp_path / "back" / "adapter" / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("model", "target", "kind"),
    [
        ("sd15", "kohya", "dora"),
        ("sdxl", "kohya", "lora"),
        *[(model, "kohya", kind) for model in ("sd35", "flux") for kind in ("lora", "dora")],
        ("sd3", "comfyui", "lora"),
        ("flux", "comfyui", "lora"),
    ],
)
def test_round_trips(saved, tmp_path, model, target, kind):
    config = options(model, kind)
    file, live, _ = saved(model, config)
    back = round_trip(file, model, target, tmp_path)
    first, second = load_file(file), load_file(back)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        # exact, but for B of a layer of a joined weight whose alpha / rank differs: it is multiplied and divided
        if "lora_B" in key and model in ("sd35", "flux"):
            torch.testing.assert_close(second[key], tensor, rtol=3e-7, atol=0.0)
        else:
            assert torch.equal(second[key], tensor), key
    there, here = read_adapter(back), read_adapter(file)
    for component, updates in here.components.items():
        for name, update in updates.items():
            found = there.components[component][name]
            assert (found.rank, found.alpha) == (update.rank, update.alpha)
    before, after = read_header(file), read_header(back)
    changed = {"lora_adapter_metadata", "modelspec.hash_sha256"}
    assert {k: v for k, v in before.items() if k not in changed} == {k: v for k, v in after.items() if k not in changed}

    family = random_family(model)
    family.pipeline(back.parent)  # diffusers' loader, as sampling uses it
    torch.testing.assert_close(predict(family), live, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_an_imported_file(saved, tmp_path):
    config = options("sdxl", "dora")
    file, live, _ = saved("sdxl", config)
    back = round_trip(file, "sdxl", "kohya", tmp_path)
    family = random_family("sdxl")
    inject(family, config.model_copy(update={"init_from": InitConfig(path=tmp_path / "back")}), seed=0).train(False)
    torch.testing.assert_close(predict(family), live, rtol=1e-5, atol=1e-5)
    assert open_checkpoint(tmp_path / "back").adapter == back.parent


def write(path, tensors, header=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
    return path


def lora(name, out, inputs, rank=2, alpha=1.0, style=("lora_up.weight", "lora_down.weight")):
    generator = torch.Generator().manual_seed(len(name))
    found = {f"{name}.{style[0]}": torch.randn(out, rank, generator=generator)}
    found[f"{name}.{style[1]}"] = torch.randn(rank, inputs, generator=generator)
    return found | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)})


QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA_QUERY = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q"
PEFT = ("lora_B.weight", "lora_A.weight")


@pytest.mark.parametrize(
    ("name", "style"),
    [
        (KOHYA_QUERY, ("lora_up.weight", "lora_down.weight")),
        ("lora_unet_" + QUERY.replace(".", "_"), ("lora_up.weight", "lora_down.weight")),
        ("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q", PEFT),
        ("unet." + QUERY, PEFT),
        ("unet." + QUERY.replace("to_q", "processor.to_q"), None),
        ("lycoris_" + QUERY.replace(".", "_"), ("lora_up.weight", "lora_down.weight")),
    ],
)
def test_names_of_many_programs(tmp_path, name, style):
    ending = style or ("lora.up.weight", "lora.down.weight")
    tensors = lora(name, 8, 8, style=ending)
    if style is None:  # diffusers' first format joins the parts by an underscore
        tensors = {key.replace(f"{name}.lora.", f"{name}_lora."): value for key, value in tensors.items()}
    found = read_any(untouched("sdxl"), write(tmp_path / "x.safetensors", tensors))
    assert list(found.updates) == [("unet", QUERY)]
    up = next(value for key, value in tensors.items() if "up" in key or "lora_B" in key)
    assert torch.equal(found.updates["unet", QUERY].up, up)


def test_a_joined_weight_of_another_program(tmp_path):
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_single_blocks_1_linear1"
    width = 32 * 3 + 128
    tensors = {f"{name}.lora_down.weight": torch.randn(4, 32, generator=generator)}
    tensors |= {
        f"{name}.lora_up.weight": torch.randn(width, 4, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    found = read_any(untouched("flux"), write(tmp_path / "x.safetensors", tensors)).updates
    stack = "single_transformer_blocks.1"
    layers = [f"{stack}.attn.to_q", f"{stack}.attn.to_k", f"{stack}.attn.to_v", f"{stack}.proj_mlp"]
    assert list(found) == [("transformer", layer) for layer in layers]
    ups = torch.cat([found["transformer", layer].up for layer in layers])
    assert torch.equal(ups, tensors[f"{name}.lora_up.weight"])
    assert {(update.rank, update.alpha) for update in found.values()} == {(4, 2.0)}


def test_a_convolution_in_three_parts(tmp_path):
    generator = torch.Generator().manual_seed(0)
    name, layer = "lora_unet_down_blocks_0_resnets_0_conv1", "down_blocks.0.resnets.0.conv1"
    shapes = {"lora_down.weight": (2, 4, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (4, 2, 1, 1)}
    tensors = {f"{name}.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    update = read_any(untouched("sd15"), write(tmp_path / "x.safetensors", tensors)).updates["unet", layer]
    down, mid, up = (tensors[f"{name}.{key}"] for key in shapes)
    expected = torch.einsum("om,mrp,ri->oip", up.flatten(1), mid.flatten(2), down.flatten(1)).reshape(4, 4, 3, 3) * 0.5
    torch.testing.assert_close(update.merged(torch.zeros(4, 4, 3, 3)), expected, rtol=1e-5, atol=1e-5)


def test_flat_matrices_of_a_1x1_convolution_and_half_precision(tmp_path):
    name, layer = "lora_unet_down_blocks_0_attentions_0_proj_in", "down_blocks.0.attentions.0.proj_in"
    tensors = {key: value.half() for key, value in lora(name, 4, 4).items()}
    update = read_any(untouched("sd15"), write(tmp_path / "x.safetensors", tensors)).updates["unet", layer]
    assert (update.down.shape, update.up.shape) == ((2, 4, 1, 1), (4, 2, 1, 1))
    assert update.down.dtype == torch.float32


def refusal(model, path, alpha=None):
    with pytest.raises(CheckpointError) as caught:
        read_any(untouched(model), path, alpha)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_alpha_that_a_file_does_not_say(tmp_path):
    path = write(tmp_path / "x.safetensors", lora(KOHYA_QUERY, 8, 8, alpha=None))
    assert re.search(
        r"does not say the alpha of .*to_q; some programs then take alpha = rank \(2\)", refusal("sdxl", path)
    )
    assert read_any(untouched("sdxl"), path, 4.0).updates["unet", QUERY].alpha == 4.0
    path = write(tmp_path / "y.safetensors", lora(KOHYA_QUERY, 8, 8, alpha=0.1))
    assert read_any(untouched("sdxl"), path).updates["unet", QUERY].alpha == 0.1  # not float32's 0.10000000149
    path = write(tmp_path / "z.safetensors", lora(KOHYA_QUERY, 8, 8, alpha=0.0))
    assert "must be positive" in refusal("sdxl", path)


def test_unknown_tensors_are_listed_and_can_be_left_out(tmp_path):
    strange = {"lora_unet_controlnet_7.lora_up.weight": torch.ones(2, 2), f"{KOHYA_QUERY}.hada_w1_a": torch.ones(2, 2)}
    path = write(tmp_path / "x.safetensors", lora(KOHYA_QUERY, 8, 8) | strange)
    message = refusal("sdxl", path)
    assert "2 of 5 tensors have no place in this model" in message
    assert "lora_unet_controlnet_7.lora_up.weight" in message
    assert "LoHa" in message
    found = read_any(untouched("sdxl"), path, ignore_unknown=True)
    assert list(found.updates) == [("unet", QUERY)]
    assert set(found.ignored) == set(strange)
    only = write(tmp_path / "y.safetensors", strange)
    with pytest.raises(CheckpointError, match="holds no LoRA, LoCon or DoRA of this model: LoHa"):
        read_any(untouched("sdxl"), only, ignore_unknown=True)


def test_what_does_not_fit_is_one_clear_line(tmp_path):
    path = write(tmp_path / "wide.safetensors", lora(KOHYA_QUERY, 16, 8))
    assert "is 16 x 8 of rank 2, the model's weight is 8 x 8" in refusal("sdxl", path)
    half = {key: value for key, value in lora(KOHYA_QUERY, 8, 8).items() if "up" not in key}
    assert "has alpha, down alone" in refusal("sdxl", write(tmp_path / "half.safetensors", half))
    twice = lora(KOHYA_QUERY, 8, 8) | lora("lora_unet_" + QUERY.replace(".", "_"), 8, 8)
    assert f"holds unet.{QUERY} twice" in refusal("sdxl", write(tmp_path / "twice.safetensors", twice))
    by_column = lora(KOHYA_QUERY, 8, 8) | {f"{KOHYA_QUERY}.dora_scale": torch.ones(1, 8)}
    assert "has shape (1, 8), not one length for each of 8 output rows" in refusal(
        "sdxl", write(tmp_path / "column.safetensors", by_column)
    )
    key = KOHYA_QUERY.replace("to_q", "to_k")
    mixed = lora(KOHYA_QUERY, 8, 8) | lora(key, 8, 8) | {f"{key}.dora_scale": torch.ones(8, 1)}
    assert "1 of 2 layers have no dora_scale" in refusal("sdxl", write(tmp_path / "mixed.safetensors", mixed))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-40])
    assert "cannot be read as an adapter in a safetensors file" in refusal("sdxl", damaged)
    pickle = tmp_path / "pickle.pt"
    torch.save({"lora_unet_x.alpha": torch.ones(1)}, pickle)
    assert "cannot be read as an adapter in a safetensors file" in refusal("sdxl", pickle)
    header = {"flowgrain_columns": json.dumps({KOHYA_QUERY: {"a": {"first": 0}}})}
    damaged = write(tmp_path / "header.safetensors", lora(KOHYA_QUERY, 8, 8), header)
    assert "flowgrain_columns is damaged" in refusal("sdxl", damaged)


def test_sums_of_adapters_on_top_of_each_other(saved, tmp_path):
    """An adapter that was trained on fused ones is exported with them: the sum is of low rank."""
    config = options("flux", ranks={}, alphas={})
    first, _, _ = saved("flux", config)
    family = random_family("flux")
    top = config.model_copy(update={"init_from": InitConfig(path=first, mode="fuse"), "alpha": 1.0})
    trained(family, top, seed=8).save(tmp_path / "top", {})
    live = predict(family)
    file = tmp_path / "top" / "pytorch_lora_weights.safetensors"
    back = round_trip(file, "flux", "kohya", tmp_path)
    assert {update.rank for update in read_adapter(back).components["transformer"].values()} == {8}
    fresh = random_family("flux")
    fresh.pipeline(back.parent)
    torch.testing.assert_close(predict(fresh), live, rtol=1e-3, atol=1e-4)

    dora, _, _ = saved("flux", options("flux", "dora", ranks={}, alphas={}))
    family = random_family("flux")
    on_dora = config.model_copy(update={"init_from": InitConfig(path=dora, mode="fuse")})
    trained(family, on_dora).save(tmp_path / "on-dora", {})
    family = untouched("flux")
    with pytest.raises(CheckpointError, match=r"was trained on top of the DoRA .*use --to merged"):
        convert(family, tmp_path / "on-dora" / file.name, file_format(family, "diffusers"))


def test_every_layer_of_every_model_has_one_name_and_no_two_share_one():
    for model in PIPELINES:
        family = untouched(model)
        for target in ("diffusers", "kohya", "comfyui"):
            modules = file_format(family, target).modules
            assert len({module.name for module in modules}) == len(modules)
            held = [(m.component, rows.layer, rows.start) for m in modules for rows in m.rows]
            assert len(set(held)) == len(held)
            layers = {layer for component, layer, _ in held if component == family.backbone_name}
            linears = {name for name, _ in family.backbone.named_modules() if hasattr(_, "in_features")}
            assert linears <= layers
    assert set(UNETS) <= set(PIPELINES)
