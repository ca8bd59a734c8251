"""Random models with random adapters that were 'trained', hence change what the models predict."""

import functools

import torch
from random_flux import random_pipeline as random_flux_pipeline
from random_sd3 import DUAL_ATTENTION, random_sd3_pipeline
from random_unet import random_sd15_pipeline, random_sd21_pipeline, random_sdxl_pipeline

from flowgrain.adapters.base import AdapterConfig
from flowgrain.adapters.low_rank import inject
from flowgrain.families.base import ConditionInputs
from flowgrain.families.flux import Flux
from flowgrain.families.sd3 import StableDiffusion3
from flowgrain.families.sdxl import StableDiffusionXL
from flowgrain.families.stable_diffusion import StableDiffusion

HEADER = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.title": "fox",
    "modelspec.implementation": "diffusers",
    "ss_network_dim": "4",
    "ss_network_alpha": "3.0",
    "flowgrain_recipe": "fox",
}
CAPTIONS = ["a red fox", "an apple on a plate"]
PIPELINES = {
    "sd15": (random_sd15_pipeline, StableDiffusion),
    "sd21": (random_sd21_pipeline, StableDiffusion),
    "sdxl": (random_sdxl_pipeline, StableDiffusionXL),
    "sd3": (random_sd3_pipeline, StableDiffusion3),
    "sd35": (lambda: random_sd3_pipeline(**DUAL_ATTENTION), StableDiffusion3),
    "flux": (random_flux_pipeline, Flux),
}
UNETS = ("sd15", "sd21", "sdxl")


def random_family(model):
    """The same weights at every call."""
    pipeline, family = PIPELINES[model]
    return family(pipeline(), "random")


@functools.cache
def untouched(model):
    """A family for what reads names and shapes alone."""
    return random_family(model)


def options(model, kind="lora", **changes):
    """An adapter with a rank and an alpha of its own for some layers, on text encoders and convolutions if any."""
    settings = {"kind": kind, "rank": 4, "alpha": 3.0}
    if model in UNETS:
        settings |= {"conv_rank": 2, "conv_alpha": 0.7, "text_encoders": {"rank": 3, "alpha": 2.0}}
        settings |= {"ranks": {"attn1.to_q": 2}, "alphas": {"attn1.to_v": 5.0}}
    else:
        settings |= {"ranks": {"attn.to_q": 2}, "alphas": {"attn.to_v": 5.0}}
        settings |= {"text_encoders": {}} if model != "flux" else {}
    return AdapterConfig(**(settings | changes))


def trained(family, config, seed=3, size=1.0):
    """An adapter whose parameters all moved."""
    adapter = inject(family, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * noise)
            elif "lora_B" in name:
                parameter.copy_(0.3 * size * noise)
    adapter.train(False)
    return adapter


def predict(family):
    """The backbone's prediction for captions, so that the text encoders take part."""
    generator = torch.Generator().manual_seed(11)
    shape = (2, family.capabilities.latent_channels, 8, 8)
    with torch.no_grad():
        conditioning = family.condition(ConditionInputs(CAPTIONS, None, 3.5))
        times = torch.tensor([[0.8], [0.3]])
        return family.predict(torch.randn(shape, generator=generator), times, conditioning).prediction
