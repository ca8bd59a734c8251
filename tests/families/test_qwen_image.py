from typing import ClassVar

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline, calculate_shift
from family_contract import CAPTIONS, CPU, backbone_calls, check_taps, conditioned, draw, latent_noise
from hypothesis import given
from hypothesis import strategies as st
from random_qwen import random_qwen, random_qwen_pipeline
from transformer_contract import TransformerContract

from flowgrain.errors import ModelError
from flowgrain.families.qwen_image import QwenImage
from flowgrain.flow.paths import RectifiedFlow


class TestQwenImage(TransformerContract):
    kind = QwenImage
    linears = 12 * 2
    outside = ("img_mod", "txt_mod")
    guidances: ClassVar = (1.0, 2.5)
    negative = " "
    close: ClassVar = {"rtol": 1e-3, "atol": 1e-4}
    build = staticmethod(random_qwen_pipeline)

    def options(self, guidance):
        negative = {} if guidance <= 1 else {"negative_prompt": [self.negative] * 2}
        return {"true_cfg_scale": guidance, **negative}

    def combined(self, positive, negative, guidance):
        """Scaled back to the norm of the conditional one, token by token."""
        height, width = (2 * side for side in positive.shape[-2:])
        positive, negative = (QwenImagePipeline._pack_latents(v, *v.shape) for v in (positive, negative))
        guided = super().combined(positive, negative, guidance)
        guided = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return QwenImagePipeline._unpack_latents(guided, height, width, 2).squeeze(2)

    def unpacked(self, family, drawn, height, width):
        return QwenImagePipeline._unpack_latents(drawn, height, width, 2).squeeze(2)

    def normalised(self, pipe, raw):
        mean, std = (torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        return (raw - mean) / std


@pytest.fixture(scope="module")
def qwen():
    return random_qwen()


def test_bfloat16_takes_the_pipelines_rounding_of_t():
    family = QwenImage(random_qwen_pipeline().to(torch.bfloat16), "half")
    x, conditioning = latent_noise(family, 16, 16, 1), conditioned(family, CAPTIONS[:1])
    ((_, named, _),) = backbone_calls(family, lambda: family.predict(x, torch.tensor([[0.7371]]), conditioning))
    assert torch.equal(named["timestep"], torch.tensor([737.1]).to(torch.bfloat16) / 1000)


def test_captions_of_one_length_need_no_mask(qwen):
    alone, together = conditioned(qwen, CAPTIONS[:1]), conditioned(qwen)
    assert qwen._text(alone.tensors)[1] is None
    prompt, mask = qwen._text(together.tensors)
    assert prompt.shape[1] == int(together.tensors["prompt_lengths"].max()) == mask.sum(dim=1).max()
    assert torch.equal(mask.sum(dim=1), together.tensors["prompt_lengths"])


def test_guidance_changes_the_picture(qwen):
    x = latent_noise(qwen, 16, 16)
    plain, guided = (draw(qwen, x, **qwen.guidance_options(guidance, 2))[1] for guidance in (1.0, 4.0))
    assert (plain - guided).abs().max() > 1e-3
    assert qwen._pipeline.scheduler.sigmas[-2].item() == pytest.approx(0.02)  # shift_terminal


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


def test_numbers_of_tokens_differ_in_a_batch_and_stay_on_the_cpu(qwen):
    lengths = conditioned(qwen).tensors["prompt_lengths"]
    assert lengths.device == CPU
    assert len(set(lengths.tolist())) == 2


def test_fingerprint_sees_template_and_length():
    template, shorter = random_qwen_pipeline(), random_qwen()
    template.prompt_template_encode += "!"
    shorter.max_sequence_length = 64
    assert len({family.fingerprint() for family in (random_qwen(), QwenImage(template, "random"), shorter)}) == 3


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
