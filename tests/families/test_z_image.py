import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from family_contract import (
    CAPTIONS,
    CPU,
    backbone_calls,
    check_adapter,
    check_broken_files,
    check_cached_is_live,
    check_checkpointing,
    check_encoding,
    check_first_call,
    check_loading,
    check_missing_weight,
    check_skeleton,
    check_taps,
    check_targets,
    conditioned,
    copied,
    denoised,
    draw,
    latent_noise,
)
from random_z import random_z, random_z_pipeline

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.z_image import ZImage
from flowgrain.flow.paths import RectifiedFlow

SIZES = [(16, 16), (32, 16), (24, 40)]


def small(family):
    family.max_sequence_length = 64
    return family


@pytest.fixture(scope="module")
def z():
    return small(random_z())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "random-z"
    random_z_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_predict_gives_the_transformer_what_the_pipeline_gives_it(z, height, width):
    check_first_call(z, height, width, guidance=0.0, guidance_scale=0.0)


def test_in_bfloat16_too():
    family = small(ZImage(random_z_pipeline().to(torch.bfloat16), "half"))
    check_first_call(family, 24, 16, guidance=0.0, rows=1, guidance_scale=0.0)


def test_time_and_sign_are_turned_round(z):
    x, t = latent_noise(z, 16, 24), torch.tensor([[0.25], [1.0]])
    predictions = []
    ((arguments, _, output),) = backbone_calls(z, lambda: predictions.append(z.predict(x, t, conditioned(z))))
    assert torch.equal(arguments[1], torch.tensor([0.75, 0.0]))  # the transformer's clock: 0 is noise
    assert torch.equal(predictions[0].prediction, -torch.stack(output)[:, :, 0])


@pytest.mark.parametrize("guidance", [0.0, 2.5])
def test_two_steps_are_the_pipelines(z, guidance):
    x = latent_noise(z, 24, 16)
    pipe, theirs = draw(z, x, guidance_scale=guidance)
    positive, negative = conditioned(z), conditioned(z, ["", ""])

    def velocity(x, t):
        v = z.predict(x, t, positive).prediction
        return v if guidance == 0 else v + guidance * (v - z.predict(x, t, negative).prediction)

    ours = denoised(z, x, velocity, pipe.scheduler)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert (theirs - x).abs().max() > 0.1


def test_encoding_is_the_pipelines(z):
    config = z.pipeline().vae.config
    check_encoding(z, 16, 24, lambda mean, spread: (mean + spread - config.shift_factor) * config.scaling_factor)


def test_a_picture_of_the_pipeline_is_its_latents_decoded(z):
    x = latent_noise(z, 16, 24)
    pictures = draw(z, x, guidance_scale=0.0, output_type="pt")[1]
    latents = draw(z, x, guidance_scale=0.0)[1]
    torch.testing.assert_close((z.decode(latents) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_text_is_the_pipelines_bit_for_bit(side):
    pipe = random_z_pipeline()
    pipe.tokenizer.padding_side = side
    family = small(ZImage(pipe, "random"))
    long = " ".join(["rice"] * 200)
    for caption in (*CAPTIONS, "", long):
        (theirs,), _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=64)
        ours = family.embed_text([caption]).tensors
        length = int(ours["prompt_lengths"])
        assert torch.equal(ours["prompt_embeds"][0, :length], theirs)
        assert not ours["prompt_embeds"][0, length:].any()
        assert ours["prompt_embeds"].shape == (1, 64, 16)
    assert length == 64


def test_cached_and_live_conditioning_agree_bitwise(z):
    live = check_cached_is_live(z)
    assert live["prompt_lengths"].device == CPU
    assert len(set(live["prompt_lengths"].tolist())) == 2  # captions of different lengths in one batch


def test_a_picture_does_not_depend_on_the_captions_beside_it(z):
    x, t = latent_noise(z, 16, 24), torch.tensor([[0.3], [0.8]])
    together = z.predict(x, t, conditioned(z)).prediction
    for row, caption in enumerate(CAPTIONS):
        alone = z.predict(x[row : row + 1], t[row : row + 1], conditioned(z, [caption])).prediction
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_captions_can_be_encoded_with_gradient(z):
    encoder = z.encoders()["text_encoder"].requires_grad_(True)
    conditioning = z.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=True))
    z.predict(latent_noise(z, 16, 16), torch.full((2, 1), 0.5), conditioning).prediction.sum().backward()
    assert all(encoder.layers[0].self_attn.q_proj.weight.grad.any(dim=1))
    encoder.requires_grad_(False)
    encoder.zero_grad()


def test_fingerprint_sees_what_changes_embeddings_and_not_the_transformer():
    same = random_z().fingerprint()
    backbone = random_z_pipeline()
    backbone.transformer.x_pad_token.data += 1
    assert same == ZImage(backbone, "random").fingerprint()
    weight, template, side = random_z_pipeline(), random_z_pipeline(), random_z_pipeline()
    weight.text_encoder.norm.weight.data[0] += 1
    template.tokenizer.chat_template += "!"
    side.tokenizer.padding_side = "left"
    pipes = [weight, template, side, random_z_pipeline().to(torch.bfloat16)]
    others = {ZImage(pipe, "random").fingerprint() for pipe in pipes} | {small(random_z()).fingerprint()}
    assert len(others | {same}) == 6


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_saved_adapter_draws_what_the_live_one_draws(tmp_path, kind):
    check_adapter(small(random_z()), tmp_path, kind)


def test_a_folder_loads_and_predicts_as_before_saving(saved):
    check_loading(ZImage, saved, random_z())


def test_a_skeleton_runs_on_the_meta_device(saved):
    check_skeleton(ZImage, saved, random_z())


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_missing_weights_are_an_error(saved, tmp_path, part):
    check_missing_weight(ZImage, copied(saved, tmp_path / "broken"), part, "weight")


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_broken_files_are_one_clear_line_and_pickles_are_never_executed(saved, tmp_path, part):
    check_broken_files(ZImage, copied(saved, tmp_path / "broken"), part)


def test_another_architecture_is_one_clear_line(small_flux):
    with pytest.raises(ModelError, match=r"the transformer is a FluxTransformer2DModel, not Z-Image's$"):
        ZImage.load(str(small_flux), torch.float32, CPU)


def test_taps_are_image_tokens(z):
    transformer = z.backbone

    def head(tokens, t):
        step = transformer.t_embedder((1 - t) * transformer.t_scale)
        patches = transformer.all_final_layer["2-1"](tokens, c=step)
        size = [(1, 8, 12)] * 2
        return -torch.stack(transformer.unpatchify(list(patches), size, 2, 1)).squeeze(2)

    check_taps(z, ("noise_refiner.0", "layers.1"), head)


def test_targets_are_every_attention_and_mlp_linear_of_the_blocks(z):
    check_targets(z, ("adaLN_modulation",), 7 * 4)


def test_checkpointing_gives_the_same_gradients():
    check_checkpointing(small(random_z()))


def test_capabilities_path_and_shift(z):
    assert (z.capabilities.guidance, z.capabilities.native_size) == ("classifier_free", 32)
    assert (z.capabilities.pixel_multiple, z.capabilities.latent_scale, z.capabilities.latent_channels) == (4, 2, 4)
    assert isinstance(z.default_path(), RectifiedFlow)
    turbo = z.default_shift()
    assert turbo is not None
    assert turbo(torch.tensor([7, 4096])).exp().tolist() == pytest.approx([3.0, 3.0])
    dynamic = random_z({"use_dynamic_shifting": True}).default_shift()
    assert dynamic is not None
    assert dynamic(torch.tensor([1000])).item() == pytest.approx(calculate_shift(1000))


def test_models_that_do_not_fit_are_refused(z):
    with pytest.raises(ModelError, match="takes 8 channels"):
        ZImage(random_z_pipeline(in_channels=8), "other")
    with pytest.raises(ModelError, match="time_shift_type 'linear'"):
        random_z({"use_dynamic_shifting": True, "time_shift_type": "linear"})
    with pytest.raises(ModelError, match="must be positive multiples of 2"):
        z.predict(torch.zeros(1, 4, 7, 8), torch.ones(1, 1), conditioned(z, ["fox"]))
