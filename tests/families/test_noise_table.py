"""Families over a table of noise levels: the path is the scheduler's, other schedulers are refused or replaced."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from family_contract import noise
from random_flux2 import random_klein
from random_pixart import random_alpha_pipeline, random_sigma_pipeline
from random_unet import NOISE, random_sd15_pipeline

from flowgrain.errors import ModelError
from flowgrain.families.noise_table import NoiseTableFamily
from flowgrain.families.pixart import PixArtAlpha, PixArtSigma
from flowgrain.families.stable_diffusion import StableDiffusion
from flowgrain.flow.variance_preserving import VariancePreserving

BUILDS = {
    "sd15": (StableDiffusion, random_sd15_pipeline),
    "alpha": (PixArtAlpha, random_alpha_pipeline),
    "sigma": (PixArtSigma, random_sigma_pipeline),
}


@pytest.fixture(scope="module")
def pipes():
    return {name: build() for name, (_, build) in BUILDS.items()}


@pytest.fixture
def family_with(pipes):
    """A family over a pipeline with another scheduler."""

    def build(scheduler, name="sd15") -> NoiseTableFamily:
        pipes[name].register_modules(scheduler=scheduler)
        return BUILDS[name][0](pipes[name], "random")

    return build


SNR = {"rescale_betas_zero_snr": True}
V = {"prediction_type": "v_prediction"}
SCHEDULERS = {
    "euler": EulerDiscreteScheduler(**NOISE),
    "euler v, zero SNR (NoobAI)": EulerDiscreteScheduler(**NOISE, **V, **SNR, timestep_spacing="trailing"),
    "euler ancestral": EulerAncestralDiscreteScheduler(**NOISE, **V, **SNR),
    "ddim": DDIMScheduler(**NOISE, clip_sample=False),
    "ddim v, zero SNR": DDIMScheduler(**NOISE, **V, **SNR, clip_sample=False),
    "ddpm of x0": DDPMScheduler(
        beta_start=0.0001, beta_end=0.02, prediction_type="sample", steps_offset=1, clip_sample=False
    ),
    "pndm v": PNDMScheduler(**NOISE, **V, skip_prk_steps=True),
    "unipc v, zero SNR": UniPCMultistepScheduler(**NOISE, **V, **SNR),
    "dpm++ karras": DPMSolverMultistepScheduler(**NOISE, use_karras_sigmas=True),
    "dpm++ v, zero SNR": DPMSolverMultistepScheduler(**NOISE, **V, **SNR),
    "lcm": LCMScheduler(**NOISE),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_default_path_is_the_schedulers_table_and_prediction(family_with, name):
    scheduler = SCHEDULERS[name]
    path = family_with(scheduler).default_path()
    table = scheduler.alphas_cumprod.double()
    steps = torch.tensor([0, 1, 250, 998, 999])
    x0, drawn = noise(5, 4, 4, 4), noise(5, 4, 4, 4, seed=1)
    sample = path(x0, drawn, (steps + 0.5) / 1000)
    level = table[steps].view(-1, 1, 1, 1)
    torch.testing.assert_close(sample.x_t, (level.sqrt() * x0 + (1 - level).sqrt() * drawn).float(), rtol=0, atol=2e-3)
    targets = {
        "epsilon": drawn, "sample": x0, "v_prediction": (level.sqrt() * drawn - (1 - level).sqrt() * x0).float(),
    }  # fmt: skip
    torch.testing.assert_close(sample.target, targets[scheduler.config.prediction_type], rtol=0, atol=2e-3)
    torch.testing.assert_close(path.snr((steps + 0.5) / 1000), table[steps] / (1 - table[steps]), rtol=2e-3, atol=1e-7)
    if isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        torch.testing.assert_close(sample.x_t, scheduler.add_noise(x0, drawn, steps), rtol=1e-4, atol=1e-4)


OFF = {"steps_offset": 1, "clip_sample": False}
OTHERS = {
    "edm": (EDMEulerScheduler(), "EDMEulerScheduler with beta_schedule 'None'"),
    "flow": (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler with beta_schedule 'None'"),
    "flow sigmas": (
        UniPCMultistepScheduler(prediction_type="flow_prediction", steps_offset=1),
        "prediction_type 'flow_prediction'",
    ),
    "own betas": (DDIMScheduler(trained_betas=[0.1] * 1000, **OFF), "trained_betas null"),
    "cosine": (DDIMScheduler(beta_schedule="squaredcos_cap_v2", **OFF), "beta_schedule 'squaredcos_cap_v2'"),
    "unread": (
        PNDMScheduler.from_config({**NOISE, **SNR, "skip_prk_steps": True}),
        "noise levels of PNDMScheduler are not those that its configuration says",
    ),
}


@pytest.mark.parametrize("model", ["sd15", "sigma"])
@pytest.mark.parametrize("name", OTHERS)
def test_schedulers_of_other_noise_levels_are_refused(family_with, name, model):
    scheduler, message = OTHERS[name]
    with pytest.raises(ModelError, match=rf"^random: [^\n]*{message}[^\n]*$"):
        family_with(scheduler, model)


@pytest.mark.parametrize("model", BUILDS)
def test_the_path_can_be_overridden(family_with, model):
    scheduler = {"sd15": PNDMScheduler(**NOISE, skip_prk_steps=True)}.get(model, DPMSolverMultistepScheduler(**NOISE))
    family = family_with(scheduler, model)
    family.override_path("v_prediction", None)
    assert type(family.pipeline().scheduler) is type(scheduler)
    family.override_path(None, True)
    drawn = family.pipeline().scheduler
    assert isinstance(drawn, EulerDiscreteScheduler if model == "sd15" else DPMSolverMultistepScheduler)
    assert (drawn.config["prediction_type"], drawn.config["timestep_spacing"]) == ("v_prediction", "trailing")
    path = family.default_path()
    assert isinstance(path, VariancePreserving)
    assert path.prediction == "v_prediction" and path.schedule.zero_terminal_snr
    torch.testing.assert_close(path.schedule.alphas_cumprod().float(), drawn.alphas_cumprod, rtol=0, atol=1e-5)
    family.override_path("epsilon", False)
    assert not family.default_path().schedule.zero_terminal_snr


def test_flow_matching_models_have_no_table_to_override():
    with pytest.raises(ModelError, match="has no table of noise levels; remove path"):
        random_klein().override_path("epsilon", None)
