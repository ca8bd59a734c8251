import math
from typing import ClassVar

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from family_contract import CAPTIONS, backbone_calls, check_taps, conditioned, draw, latent_noise, noise
from hypothesis import given
from hypothesis import strategies as st
from random_flux import random_flux, random_pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformer_contract import PipelineContract, TransformerContract

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.flux import Flux


class FluxContract(PipelineContract):
    kind = Flux
    guidances: ClassVar = (2.5,)
    negative = None

    def test_in_bfloat16_too(self, pipe):
        with sdpa_kernel(SDPBackend.MATH):  # on CPU training takes this kernel and the pipeline would not
            super().test_in_bfloat16_too(pipe)

    def unpacked(self, family, drawn, height, width):
        return FluxPipeline._unpack_latents(drawn, height, width, 2)


class TestFluxDev(FluxContract, TransformerContract):
    linears = 12 + 2 * 5
    build = staticmethod(random_pipeline)


class TestFluxSchnell(FluxContract):
    @staticmethod
    def build():
        return random_pipeline(guidance=False, scheduler={"shift": 1.0})


@pytest.fixture(scope="module")
def flux():
    return random_flux()


@pytest.fixture(scope="module")
def schnell():
    return random_flux(guidance=False, scheduler={"shift": 1.0})


def test_schnell_reads_no_guidance(flux, schnell):
    x, t = latent_noise(flux, 16, 16), torch.full((2, 1), 0.5)
    for family, read in ((flux, True), (schnell, False)):
        ((_, named, _),) = backbone_calls(family, lambda f=family: f.predict(x, t, conditioned(f, guidance=2.5)))
        assert (named["guidance"] is not None) == read
        low, high = (family.predict(x, t, conditioned(family, guidance=value)).prediction for value in (1.0, 9.0))
        assert (not torch.equal(low, high)) == read


@pytest.mark.parametrize("model", ["flux", "schnell"])
def test_one_picture_through_predict_is_bitwise_the_pipelines(model, request):
    family = request.getfixturevalue(model)
    x = latent_noise(family, 16, 12, rows=1)
    (*_, theirs), *_ = backbone_calls(family, lambda: draw(family, x, guidance_scale=3.0))
    ours = family.predict(x, torch.ones(1, 1), conditioned(family, CAPTIONS[:1], 3.0))
    assert torch.equal(ours.prediction, FluxPipeline._unpack_latents(theirs, 16, 12, 2))


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), batch=st.integers(1, 3))
def test_packing_is_two_by_two_patches_channel_major_and_unpacks_to_itself(rows, columns, batch):
    family = shared_flux()
    x = torch.arange(batch * 4 * 4 * rows * columns).float().view(batch, 4, 2 * rows, 2 * columns)
    packed = family.pipeline_latents(x)
    assert packed.shape == (batch, rows * columns, 16)
    last = x[:, :, -2:, -2:].reshape(batch, 16)
    assert torch.equal(packed[:, -1], last)
    assert torch.equal(FluxPipeline._unpack_latents(packed, 4 * rows, 4 * columns, 2), x)


_SHARED: list[Flux] = []


def shared_flux():
    if not _SHARED:
        _SHARED.append(random_flux())
    return _SHARED[0]


@given(tokens=st.integers(1, 70000))
def test_default_shift_is_the_pipelines_calculate_shift(tokens):
    shift = shared_flux().default_shift()
    assert shift is not None
    assert math.isclose(shift(torch.tensor([tokens])).item(), calculate_shift(tokens), rel_tol=1e-12, abs_tol=1e-12)


def test_static_shift_is_the_constant_log(schnell):
    assert schnell.default_shift() is None
    static = random_flux(scheduler={"shift": 3.0})
    shift = static.default_shift()
    assert shift is not None
    scheduler = static.pipeline().scheduler
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    logit = torch.logit(torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64))
    ours = torch.sigmoid(logit + shift(torch.tensor([17, 99, 4096])))
    torch.testing.assert_close(ours, torch.tensor([0.9, 0.75, 0.5], dtype=torch.float64))
    torch.testing.assert_close(ours.float(), scheduler.sigmas[1:4])


def test_text_embeddings_are_the_pipelines_bit_for_bit_and_ignore_their_batch(flux):
    embedding = flux.embed_text(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        prompt, pooled, _ = flux.pipeline().encode_prompt(caption, max_sequence_length=flux.max_sequence_length)
        assert torch.equal(embedding.tensors["prompt_embeds"][row], prompt[0])
        assert torch.equal(embedding.tensors["pooled_prompt_embeds"][row], pooled[0])
    assert not embedding.tensors["prompt_embeds"].requires_grad


def test_text_length_follows_the_tokenizer_within_the_models_limit():
    for guidance, limit in ((True, 512), (False, 256)):
        pipe = random_pipeline(guidance)
        assert Flux(pipe, "random").pipeline_options() == {"max_sequence_length": 12}
        pipe.tokenizer_2.model_max_length = 10**30
        assert Flux(pipe, "random").max_sequence_length == limit


def test_capabilities(flux, schnell):
    assert (flux.capabilities.guidance, schnell.capabilities.guidance) == ("embedded", "none")
    assert (flux.capabilities.pixel_multiple, flux.capabilities.latent_scale) == (4, 2)
    assert (flux.capabilities.latent_channels, flux.capabilities.native_size) == (4, 32)


def test_taps_are_the_image_tokens_of_the_named_blocks(flux):
    transformer, pooled = flux.backbone, conditioned(flux).tensors["pooled_prompt_embeds"]

    def head(tokens, t):
        level = transformer.time_text_embed(t * 1000, torch.full((2,), 1000.0), pooled)
        output = transformer.proj_out(transformer.norm_out(tokens, level))
        return FluxPipeline._unpack_latents(output, 16, 24, 2)

    check_taps(flux, ("transformer_blocks.0", "single_transformer_blocks.1"), head)


@pytest.mark.parametrize("tap", ["transformer_blocks.1", "single_transformer_blocks.x", "blocks.0", "proj_out"])
def test_unknown_taps_name_the_blocks_there_are(flux, tap):
    with pytest.raises(ModelError, match=r"single_transformer_blocks\.0 to single_transformer_blocks\.1"):
        flux.predict(noise(1, 4, 4, 4), torch.ones(1, 1), conditioned(flux, ["x"]), (tap,))


def test_fingerprint_sees_the_text_length_and_no_guidance_embedding():
    same = random_flux().fingerprint()
    assert same == random_flux(guidance=False).fingerprint()
    shorter = random_pipeline()
    shorter.tokenizer_2.model_max_length = 11
    assert Flux(shorter, "random").fingerprint() != same


def test_bfloat16_predictions_take_the_pipelines_rounding_of_t():
    family = Flux(random_pipeline().to(torch.bfloat16), "half")
    t = torch.tensor([[0.7371]])

    conditioning = conditioned(family, ["x"])
    ((_, named, output),) = backbone_calls(family, lambda: family.predict(noise(1, 4, 4, 4), t, conditioning))
    assert output.dtype == torch.bfloat16
    assert torch.equal(named["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)


def test_conditioning_is_made_of_captions_or_embeddings(flux):
    assert conditioned(flux).tensors.keys() == {"prompt_embeds", "pooled_prompt_embeds", "guidance"}
    with pytest.raises(ValueError, match="exactly one"):
        flux.condition(ConditionInputs(None, None, 1.0))
