"""What a picture of a size costs, against closed forms."""

import pytest
import torch

from flowgrain.families.registry import load_skeleton
from flowgrain.train.sizes import size_cost


@pytest.mark.parametrize(("width", "height"), [(128, 128), (256, 128)])
def test_operations_of_a_small_flux(small_flux, width, height):
    """Attention: 4 (N + T)^2 width in each block; the rest grows with the tokens and not with their square."""
    family = load_skeleton(str(small_flux), None, torch.float32)
    embedding = family.embed_text(["a fox"])
    cost = size_cost(family, embedding, width, height, 1.0, "auto")
    config = family.backbone.config
    hidden = config["num_attention_heads"] * config["attention_head_dim"]
    sequence = cost.tokens + embedding.tensors["prompt_embeds"].shape[1]
    blocks = config["num_layers"] + config["num_single_layers"]
    assert cost.tokens == family.tokens(height, width)
    assert cost.attention == 4 * sequence**2 * hidden * blocks
    double = size_cost(family, embedding, width, 2 * height, 1.0, "auto")
    linear, more = cost.operations - cost.attention, double.operations - double.attention
    assert linear < more < 2 * linear  # the text's part and the modulation's do not grow
    scale, channels = family.capabilities.latent_scale, family.capabilities.latent_channels
    assert cost.posterior_bytes == 8 * channels * (width // scale) * (height // scale)
    shift = family.default_shift()
    assert shift is not None and cost.mu == pytest.approx(float(shift(torch.tensor([cost.tokens]))))


def test_the_tiling_asked_for_is_told(small_flux):
    family = load_skeleton(str(small_flux), None, torch.float32)
    embedding = family.embed_text(["a fox"])
    whole = size_cost(family, embedding, 128, 128, 1.0, "auto").lines()
    tiled = size_cost(family, embedding, 128, 128, 1.0, "exact").lines()
    assert "whole" in whole[1] and "in tiles" not in whole[1]
    assert tiled[1].count("in tiles") == 2
    assert "tokens" in whole[0] and "attention" in whole[0]
