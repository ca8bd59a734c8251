import json
import math
import shutil

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from family_contract import CAPTIONS, CPU, conditioned, draw, latent_noise, move, noise
from random_sd3 import DUAL_ATTENTION, random_sd3_pipeline
from transformer_contract import CLOSE, LatentTransformerContract, predicted

from flowgrain.adapters.base import AdapterConfig, TextEncoderAdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.targets import find_targets
from flowgrain.errors import ModelError
from flowgrain.families.sd3 import StableDiffusion3
from flowgrain.flow.paths import RectifiedFlow


class SD3Contract(LatentTransformerContract):
    kind = StableDiffusion3

    def encode_prompt(self, pipe, caption, length):
        prompt, _, pooled, _ = pipe.encode_prompt(
            caption, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}


class TestStableDiffusion3(SD3Contract):
    linears = 12 + 9  # the last block's text stream ends in its attention
    build = staticmethod(random_sd3_pipeline)


class TestStableDiffusion35MediumWithoutT5(SD3Contract):
    linears = 12 + 4 + 9

    @staticmethod
    def build():
        return random_sd3_pipeline(t5=False, **DUAL_ATTENTION)

    def test_t5s_tokens_are_zeros(self, family):
        assert list(family.components()) == ["transformer", "text_encoder", "text_encoder_2"]
        assert list(family.encoders()) == ["text_encoder", "text_encoder_2", "vae"]
        prompt = family.embed_text(CAPTIONS).tensors["prompt_embeds"]
        assert prompt.shape == (2, 10 + 256, 24)
        assert (prompt[:, :10, :16] != 0).any() and (prompt[:, 10:] == 0).all()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "with-t5"
    random_sd3_pipeline().save_pretrained(folder)
    return folder


def test_a_folder_whose_t5_was_deleted_loads_without_it(saved, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"]
    family = StableDiffusion3.load(str(folder), torch.float32, CPU)
    without = StableDiffusion3(random_sd3_pipeline(t5=False), "random")
    assert family.fingerprint() == without.fingerprint()
    assert family.fingerprint() != StableDiffusion3.load(str(saved), torch.float32, CPU).fingerprint()
    assert family.pipeline().text_encoder_3 is None
    assert "text_encoder_3" not in StableDiffusion3.skeleton(str(folder), torch.float32).components()


def test_a_t5_without_its_tokenizer_is_refused(saved, tmp_path):
    folder = tmp_path / "partial"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("tokenizer_3"))
    with pytest.raises(ModelError, match="has text_encoder_3 but no tokenizer_3"):
        StableDiffusion3.load(str(folder), torch.float32, CPU)


def test_a_clip_encoder_is_never_optional(saved, tmp_path):
    folder = tmp_path / "partial"
    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("text_encoder_2"))
    with pytest.raises(ModelError, match="cannot be loaded as a StableDiffusion3 model"):
        StableDiffusion3.load(str(folder), torch.float32, CPU)


def test_capabilities_are_those_of_the_configurations():
    capabilities = StableDiffusion3(random_sd3_pipeline(), "random").capabilities
    assert capabilities.guidance == "classifier_free"
    assert (capabilities.pixel_multiple, capabilities.latent_scale, capabilities.latent_channels) == (4, 2, 4)
    assert capabilities.native_size == 2 * 16


def test_text_lengths_follow_t5s_tokenizer_up_to_256():
    pipe = random_sd3_pipeline()
    family = StableDiffusion3(pipe, "random")
    assert family.pipeline_options() == {"max_sequence_length": 12}
    shorter = random_sd3_pipeline()
    shorter.tokenizer_3.model_max_length = 11
    assert StableDiffusion3(shorter, "random").fingerprint() != family.fingerprint()
    pipe.tokenizer_3.model_max_length = 512
    assert StableDiffusion3(pipe, "random").pipeline_options() == {"max_sequence_length": 256}


def test_clip_encoders_can_be_adapted_and_t5_cannot():
    family = StableDiffusion3(random_sd3_pipeline(), "random")
    for name in ("text_encoder", "text_encoder_2"):
        found = find_targets(family.components()[name], family.adapter_targets(name))
        assert len(found) == 2 * 6
    with pytest.raises(ModelError, match="no component 'text_encoder_3' to adapt"):
        family.adapter_targets("text_encoder_3")


def test_adapted_clip_encoders_draw_in_the_pipeline_what_they_draw_live(saved, tmp_path):
    family = StableDiffusion3.load(str(saved), torch.float32, CPU)
    x = latent_noise(family, 16, 24)
    text = TextEncoderAdapterConfig(rank=2)
    adapter = inject(family, AdapterConfig(kind="lora", rank=2, alpha=3, text_encoders=text), 0)
    adapted = {name.split(".")[0] for name, _ in adapter.parameters()}
    assert adapted == {"transformer", "text_encoder", "text_encoder_2"}
    before = family.embed_text(CAPTIONS).tensors["pooled_prompt_embeds"]
    move(adapter, 0.1)
    assert ((family.embed_text(CAPTIONS).tensors["pooled_prompt_embeds"] - before).abs() > 1e-3).any(dim=0).all()
    _, live = draw(family, x)
    adapter.save(tmp_path, {})
    adapter.remove()
    family.pipeline(tmp_path)
    torch.testing.assert_close(draw(family, x)[1], live, **CLOSE)


def test_sizes_beyond_the_positions_are_refused():
    family = StableDiffusion3(random_sd3_pipeline(), "random")
    assert family.tokens(48, 4) == 12
    with pytest.raises(ModelError, match="height 52 and width 4 pixels must be at most 48"):
        family.tokens(52, 4)
    conditioning = conditioned(family, ["fox"])
    assert predicted(family, noise(1, 4, 24, 2), 0.5, conditioning).shape == (1, 4, 24, 2)
    with pytest.raises(ModelError, match="width 26 latent cells must be at most 24"):
        predicted(family, noise(1, 4, 2, 26), 0.5, conditioning)


def test_the_static_shift_is_a_constant_and_a_dynamic_one_the_pipelines():
    family = StableDiffusion3(random_sd3_pipeline(), "random")
    assert isinstance(family.default_path(), RectifiedFlow)
    assert family.default_time_law() == "logit_normal"
    shift = family.default_shift()
    assert shift is not None
    torch.testing.assert_close(shift(torch.tensor([12, 4096])).exp(), torch.full((2,), 3.0, dtype=torch.float64))
    scheduler = family.pipeline().scheduler
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    levels = torch.sigmoid(torch.logit(torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)) + math.log(3))
    torch.testing.assert_close(levels.float(), scheduler.sigmas[1:4])
    dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    shift = StableDiffusion3(random_sd3_pipeline(scheduler=dynamic), "random").default_shift()
    assert shift is not None
    assert math.isclose(shift(torch.tensor([1000])).item(), calculate_shift(1000), rel_tol=1e-12)
    assert StableDiffusion3(random_sd3_pipeline(scheduler={"shift": 1.0}), "random").default_shift() is None


def test_other_schedulers_are_refused():
    pipe = random_sd3_pipeline(scheduler={"use_dynamic_shifting": True, "time_shift_type": "linear"})
    with pytest.raises(ModelError, match="time_shift_type 'linear' is not supported"):
        StableDiffusion3(pipe, "random")
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ModelError, match="scheduler FlowMatchHeunDiscreteScheduler is not supported"):
        StableDiffusion3(pipe, "random")
