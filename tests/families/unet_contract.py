"""What the pipelines of U-Net families do with noise levels and guidance, for the tests of these families."""

import copy

import torch
from family_contract import conditioned, draw, latent_noise

from flowgrain.families.base import ConditionInputs, TextEmbedding


def times(step, rows):
    """Noise levels of a timestep: the middle of a table's entry."""
    return torch.full((rows, 1), (float(step) + 0.5) / 1000, dtype=torch.float64)


def unconditional(family, rows):
    """What classifier-free guidance leaves out by default: zeros in SDXL, the empty caption elsewhere."""
    text = family.embed_text([""] * rows)
    if family._pipeline.config.get("force_zeros_for_empty_prompt"):
        text = TextEmbedding({name: torch.zeros_like(tensor) for name, tensor in text.tensors.items()})
    return family.condition(ConditionInputs(None, text, 1.0))


def check_two_steps(family, guidance, negative):
    """Two steps of the scheduler on the family's predictions end where the pipeline's end."""
    x = latent_noise(family, 16, 24)
    prompt = None if negative is None else [negative] * 2
    pipe, theirs = draw(family, x, guidance_scale=guidance, negative_prompt=prompt)
    positive = conditioned(family)
    without = unconditional(family, 2) if negative is None else conditioned(family, [negative] * 2)
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(2)
    latents = x * scheduler.init_noise_sigma
    for step in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, step)
        with torch.no_grad():
            prediction = family.predict(scaled, times(step, 2), positive).prediction
            if guidance > 1:
                base = family.predict(scaled, times(step, 2), without).prediction
                prediction = base + guidance * (prediction - base)
        latents = scheduler.step(prediction, step, latents, return_dict=False)[0]
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)
