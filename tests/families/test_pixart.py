import json
from typing import ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from family_contract import CAPTIONS, CPU, conditioned, draw, latent_noise, noise
from random_pixart import NOISE, random_alpha_pipeline, random_sigma_pipeline
from transformer_contract import CLOSE, LatentTransformerContract, calls, predicted

from flowgrain.families.base import ConditionInputs, SizeGeometry
from flowgrain.families.pixart import PixArtAlpha, PixArtSigma
from flowgrain.flow.variance_preserving import VariancePreserving

LARGE = {"sample_size": 128}
"""PixArt-alpha at 1024 pixels: with size conditions."""
LARGE_SIGMA = {"sample_size": 128, "use_additional_conditions": False}


class PixArtContract(LatentTransformerContract):
    linears = 2 * 10
    close: ClassVar = {"rtol": 1e-3, "atol": 1e-4}
    """x0 of a nearly pure noise has a hundred times the prediction's rounding."""

    def levels(self, scheduler):
        return ((scheduler.timesteps + 0.5) / 1000).tolist()

    def encode_prompt(self, pipe, caption, length):
        prompt, mask, *_ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=length)
        return {"prompt_embeds": prompt, "prompt_attention_mask": mask}

    def denoise(self, family, scheduler, x, guidance):
        """The scheduler's own steps."""
        solver = DPMSolverMultistepScheduler.from_config(scheduler.config)
        solver.set_timesteps(2)
        for step in solver.timesteps:
            x = solver.step(self.guided(family, x, (int(step) + 0.5) / 1000, guidance), step, x).prev_sample
        return x

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_two_ddim_steps_along_the_path_are_the_pipelines(self, guidance):
        pipe = self.build()
        pipe.scheduler = DDIMScheduler(**NOISE, clip_sample=False)
        family = self.kind(pipe, "random")
        path = family.default_path()
        assert isinstance(path, VariancePreserving)
        x = latent_noise(family, 16, 24)
        _, theirs = draw(family, x, guidance_scale=guidance)
        for level, following in ((500.5 / 1000, 0.5 / 1000), (0.5 / 1000, None)):
            epsilon, here = self.guided(family, x, level, guidance), torch.full((len(x),), level, dtype=torch.float64)
            clean = path.prediction_to_x0(epsilon, x, here)
            if following is None:  # set_alpha_to_one: the last step ends at the data
                x = clean
                continue
            to = path.coefficients(torch.full((len(x),), following, dtype=torch.float64))
            x = to.alpha * clean + to.sigma * epsilon
        torch.testing.assert_close(x.float(), theirs, **self.close)


class TestPixArtAlpha1024(PixArtContract):
    kind = PixArtAlpha

    @staticmethod
    def build():
        return random_alpha_pipeline(**LARGE)


class TestPixArtSigma(PixArtContract):
    kind = PixArtSigma
    build = staticmethod(random_sigma_pipeline)


def size_conditions(family, conditioning):
    ((arguments, _),) = calls(family, lambda: predicted(family, noise(2, 4, 8, 12), 0.5, conditioning))
    return arguments["added_cond_kwargs"]


def test_size_conditions_are_the_slices_own_at_1024_pixels_and_absent_elsewhere():
    sizes = torch.tensor([[64.0, 48.0], [640.0, 480.0]])
    crop, target = torch.tensor([[0.0, 3.0], [7.0, 0.0]]), torch.tensor([[16.0, 24.0], [16.0, 24.0]])
    geometry = ConditionInputs(list(CAPTIONS), None, 1.0, SizeGeometry(sizes, crop, target))
    family = PixArtAlpha(random_alpha_pipeline(**LARGE), "random")
    told = size_conditions(family, family.condition(geometry))
    assert torch.equal(told["resolution"], sizes)
    torch.testing.assert_close(told["aspect_ratio"], torch.full((2, 1), 16 / 24))
    picture = size_conditions(family, conditioned(family))
    assert torch.equal(picture["resolution"], target)
    torch.testing.assert_close(picture["aspect_ratio"], told["aspect_ratio"])
    others = (PixArtAlpha(random_alpha_pipeline(), "r"), PixArtSigma(random_sigma_pipeline(**LARGE_SIGMA), "r"))
    for other in others:
        assert size_conditions(other, other.condition(geometry)) == {"resolution": None, "aspect_ratio": None}


def test_size_conditions_reach_the_prediction():
    family = PixArtAlpha(random_alpha_pipeline(**LARGE), "random")
    predictions = []
    for side in (64.0, 640.0):
        sizes = torch.full((2, 2), side)
        conditioning = family.condition(ConditionInputs(CAPTIONS, None, 1.0, SizeGeometry(sizes, sizes, sizes)))
        predictions.append(predicted(family, noise(2, 4, 8, 12), 0.5, conditioning))
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4


def test_the_variance_half_is_dropped_and_a_model_without_one_is_whole():
    family = PixArtSigma(random_sigma_pipeline(), "random")
    assert family.backbone.config.out_channels == 8
    plain = PixArtSigma(random_sigma_pipeline(out_channels=4), "random")
    for model in (family, plain):
        conditioning = conditioned(model, ["fox"])
        assert predicted(model, noise(1, 4, 8, 12), 0.5, conditioning).shape == (1, 4, 8, 12)


def test_noise_levels_are_the_schedulers_table():
    family = PixArtAlpha(random_alpha_pipeline(), "random")
    path = family.default_path()
    assert isinstance(path, VariancePreserving) and path.prediction == "epsilon"
    table = family.pipeline().scheduler.alphas_cumprod
    torch.testing.assert_close(path.schedule.alphas_cumprod().float(), table, rtol=1e-4, atol=1e-7)
    assert family.default_shift() is None
    assert family.default_time_law() == "uniform"


def test_every_level_of_a_step_is_that_step():
    family = PixArtAlpha(random_alpha_pipeline(), "random")
    conditioning = conditioned(family, ["fox"] * 4)
    times = torch.tensor([[0.0], [0.0015], [0.9999], [1.0]])
    ((arguments, _),) = calls(family, lambda: family.predict(noise(4, 4, 4, 4), times, conditioning))
    assert arguments["timestep"].tolist() == [0, 1, 999, 999]
    assert arguments["timestep"].dtype == torch.int64


def test_masks_hide_what_is_after_the_caption():
    family = PixArtSigma(random_sigma_pipeline(), "random")
    conditioning = conditioned(family, ["fox"])
    mask = conditioning.tensors["prompt_attention_mask"]
    assert mask.dtype == torch.int64 and 0 < mask.sum() < 12
    x = noise(1, 4, 8, 12)
    before = predicted(family, x, 0.5, conditioning)
    conditioning.tensors["prompt_embeds"][mask == 0] += 1
    assert torch.equal(predicted(family, x, 0.5, conditioning), before)


def test_captions_are_lowered_and_stripped_but_not_cleaned():
    family = PixArtAlpha(random_alpha_pipeline(), "random")
    options = family.pipeline_options()
    assert options == {"max_sequence_length": 12, "clean_caption": False, "use_resolution_binning": False}
    embedding, other = family.embed_text([" A Fox "]).tensors, family.embed_text(["a fox"]).tensors
    assert torch.equal(embedding["prompt_embeds"], other["prompt_embeds"])


@pytest.mark.parametrize(
    ("kind", "build", "limit"), [(PixArtAlpha, random_alpha_pipeline, 120), (PixArtSigma, random_sigma_pipeline, 300)]
)
def test_text_lengths_follow_the_tokenizer_up_to_the_models(kind, build, limit):
    pipe = build()
    before = kind(pipe, "random").fingerprint()
    pipe.tokenizer.model_max_length = 512
    family = kind(pipe, "random")
    assert family.pipeline_options()["max_sequence_length"] == limit
    assert family.embed_text(["fox"]).tensors["prompt_embeds"].shape[1] == limit
    assert family.fingerprint() != before


def test_the_first_published_layout_loads(tmp_path):
    """PixArt-alpha's folders name the transformer's class of their time, Transformer2DModel."""
    random_alpha_pipeline(**LARGE).save_pretrained(tmp_path)
    index, config = tmp_path / "model_index.json", tmp_path / "transformer" / "config.json"
    index.write_text(index.read_text().replace("PixArtTransformer2DModel", "Transformer2DModel"))
    values = json.loads(config.read_text())
    del values["use_additional_conditions"], values["interpolation_scale"]
    config.write_text(json.dumps({**values, "_class_name": "Transformer2DModel", "num_vector_embeds": None}))
    family = PixArtAlpha.load(str(tmp_path), torch.float32, CPU)
    now = PixArtAlpha(random_alpha_pipeline(**LARGE), "random")
    x = noise(2, 4, 8, 12)
    torch.testing.assert_close(draw(family, x)[1], draw(now, x)[1], **CLOSE)
    assert PixArtAlpha.read_capabilities(str(tmp_path)) == now.capabilities
    skeleton = PixArtAlpha.skeleton(str(tmp_path), torch.float32)
    assert skeleton.backbone.state_dict().keys() == now.backbone.state_dict().keys()
