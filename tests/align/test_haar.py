"""The Haar transform, and what the released wavelet loss is (Diffusion-4K)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.align.haar import BandWeights, band_errors, haar, inverse_haar, wavelet_error
from flowgrain.flow.paths import RectifiedFlow


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_cell_by_hand():
    cell = torch.tensor([[1.0, 2.0], [3.0, 5.0]])[None, None]
    assert haar(cell).flatten().tolist() == [5.5, -2.5, -1.5, 0.5]


def test_bands_see_what_they_are_named_for():
    rows = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[None, None]
    assert haar(rows).flatten().tolist() == [0, 2, 0, 0] and haar(rows.mT).flatten().tolist() == [0, 0, 2, 0]


@given(st.integers(1, 7), st.integers(1, 7))
def test_norm_is_kept_and_the_transform_inverts_also_at_odd_sides(height, width):
    latents = random(2, 3, height, width)
    torch.testing.assert_close(haar(latents).square().sum(), latents.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(inverse_haar(haar(latents), height, width), latents, rtol=1e-12, atol=1e-14)


@given(st.floats(0.02, 1.0), st.integers(2, 6), st.integers(2, 6))
def test_the_released_wavelet_loss_is_flow_matching_weighted_with_sigma_squared(t, height, width):
    """Spec d: WLF == mean(sigma^2 (v - (noise - x0))^2)."""
    x0, noise, velocity = (random(2, 4, height, width, seed=seed) for seed in range(3))
    level = torch.full((2,), t, dtype=torch.float64)
    x_t = RectifiedFlow()(x0, noise, level).x_t
    bands = haar(x_t - t * velocity) - haar(x0)
    released = bands.square().sum(dim=(0, 2, 3, 4)) / x0[0].numel()
    flow = (velocity - (noise - x0)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(released, t**2 * flow, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(
        wavelet_error(t * (velocity - (noise - x0)), BandWeights()), released, rtol=1e-9, atol=1e-13
    )


def test_band_weights_count_their_band_alone():
    error = random(2, 3, 4, 6)
    bands = band_errors(error)
    torch.testing.assert_close(bands.sum(dim=0), error.square().mean(dim=(1, 2, 3)), rtol=1e-12, atol=0)
    for number, name in enumerate(("ll", "lh", "hl", "hh")):
        weights = BandWeights(**{"ll": 0.0, "lh": 0.0, "hl": 0.0, "hh": 0.0, name: 2.0})
        torch.testing.assert_close(wavelet_error(error, weights), 2 * bands[number], rtol=1e-12, atol=0)


def test_gradient_reaches_weighted_bands_alone():
    error = random(1, 1, 4, 4).requires_grad_()
    wavelet_error(error, BandWeights(ll=0.0)).sum().backward()
    assert error.grad is not None and haar(error.grad)[0].abs().max() < 1e-15 < haar(error.grad)[1:].abs().min()


def test_pywavelets_agrees():
    pywt = pytest.importorskip("pywt")
    latents = random(1, 1, 6, 4)
    low, (horizontal, vertical, diagonal) = pywt.dwt2(latents[0, 0].numpy(), "haar")
    for found, expected in zip(haar(latents)[:, 0, 0], (low, horizontal, vertical, diagonal), strict=True):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-14)
