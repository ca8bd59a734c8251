import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline, calculate_shift
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
from hypothesis import given
from hypothesis import strategies as st
from random_qwen import random_qwen, random_qwen_pipeline

from flowgrain.errors import ModelError
from flowgrain.families.base import ConditionInputs
from flowgrain.families.qwen_image import QwenImage
from flowgrain.flow.paths import RectifiedFlow

SIZES = [(16, 16), (32, 16), (24, 40)]


@pytest.fixture(scope="module")
def qwen():
    return random_qwen()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "random-qwen"
    random_qwen_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_predict_gives_the_transformer_what_the_pipeline_gives_it(qwen, height, width):
    check_first_call(qwen, height, width, guidance=1.0, true_cfg_scale=1.0)


def test_in_bfloat16_too():
    family = QwenImage(random_qwen_pipeline().to(torch.bfloat16), "half")
    check_first_call(family, 24, 16, guidance=1.0, rows=1, true_cfg_scale=1.0)
    t = torch.tensor([[0.7371]])
    ((_, named, _),) = backbone_calls(
        family, lambda: family.predict(latent_noise(family, 16, 16, 1), t, conditioned(family, CAPTIONS[:1]))
    )
    assert torch.equal(named["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)


def test_captions_of_one_length_need_no_mask(qwen):
    alone, together = conditioned(qwen, CAPTIONS[:1]), conditioned(qwen)
    assert qwen._text(alone)[1] is None
    prompt, mask = qwen._text(together)
    assert prompt.shape[1] == int(together.tensors["prompt_lengths"].max()) == mask.sum(dim=1).max()
    assert torch.equal(mask.sum(dim=1), together.tensors["prompt_lengths"])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_two_steps_are_the_pipelines(qwen, guidance):
    x = latent_noise(qwen, 24, 16)
    pipe, theirs = draw(qwen, x, **qwen.guidance_options(guidance, 2))
    positive, negative = conditioned(qwen), conditioned(qwen, [" ", " "])

    def velocity(x, t):
        v = qwen.predict(x, t, positive).prediction
        if guidance == 1:
            return v
        v, unguided = (qwen._pack(u) for u in (v, qwen.predict(x, t, negative).prediction))
        guided = unguided + guidance * (v - unguided)
        guided = guided * (v.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return QwenImagePipeline._unpack_latents(guided, 24, 16, 2).squeeze(2)

    ours = denoised(qwen, x, velocity, pipe.scheduler)
    torch.testing.assert_close(qwen.pipeline_latents(ours), theirs, rtol=1e-3, atol=1e-4)
    assert (theirs - qwen.pipeline_latents(x)).abs().max() > 0.1
    assert pipe.scheduler.sigmas[-2].item() == pytest.approx(0.02)  # shift_terminal


def test_guidance_changes_the_picture(qwen):
    x = latent_noise(qwen, 16, 16)
    plain, guided = (draw(qwen, x, **qwen.guidance_options(guidance, 2))[1] for guidance in (1.0, 4.0))
    assert (plain - guided).abs().max() > 1e-3


def test_encoding_is_the_pipelines(qwen):
    config = qwen.pipeline().vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
    check_encoding(qwen, 16, 24, lambda raw, spread: (raw + spread - mean) / std)


def test_a_picture_of_the_pipeline_is_its_latents_decoded(qwen):
    x = latent_noise(qwen, 16, 24)
    pictures = draw(qwen, x, output_type="pt", true_cfg_scale=1.0)[1]
    latents = QwenImagePipeline._unpack_latents(draw(qwen, x, true_cfg_scale=1.0)[1], 16, 24, 2).squeeze(2)
    torch.testing.assert_close((qwen.decode(latents) / 2 + 0.5).clamp(0, 1), pictures, rtol=1e-4, atol=1e-4)


def test_text_is_the_pipelines_bit_for_bit(qwen):
    qwen.max_sequence_length = 64
    long = " ".join(["rice"] * 200)
    for caption in (*CAPTIONS, "", long):
        theirs, mask = qwen.pipeline().encode_prompt(caption, max_sequence_length=64)
        ours = qwen.embed_text([caption]).tensors
        length = int(ours["prompt_lengths"])
        assert mask is None
        assert torch.equal(ours["prompt_embeds"][:, :length], theirs)
        assert not ours["prompt_embeds"][0, length:].any()
        assert ours["prompt_embeds"].shape == (1, 64, 16)
    assert length == 64
    qwen.max_sequence_length = 512


def test_cached_and_live_conditioning_agree_bitwise(qwen):
    live = check_cached_is_live(qwen)
    assert live["prompt_lengths"].device == CPU
    assert len(set(live["prompt_lengths"].tolist())) == 2  # captions of different lengths in one batch


def test_a_picture_does_not_depend_on_the_captions_beside_it(qwen):
    x, t = latent_noise(qwen, 16, 24), torch.tensor([[0.3], [0.8]])
    together = qwen.predict(x, t, conditioned(qwen)).prediction
    for row, caption in enumerate(CAPTIONS):
        alone = qwen.predict(x[row : row + 1], t[row : row + 1], conditioned(qwen, [caption])).prediction
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_captions_can_be_encoded_with_gradient(qwen):
    encoder = qwen.encoders()["text_encoder"].requires_grad_(True)
    conditioning = qwen.condition(ConditionInputs(CAPTIONS, None, 1.0, grad=True))
    qwen.predict(latent_noise(qwen, 16, 16), torch.full((2, 1), 0.5), conditioning).prediction.sum().backward()
    assert encoder.model.language_model.layers[0].self_attn.q_proj.weight.grad.any()
    encoder.requires_grad_(False)
    encoder.zero_grad()


def test_fingerprint_sees_what_changes_embeddings_and_not_the_transformer():
    same = random_qwen().fingerprint()
    backbone, weight, template = (random_qwen_pipeline() for _ in range(3))
    backbone.transformer.proj_out.bias.data += 1
    assert same == QwenImage(backbone, "random").fingerprint()
    weight.vae.encoder.conv_in.bias.data[0] += 1
    template.prompt_template_encode += "!"
    shorter = random_qwen()
    shorter.max_sequence_length = 64
    others = {QwenImage(pipe, "random").fingerprint() for pipe in (weight, template)} | {shorter.fingerprint()}
    assert len(others | {same}) == 4


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_saved_adapter_draws_what_the_live_one_draws(tmp_path, kind):
    check_adapter(random_qwen(), tmp_path, kind)


def test_a_folder_loads_and_predicts_as_before_saving(saved):
    check_loading(QwenImage, saved, random_qwen())


def test_a_skeleton_runs_on_the_meta_device(saved):
    check_skeleton(QwenImage, saved, random_qwen())


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_missing_weights_are_an_error(saved, tmp_path, part):
    check_missing_weight(QwenImage, copied(saved, tmp_path / "broken"), part, "weight")


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_broken_files_are_one_clear_line_and_pickles_are_never_executed(saved, tmp_path, part):
    check_broken_files(QwenImage, copied(saved, tmp_path / "broken"), part)


def test_another_architecture_is_one_clear_line(small_flux):
    with pytest.raises(ModelError, match=r"^[^\n]*cannot be loaded as a QwenImage model[^\n]*$"):
        QwenImage.load(str(small_flux), torch.float32, CPU)


def test_taps_are_image_tokens(qwen):
    transformer = qwen.backbone

    def head(tokens, t):
        level = transformer.time_text_embed(t, tokens)
        output = transformer.proj_out(transformer.norm_out(tokens, level))
        return QwenImagePipeline._unpack_latents(output, 16, 24, 2).squeeze(2)

    check_taps(qwen, ("transformer_blocks.0", "transformer_blocks.1"), head)


def test_targets_are_every_attention_and_mlp_linear_of_the_blocks(qwen):
    check_targets(qwen, ("img_mod", "txt_mod"), 12 * 2)


def test_checkpointing_gives_the_same_gradients():
    check_checkpointing(random_qwen())


def test_capabilities_and_path(qwen):
    assert (qwen.capabilities.guidance, qwen.capabilities.native_size) == ("classifier_free", 1024)
    assert (qwen.capabilities.pixel_multiple, qwen.capabilities.latent_scale) == (4, 2)
    assert qwen.capabilities.latent_channels == 4
    assert isinstance(qwen.default_path(), RectifiedFlow)


@given(tokens=st.integers(1, 20000))
def test_default_shift_is_the_pipelines(qwen, tokens):
    shift = qwen.default_shift()
    assert shift is not None
    assert shift(torch.tensor([tokens])).item() == pytest.approx(calculate_shift(tokens, 256, 8192, 0.5, 0.9))


def test_models_that_do_not_fit_are_refused(qwen):
    with pytest.raises(ModelError, match="takes 32 channels"):
        QwenImage(random_qwen_pipeline(in_channels=32), "other")
    with pytest.raises(ModelError, match="guidance_embeds"):
        QwenImage(random_qwen_pipeline(guidance_embeds=True), "other")
    with pytest.raises(ModelError, match="time_shift_type 'linear'"):
        random_qwen({"use_dynamic_shifting": True, "time_shift_type": "linear"})
    with pytest.raises(ModelError, match="must be positive multiples of 2"):
        qwen.predict(torch.zeros(1, 4, 7, 8), torch.ones(1, 1), conditioned(qwen, ["fox"]))
