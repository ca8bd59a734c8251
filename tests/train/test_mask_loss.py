"""Masks: weights of latent cells against closed forms, and their effect on the loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.flow.paths import RectifiedFlow, grouped_mse
from flowgrain.train.masks import MaskConfig, cell_weights


def half_mask(side=32):
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    return mask


def test_cells_take_the_mean_of_their_pixels():
    mask = torch.zeros(16, 16)
    mask[:8, :4] = 1  # half of the first cell
    weights = cell_weights(mask, 8, MaskConfig(unmasked=0.2, normalise=False))
    assert weights.flatten().tolist() == pytest.approx([0.6, 0.2, 0.2, 0.2])


@given(st.floats(0.0, 0.9), st.integers(1, 15))
def test_normalised_weights_have_mean_one(unmasked, columns):
    mask = torch.zeros(16, 16)
    mask[:, :columns] = 1
    weights = cell_weights(mask, 8, MaskConfig(unmasked=unmasked))
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("unmasked", [0.0, 0.1])
def test_an_empty_mask_keeps_the_weight_of_the_unmasked(unmasked):
    weights = cell_weights(torch.zeros(16, 16), 8, MaskConfig(unmasked=unmasked))
    assert torch.equal(weights, torch.full((1, 2, 2), unmasked))


def test_a_full_mask_is_the_unmasked_loss_bitwise():
    x0, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    sample = RectifiedFlow()(x0, noise, torch.tensor([0.3, 0.8], dtype=torch.float64))
    prediction = torch.randn(2, 4, 4, 4)
    weights = cell_weights(torch.ones(32, 32), 8, MaskConfig()).expand(2, 1, 4, 4)
    assert torch.equal(grouped_mse(prediction, sample, weights), grouped_mse(prediction, sample))


def test_error_outside_the_mask_counts_with_the_floor():
    x0, noise = torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    sample = RectifiedFlow()(x0, noise, torch.tensor([0.5], dtype=torch.float64))
    prediction = torch.zeros(1, 4, 4, 4)
    prediction[..., 2:] = 1.0  # wrong outside the mask alone
    weights = cell_weights(half_mask(), 8, MaskConfig(unmasked=0.1))[None]
    # mean weight .55; error 1 on half of the cells with weight .1
    assert grouped_mse(prediction, sample, weights).item() == pytest.approx(0.5 * 0.1 / 0.55)
