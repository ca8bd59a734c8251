import json

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import CheckpointError, ConfigError, ModelError
from flowgrain.families.registry import resolve_model

KINDS = ("lora", "dora")
SMALL = ["single_transformer_blocks.*.attn.to_q", "ff.net.2"]


def small(kind="dora", rank=4, alpha=3.0, **options):
    return AdapterConfig(kind=kind, rank=rank, alpha=alpha, targets=SMALL, **options)


def predict(family, batch):
    with torch.no_grad():
        return family.predict(*batch).prediction


def train(family, adapter, batch, steps=3, lr=5e-3):
    """A few steps towards a fixed random target, through everything that is trainable."""
    target = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(9))
    optimizer = torch.optim.AdamW([parameter for _, parameter in adapter.parameters()], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (family.predict(*batch).prediction - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit_and_trains_in_float32(flux, batch, kind, dtype):
    transformer = flux.components()["transformer"].to(dtype)
    x, t, conditioning = batch
    batch = (x, t, type(conditioning)({k: v.to(dtype) for k, v in conditioning.tensors.items()}))
    before = predict(flux, batch)
    adapter = inject(flux, AdapterConfig(kind=kind, rank=8), seed=1)
    assert torch.equal(predict(flux, batch), before)
    assert {parameter.dtype for _, parameter in adapter.parameters()} == {torch.float32}
    trainable = {id(parameter) for parameter in transformer.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for _, parameter in adapter.parameters()}
    adapter.remove()
    transformer.to(torch.float32)


def test_the_default_is_the_papers_dora_on_all_blocks(flux):
    adapter = inject(flux, AdapterConfig(), seed=0)
    assert (adapter.config.kind, adapter.config.rank, adapter.config.alpha) == ("dora", 32, 16.0)
    # 2 double blocks of 12 linears, 5 single blocks of 5; A, B and m each; the prototype's count (spec bundle)
    assert len(adapter.parameters()) == 3 * (2 * 12 + 5 * 5)
    assert sum(parameter.numel() for _, parameter in adapter.parameters()) == 979_200


def test_initial_values_depend_on_the_seed_and_the_layer_alone(flux):
    first = inject(flux, small(), seed=7)
    states = [first.state_dict()]
    first.remove()
    torch.manual_seed(123)
    fewer = inject(flux, small().model_copy(update={"targets": SMALL[:1]}), seed=7)
    states.append(fewer.state_dict())
    fewer.remove()
    states.append(inject(flux, small(), seed=8).state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    downs = [name for name in states[0] if "lora_A" in name]
    assert not any(torch.equal(states[0][name], states[2][name]) for name in downs)
    assert not torch.equal(states[0][downs[0]], states[0][downs[1]])
    bound = states[0][downs[0]].shape[1] ** -0.5
    assert 0.9 * bound < states[0][downs[0]].abs().max() <= bound


def test_injection_leaves_the_global_generator_alone(flux):
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    with torch.random.fork_rng():
        inject(flux, small(), seed=7)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapter_in_the_ordinary_pipeline_draws_the_live_picture(flux, batch, tmp_path, kind):
    adapter = inject(flux, AdapterConfig(kind=kind, rank=4, alpha=3.0), seed=1)  # alpha != rank
    train(flux, adapter, batch)
    adapter.save(tmp_path, {"flowgrain.run": "test"})
    latents = flux.pipeline_latents(torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2)))
    call = {"prompt": "a fox", "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "np"}
    call = {**call, **flux.pipeline_options()}
    live = flux.pipeline()(latents=latents, **call).images
    with adapter.enabled(False):
        base = flux.pipeline()(latents=latents, **call).images
    plain = FluxPipeline.from_pretrained(resolve_model("tiny-flux"), dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(tmp_path)
    loaded = plain(latents=latents, **call).images
    assert abs(live - base).max() > 0.05  # the adapter does something
    assert abs(live - loaded).max() < 1e-5  # and the file holds all of it: far below one grey level of 255
    configured = plain.transformer.peft_config["default_0"]
    assert (configured.r, configured.lora_alpha, configured.use_dora) == (4, 3.0, kind == "dora")


@pytest.mark.parametrize("kind", KINDS)
def test_the_familys_own_pipeline_loads_a_saved_adapter(flux, batch, tmp_path, kind):
    adapter = inject(flux, small(kind), seed=1)
    train(flux, adapter, batch)
    live = predict(flux, batch)
    adapter.save(tmp_path, {})
    with pytest.raises(ModelError, match="carries an adapter already"):
        flux.pipeline(tmp_path)
    adapter.remove()
    pipe = flux.pipeline(tmp_path)
    torch.testing.assert_close(predict(flux, batch), live, rtol=1e-4, atol=1e-5)
    pipe.unload_lora_weights()


def test_an_adapter_folder_that_is_none_is_one_clear_line(flux, tmp_path):
    with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a Flux adapter[^\n]*$"):
        flux.pipeline(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_predict_as_the_live_adapter_and_removal_restores_the_base(flux, batch, kind):
    before = predict(flux, batch)
    adapter = inject(flux, small(kind), seed=1)
    train(flux, adapter, batch)
    live = predict(flux, batch)
    state = adapter.state_dict()
    adapter.remove()
    assert torch.equal(predict(flux, batch), before)
    again = inject(flux, small(kind), seed=2)
    again.load_state_dict(state)
    assert torch.equal(predict(flux, batch), live)
    again.merge()
    assert (live - before).abs().max() > 1e-2
    torch.testing.assert_close(predict(flux, batch), live, rtol=1e-4, atol=1e-5)
    transformer = flux.components()["transformer"]
    assert not any("lora" in name for name in transformer.state_dict())
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


def test_enabled_switches_and_nests(flux, batch):
    before = predict(flux, batch)
    adapter = inject(flux, small(), seed=1)
    train(flux, adapter, batch)
    live = predict(flux, batch)
    with adapter.enabled(False):
        assert torch.equal(predict(flux, batch), before)
        with adapter.enabled(True):
            assert torch.equal(predict(flux, batch), live)
        assert torch.equal(predict(flux, batch), before)
    assert torch.equal(predict(flux, batch), live)
    assert all(parameter.requires_grad for _, parameter in adapter.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_moves_dora_magnitudes_too(flux, batch, kind):
    adapter = inject(flux, AdapterConfig(kind=kind, rank=4), seed=1)
    before = adapter.state_dict()
    train(flux, adapter, batch, steps=2)
    after = adapter.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still
    assert any("lora_magnitude_vector" in name for name in before) == (kind == "dora")


def test_dora_is_the_formula_of_the_specification(flux):
    """Spec e.5: m (W + s B A) / |W + s B A| by rows."""
    adapter = inject(flux, small(rank=1, alpha=0.5), seed=0)
    layer = flux.components()["transformer"].single_transformer_blocks[0].attn.to_q
    base = layer.get_base_layer()
    with torch.no_grad():
        base.weight.zero_()[:, 2:].fill_diagonal_(1.0)  # other rows keep a direction
        base.weight[:2, :] = 0.0
        base.weight[:2, :2] = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        base.bias.zero_()
        own = dict(adapter.parameters())
        prefix = "transformer.single_transformer_blocks.0.attn.to_q"
        own[f"{prefix}.lora_A.weight"].zero_()[0, :2] = torch.tensor([1.0, -1.0])
        own[f"{prefix}.lora_B.weight"].zero_()[:2, 0] = torch.tensor([0.5, 1.0])
        own[f"{prefix}.lora_magnitude_vector"][:2] = torch.tensor([5.0, 2.0])
        effective = layer(torch.eye(base.in_features)[:2]).T[:2]
    expected = torch.tensor([[3.2747, 3.7784], [0.6325, 1.8974]])
    torch.testing.assert_close(effective, expected, rtol=0, atol=5e-5)


def test_dora_gradient_treats_the_norm_as_constant(flux):
    """The gradient of m V / stopgrad(|V|), V = W + s B A (DoRA, section 4.3)."""
    adapter = inject(flux, small(rank=2, alpha=1.0), seed=0)
    layer = flux.components()["transformer"].single_transformer_blocks[0].attn.to_q
    prefix = "transformer.single_transformer_blocks.0.attn.to_q"
    own = dict(adapter.parameters())
    down, up = own[f"{prefix}.lora_A.weight"], own[f"{prefix}.lora_B.weight"]
    magnitude = own[f"{prefix}.lora_magnitude_vector"]
    with torch.no_grad():
        up.normal_(generator=torch.Generator().manual_seed(1), std=0.05)
    x = torch.randn(3, down.shape[1], generator=torch.Generator().manual_seed(2))
    layer(x).square().sum().backward()
    theirs = [parameter.grad.clone() for parameter in (down, up, magnitude)]
    base = layer.get_base_layer()
    direction = base.weight + 0.5 * up @ down
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True).detach()
    ours = torch.autograd.grad((x @ weight.T + base.bias).square().sum(), (down, up, magnitude))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_file_names_rank_alpha_and_the_variant_of_dora(flux, tmp_path):
    adapter = inject(flux, small(), seed=1)
    adapter.save(tmp_path / "new", {"flowgrain.run": "fox"})
    assert [path.name for path in (tmp_path / "new").iterdir()] == [WEIGHTS_NAME]
    with safe_open(tmp_path / "new" / WEIGHTS_NAME, framework="pt") as file:
        header = file.metadata()
        assert set(file.keys()) == set(adapter.state_dict())
    described = json.loads(header["lora_adapter_metadata"])
    assert (described["transformer.r"], described["transformer.lora_alpha"]) == (4, 3.0)
    assert (header["flowgrain.run"], header["dora.norm_axis"], header["dora.detach_norm"]) == ("fox", "output", "true")


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_restore_every_bit(flux, batch, tmp_path, kind):
    adapter = inject(flux, small(kind), seed=1)
    train(flux, adapter, batch)
    saved = adapter.state_dict()
    adapter.save(tmp_path, {})
    train(flux, adapter, batch)
    adapter.load(tmp_path)
    assert all(torch.equal(saved[name], tensor) for name, tensor in adapter.state_dict().items())
    assert list(saved) == [name for name, _ in adapter.parameters()]


def test_loading_what_does_not_fit_is_refused_with_names(flux, tmp_path):
    adapter = inject(flux, small(), seed=1)
    state = adapter.state_dict()
    name = next(iter(state))
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        adapter.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(CheckpointError, match="unexpected other"):
        adapter.load_state_dict({**state, "other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(2, 2\)"):
        adapter.load_state_dict({**state, name: torch.zeros(2, 2)})
    adapter.save(tmp_path, {})
    adapter.remove()
    with pytest.raises(CheckpointError, match=r"lora_alpha is 3\.0 there and 5\.0 in this run"):
        inject(flux, small(alpha=5.0), seed=1).load(tmp_path)


def test_damaged_or_foreign_files_are_refused(flux, tmp_path):
    adapter = inject(flux, small(), seed=1)
    with pytest.raises(CheckpointError, match="cannot be read as an adapter"):
        adapter.load(tmp_path)
    adapter.save(tmp_path, {})
    path = tmp_path / WEIGHTS_NAME
    save_file(load_file(path), tmp_path / "no_header.safetensors")
    (tmp_path / "no_header.safetensors").replace(path)
    with pytest.raises(CheckpointError, match="r is None there and 4 in this run"):
        adapter.load(tmp_path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as an adapter"):
        adapter.load(tmp_path)


def test_a_rank_above_the_smallest_side_is_refused_with_the_limit(flux):
    with pytest.raises(ConfigError, match=r"adapter\.rank: 193 is more than 192, the smallest side of transformer_bl"):
        inject(flux, AdapterConfig(rank=193), seed=0)


def test_unknown_targets_and_components_name_what_there_is(flux):
    with pytest.raises(
        ConfigError, match=r"'attn\.to_qq' names no linear layer or convolution; did you mean 'attn\.to_q'"
    ):
        inject(flux, AdapterConfig(targets=["attn.to_qq"]), seed=0)
    with pytest.raises(ConfigError, match="'norm_q' names no linear layer"):
        inject(flux, AdapterConfig(targets=["norm_q"]), seed=0)
    with pytest.raises(ConfigError, match="component: 'unet' is unknown; remove it, or say transformer"):
        inject(flux, AdapterConfig(component="unet"), seed=0)


def test_a_second_adapter_is_refused(flux):
    inject(flux, small(), seed=0)
    with pytest.raises(ConfigError, match="carries an adapter already"):
        inject(flux, small(), seed=0)


def test_dora_refuses_zero_rows_which_have_no_direction(flux):
    weight = flux.components()["transformer"].single_transformer_blocks[2].attn.to_q.weight
    with torch.no_grad():
        weight[5] = 0
    with pytest.raises(ConfigError, match=r"1 of 192 rows of single_transformer_blocks\.2\.attn\.to_q are zero"):
        inject(flux, small(), seed=0)
    inject(flux, small("lora"), seed=0)


def test_dropout_acts_in_training_and_not_in_evaluation(flux, batch):
    adapter = inject(flux, small("lora", dropout=0.5), seed=0)
    train(flux, adapter, batch)
    assert not torch.equal(predict(flux, batch), predict(flux, batch))
    adapter.train(False)
    assert torch.equal(predict(flux, batch), predict(flux, batch))


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_gives_the_same_gradient_taps_included(flux, batch, autocast):
    adapter = inject(flux, small(), seed=0)
    train(flux, adapter, batch)
    transformer, tap = flux.components()["transformer"], "single_transformer_blocks.1"
    gradients = []
    for checkpointing in (False, True):
        (transformer.enable_gradient_checkpointing if checkpointing else transformer.disable_gradient_checkpointing)()
        for _, parameter in adapter.parameters():
            parameter.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = flux.predict(*batch, (tap,))
        (output.prediction.float().square().mean() + output.taps[tap].float().square().mean()).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for _, parameter in adapter.parameters()]))
    transformer.disable_gradient_checkpointing()
    relative = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert relative < (0.02 if autocast else 1e-6)
