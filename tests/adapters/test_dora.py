"""Our DoRA against peft's, and the row-norm identity against W + s B A itself."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.dora import SHORTEST, FactoredDora, factored_row_norms, row_squares
from flowgrain.adapters.lora import ADAPTER_NAME
from flowgrain.adapters.low_rank import inject

TARGETS = ["single_transformer_blocks.*.attn.to_q", "ff.net.2", "norm1.linear"]


def layers(family):
    modules = family.components()["transformer"].named_modules()
    return {name: module for name, module in modules if hasattr(module, "lora_variant")}


def peft_twin(family, config):
    """A copy of the family whose adapter, with the same values, runs peft's own forward pass."""
    twin = copy.deepcopy(family)
    adapter = inject(twin, config, seed=0)
    for layer in layers(twin).values():
        layer.lora_variant[ADAPTER_NAME] = DoraLinearVariant()
    return twin, adapter


def disturb(adapter, scale=0.05):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))


def gradients(family, adapter, batch):
    for _, parameter in adapter.parameters():
        parameter.grad = None
    output = family.predict(*batch).prediction
    output.square().mean().backward()
    return output.detach(), [parameter.grad for _, parameter in adapter.parameters()]


def close(ours, theirs, tolerance):
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 8),
    scaling=st.floats(0.01, 20),
    size=st.floats(1e-3, 10),
    seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_identity_gives_the_rows_lengths(rows, columns, rank, scaling, size, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    down = torch.randn(rank, columns, generator=generator)
    up = torch.randn(rows, rank, generator=generator) * size
    norms = factored_row_norms(weight, row_squares(weight), down, up, scaling)
    update = scaling * up.double() @ down.double()
    expected = torch.linalg.norm(weight.double() + update, dim=1)
    terms = weight.double().square().sum(1) + (scaling * up.double().abs() @ down.double().abs()).square().sum(1)
    floor = SHORTEST * torch.linalg.norm(weight.double(), dim=1)
    clear = expected > 2 * floor
    condition = terms / expected.square()
    assert ((norms - expected).abs() / expected <= 1e-6 * condition)[clear].all()
    assert (norms >= 0.999 * floor).all() and norms.dtype == torch.float32


def test_a_row_that_the_update_cancels_counts_as_the_limit():
    weight = torch.tensor([[3.0, 4.0, 0.0], [1.0, 2.0, 2.0]])
    down = torch.tensor([[0.6, 0.8, 0.0]])
    up = torch.tensor([[-5.0], [0.0]])  # first row: W + B A = 0
    norms = factored_row_norms(weight, row_squares(weight), down, up, 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0 * SHORTEST, 3.0]))


def test_large_weights_are_read_in_blocks_of_rows(monkeypatch):
    weight = torch.randn(37, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    down, up = torch.randn(2, 16), torch.randn(37, 2)
    whole = factored_row_norms(weight, row_squares(weight), down, up, 0.5)
    monkeypatch.setattr("flowgrain.adapters.dora._CHUNK", 48)
    blocks = factored_row_norms(weight, row_squares(weight), down, up, 0.5)
    torch.testing.assert_close(blocks, whole)


def test_outputs_and_gradients_are_pefts(flux, batch):
    config = AdapterConfig(rank=4, alpha=3.0, targets=TARGETS)
    twin, theirs = peft_twin(flux, config)
    ours = inject(flux, config, seed=0)
    for adapter in (ours, theirs):
        disturb(adapter)
    one, our_gradients = gradients(flux, ours, batch)
    other, their_gradients = gradients(twin, theirs, batch)
    close([one, *our_gradients], [other, *their_gradients], 2e-5)
    assert type(next(iter(layers(flux).values())).lora_variant[ADAPTER_NAME]) is FactoredDora


def test_training_takes_pefts_path(flux, batch):
    """Several steps of SGD: a stale norm after a step would show."""
    config = AdapterConfig(rank=4, alpha=3.0, targets=TARGETS)
    twin, theirs = peft_twin(flux, config)
    ours = inject(flux, config, seed=0)
    for family, adapter in ((flux, ours), (twin, theirs)):
        disturb(adapter, 0.01)
        optimizer = torch.optim.SGD([parameter for _, parameter in adapter.parameters()], lr=1.0)
        for _ in range(4):
            gradients(family, adapter, batch)
            optimizer.step()
    moved = ours.state_dict()
    close(list(moved.values()), list(theirs.state_dict().values()), 1e-4)


def one_layer(weight_dtype=torch.float32, bias=True, dropout=0.0):
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16, bias=bias)).to(weight_dtype).requires_grad_(False)
    peft_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, use_dora=True, target_modules=["0"])
    model = inject_adapter_in_model(peft_config, model, ADAPTER_NAME)
    layer = model[0]
    for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
        for parameter in part.parameters():
            parameter.data = parameter.data.float()
    with torch.no_grad():
        layer.lora_B[ADAPTER_NAME].weight.normal_(std=0.1)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_layer_is_pefts_with_and_without_dropout(bias, dropout):
    theirs = one_layer(bias=bias, dropout=dropout)
    ours = copy.deepcopy(theirs)
    ours.lora_variant[ADAPTER_NAME] = FactoredDora()
    results = []
    for layer in (ours, theirs):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(7)  # the same dropout
        layer(x).sin().sum().backward()
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        results.append([x.grad, *(parameter.grad for parameter in trained)])
    close(results[0], results[1], 1e-5)
    assert len(results[0]) == 4


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_weights_agree_to_their_rounding(autocast):
    theirs = one_layer(torch.bfloat16)
    ours = copy.deepcopy(theirs)
    ours.lora_variant[ADAPTER_NAME] = FactoredDora()
    outputs, trained = [], []
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    for layer in (ours, theirs):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = layer(x)
        assert output.dtype == torch.bfloat16
        output.float().square().sum().backward()
        outputs.append(output.detach().float())
        trained.append([parameter.grad for parameter in layer.parameters() if parameter.requires_grad])
    close(outputs[:1], outputs[1:], 6e-3)
    close(trained[0], trained[1], 1e-2)


class SilentOptimizer(torch.optim.Optimizer):
    """Writes through ``.data``: the parameters' version counters stay as they were."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(1.5)


def exact_norms(layer):
    update = layer.scaling[ADAPTER_NAME] * layer.lora_B[ADAPTER_NAME].weight @ layer.lora_A[ADAPTER_NAME].weight
    return torch.linalg.norm(layer.get_base_layer().weight + update, dim=1).detach()


def test_norms_are_kept_within_an_update_and_renewed_after_any_change(monkeypatch):
    layer, dora = one_layer(), FactoredDora()
    computed = []
    monkeypatch.setattr(
        "flowgrain.adapters.dora.factored_row_norms",
        lambda *arguments: computed.append(1) or factored_row_norms(*arguments),
    )

    def check(times):
        torch.testing.assert_close(dora.row_norms(layer, ADAPTER_NAME), exact_norms(layer))
        assert len(computed) == times

    check(1)
    check(1)
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    version = up._version
    SilentOptimizer([down, up]).step()
    assert up._version == version
    check(2)
    with torch.no_grad():
        up.mul_(0.5)
    check(3)
    with torch.no_grad():
        layer.get_base_layer().weight.mul_(2.0)
    check(4)
    layer.get_base_layer().weight.data = layer.get_base_layer().weight.data * 0.3
    check(5)
    layer.scaling[ADAPTER_NAME] *= 2
    check(6)
    for fused in (False, True):
        up.grad = torch.ones_like(up)
        torch.optim.AdamW([up], lr=0.1, fused=fused).step()
        check(8 if fused else 7)


def test_norms_of_inference_mode_do_not_reach_training():
    layer, x = one_layer(), torch.randn(3, 24)
    layer.lora_variant[ADAPTER_NAME] = FactoredDora()
    with torch.inference_mode():
        before = layer(x)
    after = layer(x)
    after.sum().backward()
    assert torch.equal(before, after.detach())


def test_a_compiled_layer_without_memory_agrees(monkeypatch):
    layer, x = one_layer(), torch.randn(3, 24)
    layer.lora_variant[ADAPTER_NAME] = FactoredDora()
    expected = layer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layer(x), expected)


def test_a_quantised_base_layer_differs_by_its_weight_alone():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    packed = bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
    model = nn.Sequential(packed).to("cpu").requires_grad_(False)
    peft_config = LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=["0"])
    layer = inject_adapter_in_model(peft_config, model, ADAPTER_NAME)[0]
    with torch.no_grad():
        layer.lora_B[ADAPTER_NAME].weight.normal_(std=0.1)
    x = torch.randn(5, 64)
    expected = layer(x)
    layer.lora_variant[ADAPTER_NAME] = FactoredDora()
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-3)
