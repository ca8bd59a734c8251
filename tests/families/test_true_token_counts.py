"""2K and 4K at their true numbers of tokens: 16384 of a 4096 px picture with an f16 autoencoder and 2x2 packing."""

import math

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from random_flux import random_flux, random_pipeline

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.families.autoencoder import set_tiling
from flowgrain.families.base import ConditionInputs
from flowgrain.families.flux import Flux
from flowgrain.families.tiled_autoencoder import TiledDecoder
from flowgrain.flow.time_laws import LinearShift
from flowgrain.sample.generate import SampleConfig, generate


def f16_flux() -> Flux:
    """One double, one single block of two heads, over an autoencoder of 16 pixels a cell."""
    pipeline = random_pipeline(num_single_layers=1)
    pipeline.register_modules(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            block_out_channels=(4,) * 5,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
            scaling_factor=0.36,
            shift_factor=0.12,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )
    )
    return Flux(pipeline, "random f16")


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(4096, 4096, 16384), (3072, 4096, 12288), (2304, 4096, 9216), (2560, 4096, 10240), (2048, 2048, 4096)],
)
def test_tokens_of_the_papers_sizes(width, height, tokens):
    assert f16_flux().tokens(height, width) == tokens


@pytest.mark.parametrize(
    ("tokens", "mu", "shift"),
    [(1024, 0.63, 1.878), (4096, 1.15, 3.158), (12288, 2.53667, 12.638), (16384, 3.23, 25.28)],
)
def test_shift_of_the_models_own_scheduler(tokens, mu, shift):
    """The numbers of specs/spatial-gram.md (g), by our law, diffusers' function and its scheduler."""
    family = random_flux()
    law = family.default_shift()
    assert law == LinearShift()
    assert float(law(torch.tensor([tokens]))) == pytest.approx(mu, abs=1e-5)
    assert calculate_shift(tokens) == pytest.approx(mu, abs=1e-5)
    assert math.exp(mu) == pytest.approx(shift, rel=1e-3)
    scheduler = family.pipeline().scheduler
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=mu)
    expected = [math.exp(mu) / (math.exp(mu) + 1 / sigma - 1) for sigma in (1.0, 0.75, 0.5, 0.25)]
    assert scheduler.sigmas[:4].tolist() == pytest.approx(expected, abs=1e-6)


def drawn(family: Flux, side: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(sigmas of the sampler, timesteps that the transformer saw) of a picture drawn as 'flowgrain sample' does."""
    seen: list[torch.Tensor] = []
    handle = family.backbone.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(named["timestep"].clone()), with_kwargs=True
    )
    config = SampleConfig(steps=2, height=side, width=side, batch_size=1)
    [(_, _, image)] = list(generate(family, None, ["a fox"], [0], config, lambda *_: None))
    handle.remove()
    assert image.size == (side, side)
    return family._pipeline.scheduler.sigmas, seen


def test_sampling_shifts_by_the_pictures_tokens():
    family = random_flux()  # 4 pixels a token
    for side in (64, 128):
        mu = float(LinearShift()(torch.tensor([family.tokens(side, side)])))
        sigmas, seen = drawn(family, side)
        middle = math.exp(mu) / (math.exp(mu) + 1)
        assert sigmas.tolist() == pytest.approx([1.0, middle, 0.0], abs=1e-6)
        assert [float(time) for time in seen] == pytest.approx([1.0, middle], abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sampling_at_4096():
    """16384 tokens, the scheduler's shift 25.3, and a decode in tiles that is the whole one to a step of 255."""
    family = f16_flux()
    vae = family.encoders()["vae"]
    assert isinstance(vae.decoder, TiledDecoder)
    set_tiling(vae, "exact", "random")
    sigmas, _ = drawn(family, 4096)
    middle = math.exp(3.23) / (math.exp(3.23) + 1)
    assert sigmas.tolist() == pytest.approx([1.0, middle, 0.0], abs=1e-6)
    latents = torch.randn(1, 4, 256, 256)
    tiled = family.decode(latents)
    set_tiling(vae, "off", "random")
    assert float((tiled - family.decode(latents)).abs().max()) < 1e-4


def test_positions_beyond_4096_tokens():
    """Rows and columns to 127 (255 of f8), each pair once, exact in bfloat16 too; rotations as their formula says."""
    family = random_flux()
    for side in (128, 256):
        for dtype in (torch.float32, torch.bfloat16):
            ids = family._image_ids(side, side, dtype)
            number = torch.arange(side * side)
            assert torch.equal(ids.double(), torch.stack([0 * number, number // side, number % side], dim=1).double())
    ids = family._image_ids(128, 128, torch.float32)
    cosines, sines = family.backbone.pos_embed(ids)
    axes = family.backbone.config["axes_dims_rope"]
    angles = torch.cat(
        [
            (
                ids[:, axis : axis + 1].double() * 10000 ** (-torch.arange(0, width, 2).double() / width)
            ).repeat_interleave(2, dim=1)
            for axis, width in enumerate(axes)
        ],
        dim=1,
    )
    torch.testing.assert_close(cosines.double(), angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sines.double(), angles.sin(), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forward_and_backward_at_16384_tokens():
    """Bitwise the same twice and with gradient checkpointing; every adapter weight has a finite gradient."""
    family = f16_flux()
    adapter = inject(family, AdapterConfig(kind="lora", rank=2, alpha=2), 0)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 256, 256, generator=generator)
    assert family.tokens(4096, 4096) == 16384
    conditioning = family.condition(ConditionInputs(["a fox"], None, 1.0))
    seen: list[tuple[int, ...]] = []
    family.backbone.register_forward_pre_hook(
        lambda _module, _inputs, named: seen.append(tuple(named["hidden_states"].shape)), with_kwargs=True
    )

    def run(checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        family.gradient_checkpointing(checkpointing)
        for _, parameter in adapter.parameters():
            parameter.grad = None
        output = family.predict(latents, torch.full((1, 1), 0.5), conditioning).prediction
        output.square().mean().backward()
        return output.detach(), [p.grad.clone() for _, p in adapter.parameters() if p.grad is not None]

    output, gradients = run(False)
    assert seen == [(1, 16384, 16)] and output.shape == latents.shape and output.isfinite().all()
    assert len(gradients) == len(adapter.parameters()) and all(g.isfinite().all() for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients)
    for checkpointing in (False, True):
        again, others = run(checkpointing)
        assert torch.equal(again, output)
        assert all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
