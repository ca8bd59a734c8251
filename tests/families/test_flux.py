import dataclasses
import math

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.pipelines.flux.pipeline_flux_img2img import retrieve_latents
from hypothesis import given
from hypothesis import strategies as st
from random_flux import random_flux, random_pipeline

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs, TextEmbedding
from flowgrain.families.flux import ADAPTER_TARGETS, Flux
from flowgrain.flow.paths import RectifiedFlow

CAPTIONS = ["a red fox", "a bowl of rice on a wooden table, close-up"]
SIZES = [(16, 16), (32, 16), (24, 40)]


@pytest.fixture(scope="module")
def flux():
    return random_flux()


@pytest.fixture(scope="module")
def schnell():
    return random_flux(guidance=False, scheduler={"shift": 1.0})


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(guidance=1.0, captions=CAPTIONS):
    return ConditionInputs(captions=captions, embedding=None, guidance=guidance)


def transformer_calls(flux, run):
    """Keyword inputs and outputs of every transformer call while ``run`` runs."""
    calls = []
    hook = flux.components()["transformer"].register_forward_hook(
        lambda _m, _a, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    return calls


@pytest.mark.parametrize("model", ["flux", "schnell"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_predict_gives_the_transformer_what_the_pipeline_gives_it(model, height, width, request):
    family = request.getfixturevalue(model)
    x = noise(2, 4, height // 2, width // 2)
    pipe = family.pipeline()
    options = {"height": height, "width": width, "num_inference_steps": 2, "guidance_scale": 2.5}

    def sample():
        pipe(CAPTIONS, latents=family.pipeline_latents(x), output_type="latent", **options, **family.pipeline_options())

    (theirs, their_output), _ = transformer_calls(family, sample)
    t = pipe.scheduler.timesteps[:1].expand(2) / 1000
    prediction = []

    def predict():
        conditioning = family.condition(inputs(guidance=2.5))
        prediction.append(family.predict(x, t.view(-1, 1), conditioning).prediction)

    ((ours, our_output),) = transformer_calls(family, predict)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            if name in ("encoder_hidden_states", "pooled_projections"):  # the pipeline encodes the batch at once
                torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value, name
    torch.testing.assert_close(our_output, their_output, rtol=1e-4, atol=1e-5)
    assert torch.equal(prediction[0], FluxPipeline._unpack_latents(our_output, height, width, 2))
    assert (theirs["guidance"] is None) == (model == "schnell")


@pytest.mark.parametrize("model", ["flux", "schnell"])
def test_one_picture_through_predict_is_bitwise_the_pipelines(model, request):
    family = request.getfixturevalue(model)
    x = noise(1, 4, 8, 6)
    pipe = family.pipeline()
    options = family.pipeline_options()

    def sample():
        pipe(CAPTIONS[0], latents=family.pipeline_latents(x), height=16, width=12, num_inference_steps=1,
             guidance_scale=3.0, output_type="latent", **options)  # fmt: skip

    ((_, theirs),) = transformer_calls(family, sample)
    ours = family.predict(x, torch.ones(1, 1), family.condition(inputs(3.0, CAPTIONS[:1])))
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


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 5)])
def test_latent_sides_that_cannot_be_packed_are_refused(flux, height, width):
    with pytest.raises(ModelError, match=f"height {height} and width {width} latent cells must be .* multiples of 2"):
        flux.predict(noise(1, 4, height, width), torch.ones(1, 1), flux.condition(inputs(captions=["fox"])))


def test_pixel_sides_that_cannot_be_packed_are_refused(flux):
    assert flux.tokens(32, 16) == 32
    with pytest.raises(ModelError, match="multiples of 4"):
        flux.tokens(30, 16)
    with pytest.raises(ModelError, match="multiples of 4"):
        flux.encode_pixels(torch.zeros(1, 3, 16, 18))


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


def test_default_path_is_rectified_flow(flux):
    assert isinstance(flux.default_path(), RectifiedFlow)


def test_text_embeddings_are_the_pipelines_bit_for_bit_and_ignore_their_batch(flux):
    embedding = flux.embed_text(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        prompt, pooled, _ = flux.pipeline().encode_prompt(caption, max_sequence_length=flux.max_sequence_length)
        assert torch.equal(embedding.tensors["prompt_embeds"][row], prompt[0])
        assert torch.equal(embedding.tensors["pooled_prompt_embeds"][row], pooled[0])
    assert not embedding.tensors["prompt_embeds"].requires_grad


def test_cached_and_live_conditioning_agree_bitwise(flux):
    live = flux.condition(inputs()).tensors
    rows = [flux.embed_text([caption]) for caption in CAPTIONS]
    cached = flux.condition(ConditionInputs(None, TextEmbedding.stack(rows), 1.0)).tensors
    assert live.keys() == cached.keys() == {"prompt_embeds", "pooled_prompt_embeds", "guidance"}
    assert all(torch.equal(live[name], cached[name]) for name in live)
    assert torch.equal(live["guidance"], torch.ones(2))
    with pytest.raises(ValueError, match="exactly one"):
        flux.condition(ConditionInputs(None, None, 1.0))


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


def test_encoding_ignores_the_batch_and_equals_the_autoencoder(flux):
    pixels = noise(3, 3, 16, 24).clamp(-1, 1)
    together = flux.encode_pixels(pixels)
    for row in range(3):
        alone = flux.encode_pixels(pixels[row : row + 1])
        assert torch.equal(alone.mean[0], together.mean[row])
        assert torch.equal(alone.logvar[0], together.logvar[row])
    generator = torch.Generator().manual_seed(3)
    vae = flux.pipeline().vae
    sample = retrieve_latents(vae.encode(pixels[:1]), generator=generator)
    theirs = (sample - vae.config.shift_factor) * vae.config.scaling_factor
    first = dataclasses.replace(together, mean=together.mean[:1], logvar=together.logvar[:1])
    ours = flux.latents(first, noise(*sample.shape, seed=3))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        flux.decode(ours), vae.decode(sample, return_dict=False)[0].detach(), rtol=1e-4, atol=1e-5
    )


def test_taps_are_the_image_tokens_of_the_named_blocks(flux):
    x, t, conditioning = noise(2, 4, 6, 8), torch.full((2, 1), 0.3), flux.condition(inputs())
    names = ("transformer_blocks.0", "single_transformer_blocks.1")
    output = flux.predict(x, t, conditioning, names)
    assert list(output.taps) == list(names)
    transformer = flux.components()["transformer"]
    assert all(tap.shape == (2, 12, transformer.inner_dim) for tap in output.taps.values())
    # the model's head on the last block's image tokens is the prediction
    level = t[:, 0] * 1000
    pooled = conditioning.tensors["pooled_prompt_embeds"]
    embedding = transformer.time_text_embed(level, conditioning.tensors["guidance"] * 1000, pooled)
    head = transformer.proj_out(transformer.norm_out(output.taps[names[1]], embedding))
    torch.testing.assert_close(FluxPipeline._unpack_latents(head, 12, 16, 2), output.prediction)
    assert torch.equal(output.prediction, flux.predict(x, t, conditioning).prediction)
    assert not any(block._forward_hooks for block in transformer.modules())


@pytest.mark.parametrize("tap", ["transformer_blocks.1", "single_transformer_blocks.x", "blocks.0", "proj_out"])
def test_unknown_taps_name_the_blocks_there_are(flux, tap):
    with pytest.raises(ModelError, match=r"single_transformer_blocks\.0 to single_transformer_blocks\.1"):
        flux.predict(noise(1, 4, 4, 4), torch.ones(1, 1), flux.condition(inputs(captions=["x"])), (tap,))


def test_weights_are_frozen_and_in_eval_mode(flux):
    pipe = flux.pipeline()
    for module in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_fingerprint_sees_weights_dtype_and_text_length_but_not_the_transformer():
    same = random_flux().fingerprint()
    assert same == random_flux(guidance=False).fingerprint()
    changed = random_pipeline()
    changed.vae.decoder.conv_out.bias.data[0] += 1
    shorter = random_pipeline()
    shorter.tokenizer_2.model_max_length = 11
    half = random_pipeline().to(torch.bfloat16)
    others = {Flux(pipe, "random").fingerprint() for pipe in (changed, shorter, half)}
    assert len(others | {same}) == 4


def test_default_targets_are_every_attention_and_mlp_linear_of_the_blocks(flux):
    from flowgrain.adapters.targets import find_targets

    found = set(find_targets(flux.components()["transformer"], list(ADAPTER_TARGETS)))
    linears = {
        name
        for name, module in flux.components()["transformer"].named_modules()
        if isinstance(module, torch.nn.Linear) and "transformer_blocks." in name and "norm" not in name
    }
    assert found == linears
    assert len(found) == 12 + 2 * 5
    with pytest.raises(ModelError, match="no component 'vae'"):
        flux.adapter_targets("vae")


def test_models_with_other_input_channels_are_refused():
    with pytest.raises(ModelError, match="takes 24 channels"):
        Flux(random_pipeline(in_channels=24), "fill")


def test_pipelines_with_missing_parts_are_refused():
    pipe = random_pipeline()
    components = {**pipe.components, "text_encoder_2": None, "tokenizer_2": None}
    with pytest.raises(ModelError, match="no text_encoder_2, tokenizer_2"):
        Flux(FluxPipeline(**components), "partial")


def test_bfloat16_predictions_take_the_pipelines_rounding_of_t():
    family = Flux(random_pipeline().to(torch.bfloat16), "half")
    t = torch.tensor([[0.7371]])

    def predict():
        family.predict(noise(1, 4, 4, 4), t, family.condition(inputs(captions=["x"])))

    ((call, output),) = transformer_calls(family, predict)
    assert output.dtype == torch.bfloat16
    assert torch.equal(call["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)
