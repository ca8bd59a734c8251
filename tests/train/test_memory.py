"""The memory forecast against what autograd really keeps, and against FLUX.1-dev's known size."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from flowgrain.adapters.low_rank import inject
from flowgrain.config import load_config
from flowgrain.data.dataset import open_dataset
from flowgrain.errors import ConfigError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.registry import load_family, load_skeleton, resolve_model
from flowgrain.train.forecast import caption_line, forecast
from flowgrain.train.memory import MemoryConfig
from flowgrain.train.memory_forecast import MemoryModel, Shape, offload_setting
from flowgrain.train.objective import Batch
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.setup import fine_tuning

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def tiny(small_flux):
    """A recipe over a model of one double and one single block; keyword arguments replace sections."""
    return lambda **sections: _tiny(str(small_flux), sections)


def _tiny(path, sections):
    values = {
        "name": "x", "model": {"path": path}, "data": {"path": "d"}, "budget": {"amount": 1}, "precision": "fp32",
        "adapter": {"kind": "lora", "rank": 8, "alpha": 8},
    }  # fmt: skip
    return Recipe.model_validate({**values, **sections})


def kept_by_autograd(recipe, shape, bf16=False, caption="a fox"):
    """Bytes of all different storages that a real forward pass saves, but for the model's own tensors."""
    family = load_family(recipe.model.path, None, getattr(torch, recipe.model.dtype), CPU)
    adapter = inject(family, recipe.adapter, 0)
    family.gradient_checkpointing(recipe.memory.gradient_checkpointing)
    objective = fine_tuning(recipe, family, adapter)
    n, scale, tokens = shape.slices, family.capabilities.latent_scale, family.tokens(shape.height, shape.width)
    latents = torch.randn(n, family.capabilities.latent_channels, shape.height // scale, shape.width // scale)
    captions = [caption] * n
    text = (captions, None) if recipe.trains_text else (None, family.embed_text(captions))
    batch = Batch(
        x0=latents, noise=torch.randn_like(latents), u=torch.full((n,), 0.5, dtype=torch.float64),
        granularity=torch.zeros(n, dtype=torch.int64), tokens=torch.full((n,), tokens),
        inputs=ConditionInputs(*text, 1.0), weight=torch.ones(n, dtype=torch.float64),
    )  # fmt: skip
    models = family.components().values()
    weights = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    own = {tensor.untyped_storage().data_ptr() for tensor in [*weights, batch.x0]}
    saved = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        loss = objective.per_sample(batch).total.sum()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


SHAPES = (Shape(1, 128, 128), Shape(4, 128, 128), Shape(8, 96, 160))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_kept_activations_are_what_autograd_keeps(tiny, kind):
    recipe = tiny(adapter={"kind": kind, "rank": 8, "alpha": 8})
    model = MemoryModel(recipe, CPU, "fp32")
    for shape in SHAPES:
        assert model.activations(shape).kept == pytest.approx(kept_by_autograd(recipe, shape), rel=0.05)


def test_kept_activations_of_the_embedded_model_with_checkpointing(tiny):
    recipe = tiny(model={"path": "tiny-flux"}, memory={"gradient_checkpointing": True})
    model = MemoryModel(recipe, CPU, "fp32")
    for shape in SHAPES:
        assert model.activations(shape).kept == pytest.approx(kept_by_autograd(recipe, shape), rel=0.1)


def test_kept_activations_under_autocast_with_bf16_weights(tiny, small_flux):
    recipe = tiny(model={"path": str(small_flux), "dtype": "bfloat16"})
    shape = Shape(4, 256, 256)  # longer than the sequences for which a CPU takes the attention that keeps all pairs
    expected = MemoryModel(recipe, CPU, "bf16").activations(shape).kept
    assert expected == pytest.approx(kept_by_autograd(recipe, shape, bf16=True), rel=0.05)
    assert expected < 0.7 * MemoryModel(tiny(), CPU, "fp32").activations(shape).kept


@pytest.fixture
def unet(small_sdxl):
    """A recipe over a random SDXL; keyword arguments replace sections."""
    return lambda **sections: _tiny(str(small_sdxl), sections)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_activations_of_a_u_net_and_its_text_encoders(unet, text, checkpointing):
    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "conv_rank": 2, "text_encoders": {} if text else None}
    data = {"path": "d", "cache_text": not text}
    recipe = unet(adapter=adapter, data=data, memory={"gradient_checkpointing": checkpointing})
    model = MemoryModel(recipe, CPU, "fp32")
    for shape in (Shape(1, 64, 64), Shape(4, 32, 64)):
        assert model.activations(shape).kept == pytest.approx(kept_by_autograd(recipe, shape), rel=0.1)


def test_the_longest_caption_counts_where_padding_is_cut(tmp_path):
    from random_qwen import random_qwen_pipeline

    random_qwen_pipeline().save_pretrained(tmp_path)
    recipe, shape = _tiny(str(tmp_path), {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}), Shape(2, 64, 64)
    kept = MemoryModel(recipe, CPU, "fp32").activations(shape).kept
    assert kept == pytest.approx(kept_by_autograd(recipe, shape, caption="word " * 600), rel=0.2)
    assert kept > 2 * kept_by_autograd(recipe, shape)


def test_text_encoders_that_train_stay_on_the_device_and_count_as_trained(unet):
    shape = Shape(2, 32, 32)
    adapter = {"kind": "lora", "rank": 4, "alpha": 8}
    frozen = MemoryModel(unet(adapter=adapter), CUDA, "fp32").parts(shape)
    live = {"path": "d", "cache_text": False}
    parts = MemoryModel(unet(adapter={**adapter, "text_encoders": {}}, data=live), CUDA, "fp32").parts(shape)
    assert "text encoders and autoencoder" not in frozen and "text encoders and autoencoder" in parts
    assert parts["adapter"] > frozen["adapter"] and parts["frozen backbone"] == frozen["frozen backbone"]


def test_what_lets_the_encoders_leave_the_device(unet):
    live = {"path": "d", "cache_text": False}
    assert offload_setting(unet(adapter={"kind": "lora", "rank": 4, "text_encoders": {}}, data=live)) is None
    for data, key in (
        (live, "data.cache_text"), ({"path": "d", "cache": False}, "data.cache"),
        ({**live, "caption_shuffle": True}, "data.caption_variants"),
    ):  # fmt: skip
        assert offload_setting(unet(data=data)) == f"memory.offload_encoders=true with {key}"


def test_a_key_that_the_model_does_not_read_is_an_error_before_any_weight_is_loaded(unet):
    with pytest.raises(ConfigError, match="granularity_shift is not read"):
        MemoryModel(unet(time={"granularity_shift": {"macro": 1.0}}), CPU, "fp32").parts(Shape(1, 32, 32))


def test_peak_is_above_what_is_kept_and_checkpointing_lowers_both(tiny):
    shape = Shape(8, 128, 128)
    plain, checkpointed = (
        MemoryModel(tiny(memory={"gradient_checkpointing": on}), CPU, "fp32").activations(shape) for on in (False, True)
    )
    assert plain.peak > plain.kept and checkpointed.peak > checkpointed.kept
    assert checkpointed.kept < 0.2 * plain.kept and checkpointed.peak < 0.9 * plain.peak


def test_switches_say_what_the_switched_forecast_says(tiny):
    def build(**sections):  # a rank whose moments are large enough for 8 bits
        return tiny(adapter={"kind": "lora", "rank": 32, "alpha": 8}, **sections)

    shape = Shape(8, 128, 128)
    base = MemoryModel(build(), CUDA, "fp32").forecast(shape)
    saved = dict(base.switches)
    changed = {
        "memory.gradient_checkpointing=true": (build(memory={"gradient_checkpointing": True}), "fp32", shape),
        "precision=bf16": (build(), "bf16", shape),
        "optimizer.name=adamw8bit": (build(optimizer={"name": "adamw8bit"}), "fp32", shape),
        "tuples.micro_batch=1": (build(), "fp32", Shape(1, 128, 128)),
        "memory.quantize=nf4": (build(memory={"quantize": "nf4"}), "fp32", shape),
    }
    assert changed.keys() <= saved.keys()
    for name, (recipe, precision, at) in changed.items():
        assert base.total - sum(MemoryModel(recipe, CUDA, precision).parts(at).values()) == saved[name], name
    assert list(saved.values()) == sorted(saved.values(), reverse=True)


def test_parts_follow_the_recipe(tiny):
    shape = Shape(2, 128, 128)
    cached = MemoryModel(tiny(ema={"decay": 0.9}), CUDA, "fp32").parts(shape)
    assert "text encoders and autoencoder" not in cached
    assert cached["moving average"] == cached["adapter"] == cached["gradients"]
    live = MemoryModel(tiny(data={"path": "d", "cache": False}), CUDA, "fp32").parts(shape)
    assert live["text encoders and autoencoder"] > 2**20
    on_cpu = MemoryModel(tiny(), CPU, "fp32").parts(shape)
    assert "text encoders and autoencoder" in on_cpu and "CUDA context (a usual value)" not in on_cpu


@pytest.fixture(scope="module")
def flux_dev(tmp_path_factory):
    """The configuration files of FLUX.1-dev, without weights, with the bundle's tokenizers."""
    folder, bundle = tmp_path_factory.mktemp("flux-dev"), Path(resolve_model("tiny-flux"))
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(bundle / part, folder / part)
    shutil.copy(bundle / "model_index.json", folder)
    tokenizer = folder / "tokenizer_2" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "model_max_length": 512}))
    changes = {
        "transformer": {
            "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "joint_attention_dim": 4096,
            "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "pooled_projection_dim": 768,
        },
        "vae": {
            "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "mid_block_add_attention": True,
            "norm_num_groups": 32, "sample_size": 1024,
        },
        "text_encoder": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "projection_dim": 768, "vocab_size": 49408,
        },
        "text_encoder_2": {
            "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
        },
    }  # fmt: skip
    for part, values in changes.items():
        (folder / part).mkdir()
        config = json.loads((bundle / part / "config.json").read_text())
        (folder / part / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def test_flux_dev_is_counted_without_weights(flux_dev):
    family = load_skeleton(str(flux_dev), None, torch.bfloat16)
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in family.components().items()}
    assert count["transformer"] == 11_901_408_320
    encoders = {name: sum(p.numel() for p in m.parameters()) for name, m in family.encoders().items()}
    assert encoders["text_encoder_2"] == 4_762_310_656 and encoders["vae"] == 83_819_683
    assert all(p.is_meta for p in family.components()["transformer"].parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "limit"), [
    ("flux-24gb", Shape(1, 1024, 1024), 24), ("flux-80gb", Shape(4, 1280, 1280), 80),
])  # fmt: skip
def test_ready_recipes_fit_their_cards(flux_dev, name, shape, limit):
    recipe = packaged(name, f"model.path={flux_dev}")
    total = MemoryModel(recipe, CUDA, "bf16").forecast(shape).total / 2**30
    assert 0.2 * limit < total < 0.9 * limit


def packaged(name, *overrides):
    return load_config(Recipe, find_recipe(name), ["data.path=somewhere", *overrides])[0]


def test_ready_recipes_differ_from_the_papers_in_memory_alone():
    paper = packaged("flux-dev-granularity")
    for name in ("flux-24gb", "flux-80gb"):
        recipe = packaged(name)
        for section in ("model", "adapter", "time", "schedule", "budget", "clip", "seed"):
            assert getattr(recipe, section) == getattr(paper, section)
        assert recipe.tuples.batch_size == paper.tuples.batch_size == 8


def test_weights_that_train_are_not_to_be_quantised(tiny):
    shape = Shape(1, 64, 64)
    switches = dict(MemoryModel(tiny(adapter={"kind": "full"}), CUDA, "fp32").forecast(shape).switches)
    assert "memory.gradient_checkpointing=true" in switches and not any("quantize" in name for name in switches)
    assert any("quantize" in name for name, _ in MemoryModel(tiny(), CUDA, "fp32").forecast(shape).switches)


@pytest.mark.parametrize("bits", ["int8", "fp8"])
def test_eight_bits_without_checkpointing_is_an_error(bits):
    with pytest.raises(ConfigError, match="saves nothing without memory"):
        packaged("tiny-flux-granularity", f"memory.quantize={bits}")


def test_offloading_encoders_that_every_update_uses_is_an_error():
    with pytest.raises(ConfigError, match=r"memory\.offload_encoders .* data\.cache is false"):
        packaged("tiny-flux-granularity", "memory.offload_encoders=true", "data.cache=false")


def test_encoders_leave_an_accelerator_once_cached():
    assert MemoryConfig().offloads(True, CUDA) and not MemoryConfig().offloads(False, CUDA)
    assert not MemoryConfig(offload_encoders=False).offloads(True, CUDA) and not MemoryConfig().offloads(True, CPU)


def test_dry_run_says_how_captions_are_encoded(recipe):
    def line(**changes):
        config = recipe(data={**recipe().data.model_dump(mode="json"), **changes})
        return caption_line(config, open_dataset(config.data, 16))

    assert line() == "text: 12 captions are encoded once and kept"
    assert line(caption_dropout=0.1) == "text: 13 captions are encoded once and kept"
    assert line(caption_shuffle=True, cache_text=False).startswith("text: captions are encoded in every update")


def test_dry_run_prints_the_parts_and_the_switches(recipe):
    text = forecast(recipe())
    assert "memory: " in text and "frozen backbone" in text and "optimizer state (adamw)" in text
    assert "memory.gradient_checkpointing=true would save" in text
