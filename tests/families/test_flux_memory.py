"""Gradient checkpointing, compilation, offloaded encoders, quantised weights and models without weights."""

import shutil
import sys

import pytest
import torch
from random_flux import random_flux
from torch import nn

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.families.base import ConditionInputs, TextEmbedding
from flowgrain.families.offload import EncoderOffload
from flowgrain.families.quantization import quantize_linears, quantized_bytes
from flowgrain.families.registry import load_family, load_skeleton

CPU = torch.device("cpu")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(family):
    width = family.components()["transformer"].config.joint_attention_dim
    pooled = family.components()["transformer"].config.pooled_projection_dim
    embedding = TextEmbedding({"prompt_embeds": noise(2, 5, width), "pooled_prompt_embeds": noise(2, pooled)})
    return family.condition(ConditionInputs(None, embedding, 1.0))


def adapted(family, kind="lora"):
    """Trainable parameters of an adapter away from its start, where all of them have gradients."""
    adapter = inject(family, AdapterConfig(kind=kind, rank=4, alpha=4), 0)
    for index, (_, parameter) in enumerate(adapter.parameters()):
        parameter.data.add_(0.05 * noise(*parameter.shape, seed=index))
    return adapter.parameters()


def run(family, parameters, autocast=False):
    """Prediction and gradients of one forward and backward pass."""
    for _, parameter in parameters:
        parameter.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        prediction = family.predict(noise(2, 4, 6, 8), torch.tensor([[0.3], [0.8]]), conditioning(family)).prediction
    prediction.float().square().mean().backward()
    return prediction.detach().float(), [parameter.grad.clone() for _, parameter in parameters]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_checkpointing_gives_the_same_gradients_bit_for_bit(kind):
    family = random_flux()
    parameters = adapted(family, kind)
    reference, gradients = run(family, parameters)
    family.gradient_checkpointing(True)
    passes = []
    family.blocks()[0].register_forward_pre_hook(lambda *_: passes.append(1))
    prediction, checkpointed = run(family, parameters)
    assert len(passes) == 2  # forward, and again in the backward pass
    assert torch.equal(prediction, reference)
    assert all(torch.equal(a, b) for a, b in zip(gradients, checkpointed, strict=True))
    family.gradient_checkpointing(False)
    run(family, parameters)
    assert len(passes) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiled_blocks_are_equal_to_rounding():
    family = random_flux()
    parameters = adapted(family)
    reference, gradients = run(family, parameters)
    family.compile()
    assert all(block._compiled_call_impl is not None for block in family.blocks())
    prediction, compiled = run(family, parameters)
    torch.testing.assert_close(prediction, reference, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_bf16_weights_under_autocast_train_a_float32_adapter():
    family = random_flux()
    family.components()["transformer"].to(torch.bfloat16)
    parameters = adapted(family)
    assert {parameter.dtype for _, parameter in parameters} == {torch.float32}
    prediction, gradients = run(family, parameters, autocast=True)
    full = random_flux()
    reference, exact = run(full, adapted(full))
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)
    assert (prediction - reference).norm() < 0.03 * reference.norm()
    one, other = (torch.cat([g.flatten() for g in group]) for group in (gradients, exact))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


def test_blocks_and_encoders_are_named_in_running_order():
    family = random_flux()
    assert [type(block).__name__ for block in family.blocks()] == ["FluxTransformerBlock"] + 2 * [
        "FluxSingleTransformerBlock"
    ]
    assert list(family.encoders()) == ["text_encoder", "text_encoder_2", "vae"]


def test_offloaded_encoders_give_the_same_bits():
    family = random_flux()
    pixels = noise(2, 3, 16, 24).clamp(-1, 1)

    def everything():
        text = family.embed_text(["a fox"]).tensors
        picture = family.decode(noise(1, 4, 8, 8))
        return [*text.values(), family.encode_pixels(pixels).mean, picture, sample(family)]

    before = everything()
    family.offload_encoders()
    family.offload_encoders()  # again is no error
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))


def sample(family):
    options = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "pt"}
    latents = family.pipeline_latents(noise(1, 4, 8, 8))
    return family.pipeline()(["a fox"], latents=latents, **options, **family.pipeline_options()).images


def test_offloaded_encoders_come_when_called_and_go_back(monkeypatch):
    """Devices are recorded, not used: where a module is told to go, in order."""
    family, moves = random_flux(), []
    names = {id(module): name for name, module in family.encoders().items()}
    genuine = nn.Module.to

    def record(self, *args, **kwargs):
        if id(self) in names:
            moves.append((names[id(self)], str(args[0])))
        return genuine(self, CPU) if id(self) in names else genuine(self, *args, **kwargs)

    for kind in {type(module) for module in family.encoders().values()}:
        monkeypatch.setattr(kind, "to", record)
    offload = EncoderOffload(list(family.encoders().values()), torch.device("cpu", 0))
    family._offload = offload
    offload.park()
    moves.clear()
    family.embed_text(["a fox"])
    here = [move for move in moves if move[1] == "cpu:0"]
    assert here == [("text_encoder", "cpu:0"), ("text_encoder_2", "cpu:0")]
    assert {name for name, place in moves[-3:] if place == "cpu"} == set(names.values())
    moves.clear()
    family.decode(noise(1, 4, 8, 8))
    assert ("vae", "cpu:0") in moves and moves[-1][1] == "cpu"


def test_pipeline_of_a_model_with_offloaded_encoders_runs_on_the_models_device():
    family = random_flux()
    family.offload_encoders()
    assert family.pipeline()._execution_device == family.device


def dense_bytes(blocks):
    return sum(p.numel() * p.element_size() for block in blocks for p in block.parameters())


@pytest.mark.parametrize(("bits", "package", "error"), [
    ("int8", "torchao", 0.02), ("fp8", "torchao", 0.06), ("nf4", "bitsandbytes", 0.2),
])  # fmt: skip
def test_quantised_weights_are_close_and_train_an_adapter(small_flux, bits, package, error):
    pytest.importorskip(package)
    exact, family = (load_family(str(small_flux), None, torch.float32, CPU, quantization=q) for q in ("none", bits))
    times, x = torch.tensor([[0.3], [0.8]]), noise(2, 16, 4, 6)
    with torch.no_grad():
        one, other = (model.predict(x, times, conditioning(model)).prediction for model in (exact, family))
    assert 0 < (one - other).norm() < error * one.norm()
    parameters = adapted(family)
    family.gradient_checkpointing(True)
    family.predict(x, times, conditioning(family)).prediction.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in parameters)
    # layers outside the blocks keep their dtype
    assert family.components()["transformer"].x_embedder.weight.dtype == torch.float32


def test_nf4_takes_the_bytes_of_the_forecast(small_flux):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    blocks = load_family(str(small_flux), None, torch.float32, CPU).blocks()
    expected = dense_bytes(blocks) - quantized_bytes(blocks, "nf4")
    quantize_linears(blocks, "nf4", CPU)
    packed = [m for block in blocks for m in block.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    scales = [t for m in packed for t in m.weight.quant_state.as_dict(packed=False).values() if torch.is_tensor(t)]
    tables = 16 * 4 + 256 * 4  # the code books, which all layers share in value but not in memory
    extra = sum(t.numel() * t.element_size() for t in scales) - tables * len(packed)
    assert dense_bytes(blocks) + extra == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("bits", "package"), [("int8", "torchao"), ("fp8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_names_the_extra(monkeypatch, bits, package):
    for module in [m for m in sys.modules if m.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"memory.quantize '{bits}' needs {package}.*flowgrain\[gpu\]"):
        quantize_linears(random_flux().blocks(), bits, CPU)


def test_a_skeleton_has_the_shapes_and_no_values(small_flux):
    real, skeleton = (
        load_family(str(small_flux), None, torch.bfloat16, CPU),
        load_skeleton(str(small_flux), None, torch.bfloat16),
    )
    for kind in ("components", "encoders"):
        for name, module in getattr(real, kind)().items():
            other = getattr(skeleton, kind)()[name]
            shapes = {key: (value.shape, value.dtype) for key, value in module.named_parameters()}
            assert shapes == {key: (value.shape, value.dtype) for key, value in other.named_parameters()}, name
            assert all(parameter.is_meta for parameter in other.parameters())
    assert skeleton.tokens(64, 64) == real.tokens(64, 64) and skeleton.capabilities == real.capabilities


def test_a_skeleton_without_configuration_is_one_clear_error(small_flux, tmp_path):
    broken = shutil.copytree(small_flux, tmp_path / "broken")
    (broken / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match="its configuration cannot be read"):
        load_skeleton(str(broken), None, torch.float32)
