"""What every family promises, as checks that the test modules of single families call with their own models."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowgrain.adapters.base import Adapter, AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs, TextEmbedding
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.families.loading import unload_adapter
from flowgrain.families.registry import load_family

CAPTIONS = ["a red fox", "a bowl of rice on a wooden table, close-up"]
CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioned(family: DiffusersFamily, captions: list[str] = CAPTIONS, guidance: float = 1.0):
    return family.condition(ConditionInputs(captions=captions, embedding=None, guidance=guidance))


def latent_noise(family: DiffusersFamily, height: int, width: int, rows: int = 2, seed: int = 0) -> Tensor:
    scale = family.capabilities.latent_scale
    return noise(rows, family.capabilities.latent_channels, height // scale, width // scale, seed=seed)


def backbone_calls(family: DiffusersFamily, run: Callable[[], Any]) -> list[tuple[tuple, dict, Any]]:
    """Arguments, keyword arguments and outputs of every call of the backbone while ``run`` runs."""
    calls = []
    hook = family.backbone.register_forward_hook(
        lambda _module, arguments, named, output: calls.append((arguments, named, output[0])), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


def draw(family: DiffusersFamily, latents: Tensor, **options: Any) -> tuple[Any, Any]:
    """The pipeline, and what it draws of ``latents`` (unpacked) and both captions in two steps."""
    scale = family.capabilities.latent_scale
    pipe = family.pipeline()
    call = {
        "prompt": CAPTIONS[: len(latents)], "latents": family.pipeline_latents(latents), "num_inference_steps": 2,
        "height": latents.shape[-2] * scale, "width": latents.shape[-1] * scale, "output_type": "latent",
    }  # fmt: skip
    return pipe, pipe(**{**call, **family.pipeline_options(), **options}).images


def assert_same(ours: Any, theirs: Any, name: str = "") -> None:
    """Equal, argument by argument; floating point to what a different batch of captions rounds."""
    assert type(ours) is type(theirs), name
    if isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype, name
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), name
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{name}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), name
        for index, value in enumerate(theirs):
            assert_same(ours[index], value, f"{name}[{index}]")
    else:
        assert ours == theirs, name


def check_first_call(
    family: DiffusersFamily, height: int, width: int, guidance: float, rows: int = 2, **options: Any
) -> None:
    """``predict`` gives the backbone what the pipeline's first step gives it, and the same comes out."""
    x = latent_noise(family, height, width, rows)
    theirs = backbone_calls(family, lambda: draw(family, x, **options))[0]
    level = family._pipeline.scheduler.timesteps[0].expand(rows, 1) / 1000
    conditioning = conditioned(family, CAPTIONS[:rows], guidance)
    (ours,) = backbone_calls(family, lambda: family.predict(x, level, conditioning))
    assert_same(ours, theirs)


def check_encoding(family: DiffusersFamily, height: int, width: int, reference: Callable[[Tensor, Tensor], Tensor]):
    """Latents are ``reference(mean, deviation times noise)``, whatever the batch; decoding undoes their scale."""
    pixels = noise(3, 3, height, width).clamp(-1, 1)
    together = family.encode_pixels(pixels)
    for row in range(3):
        alone = family.encode_pixels(pixels[row : row + 1])
        assert torch.equal(alone.mean[0], together.mean[row])
        assert torch.equal(alone.logvar[0], together.logvar[row])
    drawn = noise(*together.mean.shape, seed=3)
    ours = family.latents(together, drawn)
    theirs = reference(together.mean, torch.exp(0.5 * together.logvar) * drawn)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(family._denormalised(ours), family._denormalised(theirs), rtol=1e-5, atol=1e-5)
    raw = together.mean + torch.exp(0.5 * together.logvar) * drawn
    torch.testing.assert_close(family._denormalised(ours), raw, rtol=1e-4, atol=1e-5)
    assert family.decode(ours).shape == (3, 3, height, width)


def check_cached_is_live(family: DiffusersFamily) -> dict[str, Tensor]:
    """Conditioning from stacked embeddings is the captions' own, bit for bit; gives it."""
    live = conditioned(family).tensors
    rows = [family.embed_text([caption]) for caption in CAPTIONS]
    assert not any(tensor.requires_grad for row in rows for tensor in row.tensors.values())
    cached = family.condition(ConditionInputs(None, TextEmbedding.stack(rows), 1.0)).tensors
    assert live.keys() == cached.keys()
    assert all(torch.equal(live[name], cached[name]) for name in live)
    assert set(family.cut_captions(["a fox", "fox " * 3000]).lengths) == {"fox " * 3000}
    return live


def check_targets(family: DiffusersFamily, outside: tuple[str, ...], count: int) -> None:
    """Default targets are all linears of the blocks but those whose names hold a part of ``outside``."""
    from flowgrain.adapters.targets import find_targets

    found = set(find_targets(family.backbone, family.adapter_targets(family.backbone_name)))
    blocks = {id(layer) for block in family.blocks() for layer in block.modules()}
    linears = {
        name
        for name, layer in family.backbone.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) in blocks and not any(part in name for part in outside)
    }
    assert found == linears
    assert len(found) == count
    with pytest.raises(ModelError, match="no component 'vae'"):
        family.adapter_targets("vae")


@torch.no_grad()
def move(adapter: Adapter, scale: float) -> None:
    """Bring an adapter away from its start."""
    for index, (_, parameter) in enumerate(adapter.parameters()):
        parameter.add_(scale * noise(*parameter.shape, seed=index))


def check_adapter(family: DiffusersFamily, folder: Path, kind: str = "lora", **options: Any) -> None:
    """A saved adapter in the family's pipeline draws what the live one draws, and goes again without a trace."""
    x = latent_noise(family, 16, 24)
    _, base = draw(family, x, **options)
    adapter = inject(family, AdapterConfig(kind=kind, rank=2, alpha=3.0), seed=1)
    move(adapter, 0.3)
    _, live = draw(family, x, **options)
    assert (live - base).abs().max() > 1e-2
    adapter.save(folder, {"flowgrain.run": "test"})
    with pytest.raises(ModelError, match="carries an adapter already"):
        family.pipeline(folder)
    adapter.remove()
    assert torch.equal(draw(family, x, **options)[1], base)
    pipe = family.pipeline(folder)
    torch.testing.assert_close(draw(family, x, **options)[1], live, rtol=1e-3, atol=1e-4)
    unload_adapter(pipe)
    assert torch.equal(draw(family, x, **options)[1], base)


def check_loading(kind: type[DiffusersFamily], folder: Path, before: DiffusersFamily) -> None:
    """A saved model loads to the same predictions and fingerprint, and its configuration says what it can."""
    family = load_family(str(folder), kind.name, torch.float32, CPU)
    assert isinstance(family, kind)
    x, t = latent_noise(family, 16, 24), torch.tensor([[0.3], [0.8]])
    ours, theirs = (model.predict(x, t, conditioned(model)).prediction for model in (family, before))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # weights lie otherwise in memory: other kernels
    assert_same(family.backbone.state_dict(), before.backbone.state_dict())
    assert family.fingerprint() == before.fingerprint()
    assert family.capabilities == before.capabilities == kind.read_capabilities(str(folder))
    for module in (family.backbone, *family.encoders().values()):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def check_skeleton(kind: type[DiffusersFamily], folder: Path, before: DiffusersFamily) -> None:
    """Without weights: the real model's shapes of text, prediction and gradients, all on the meta device."""
    family = kind.skeleton(str(folder), torch.bfloat16)
    modules = [family.backbone, *family.encoders().values()]
    assert all(p.is_meta and p.dtype == torch.bfloat16 for module in modules for p in module.parameters())
    for ours, theirs in zip(modules, [before.backbone, *before.encoders().values()], strict=True):
        shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    embedding = family.embed_text(["a"])
    real = before.embed_text(["a"])
    described, expected = (
        {n: (t.shape, t.is_floating_point()) for n, t in e.tensors.items()} for e in (embedding, real)
    )
    assert described == expected
    conditioning = family.condition(ConditionInputs(None, TextEmbedding.stack([embedding] * 2), 1.0))
    x = latent_noise(family, 16, 24).to("meta")
    weight = next(family.backbone.parameters()).requires_grad_(True)
    prediction = family.predict(x, torch.full((2, 1), 0.5), conditioning).prediction
    assert (prediction.shape, prediction.device.type, prediction.dtype) == (x.shape, "meta", torch.bfloat16)
    prediction.sum().backward()
    assert weight.grad is not None


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def check_missing_weight(kind: type[DiffusersFamily], folder: Path, part: str, gone: str) -> None:
    """A weight that a file lacks is an error and never random numbers; ``gone`` is a part of its name."""
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    names = [name for name in sorted(state) if gone in name][:1]
    assert names
    kept = {name: tensor for name, tensor in state.items() if name not in names}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{part}: 1 weights are missing"):
        kind.load(str(folder), torch.float32, CPU)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def check_broken_files(kind: type[DiffusersFamily], folder: Path, part: str) -> None:
    """Truncated weights, pickled ones and none at all: one clear line each, and no pickle is ever executed."""
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    one_line = r"^[^\n]*cannot be loaded as a [^\n]*$"
    with pytest.raises(ModelError, match=one_line):
        kind.load(str(folder), torch.float32, CPU)
    file.unlink()
    trace = folder / "executed"
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin"):
        (folder / part / name).write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(ModelError, match=one_line):
        kind.load(str(folder), torch.float32, CPU)
    assert not trace.exists()


def check_taps(family: DiffusersFamily, names: tuple[str, ...], head: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Taps are the image tokens of the named blocks: ``head(last block's tokens, times)`` is the prediction."""
    x, t = latent_noise(family, 16, 24), torch.tensor([[0.3], [0.8]])
    conditioning = conditioned(family)
    output = family.predict(x, t, conditioning, names)
    assert list(output.taps) == list(names)
    assert {tap.shape[:2] for tap in output.taps.values()} == {(2, family.tokens(16, 24))}
    torch.testing.assert_close(head(output.taps[names[-1]], t[:, 0]), output.prediction, rtol=1e-4, atol=1e-5)
    assert torch.equal(output.prediction, family.predict(x, t, conditioning).prediction)
    assert not any(block._forward_hooks for block in family.backbone.modules())
    with pytest.raises(ModelError, match=f"{names[-1]}"):
        family.predict(x, t, conditioning, ("proj_out",))


def check_checkpointing(family: DiffusersFamily) -> None:
    """Gradient checkpointing gives the same gradients of an adapter, bit for bit."""
    x, t = latent_noise(family, 16, 24), torch.tensor([[0.3], [0.8]])
    conditioning = conditioned(family)
    adapter = inject(family, AdapterConfig(kind="lora", rank=2, alpha=2.0), seed=1)
    move(adapter, 0.1)
    gradients = []
    for enabled in (False, True):
        family.gradient_checkpointing(enabled)
        family.predict(x, t, conditioning).prediction.square().mean().backward()
        gradients.append([parameter.grad for _, parameter in adapter.parameters()])
        for _, parameter in adapter.parameters():
            parameter.grad = None
    family.gradient_checkpointing(False)
    adapter.remove()
    reached = [gradient is not None and bool(gradient.any()) for gradient in gradients[0]]
    assert sum(reached) > 0.75 * len(reached)  # what a last block makes of the text goes nowhere
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        assert plain is None or torch.equal(plain, checkpointed)
