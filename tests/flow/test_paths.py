"""Rectified flow: definition, derivative, and round trips among velocity, x0 and noise."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.flow.paths import PathSample, RectifiedFlow, grouped_mse

PATH = RectifiedFlow()


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31), t=st.floats(0.01, 0.99))
def test_conversions_invert_the_path(seed, t):
    x0, noise = draw(seed, 2, 3, 4, 4), draw(seed + 1, 2, 3, 4, 4)
    level = torch.full((2,), t, dtype=torch.float64)
    sample = PATH(x0, noise, level)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(PATH.velocity_to_x0(sample.target, sample.x_t, level), x0, **close)
    torch.testing.assert_close(PATH.velocity_to_noise(sample.target, sample.x_t, level), noise, **close)
    torch.testing.assert_close(PATH.x0_to_velocity(x0, sample.x_t, level), sample.target, **close)
    torch.testing.assert_close(PATH.noise_to_velocity(noise, sample.x_t, level), sample.target, **close)


def test_ends_are_data_and_noise():
    x0, noise = draw(0, 1, 2, 2, 2), draw(1, 1, 2, 2, 2)
    assert torch.equal(PATH(x0, noise, torch.zeros(1, dtype=torch.float64)).x_t, x0)
    assert torch.equal(PATH(x0, noise, torch.ones(1, dtype=torch.float64)).x_t, noise)


def test_target_is_the_derivative_of_the_path():
    x0, noise = draw(2, 1, 2, 2, 2), draw(3, 1, 2, 2, 2)
    t = torch.tensor([0.4], dtype=torch.float64)
    slope = (PATH(x0, noise, t + 1e-6).x_t - PATH(x0, noise, t - 1e-6).x_t) / 2e-6
    torch.testing.assert_close(slope, PATH(x0, noise, t).target, rtol=1e-8, atol=1e-8)


def test_snr():
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(PATH.snr(t), torch.tensor([9.0, 1.0, 1 / 9], dtype=torch.float64))


def test_grouped_mse_is_the_mean_for_one_group_and_a_weighted_sum_for_two():
    prediction, target = draw(4, 2, 6, 3, 3).float(), draw(5, 2, 6, 3, 3).float()
    t = torch.full((2,), 0.5)

    def sample(weights, channels):
        times = t[:, None].expand(-1, len(channels))
        return PathSample(target, target, times, torch.tensor([weights, weights]), channels)

    squared = (prediction - target).square()
    torch.testing.assert_close(grouped_mse(prediction, sample([1.0], (6,))), squared.mean(dim=(1, 2, 3)))
    expected = 0.3 * squared[:, :2].mean(dim=(1, 2, 3)) + 2.0 * squared[:, 2:].mean(dim=(1, 2, 3))
    torch.testing.assert_close(grouped_mse(prediction, sample([0.3, 2.0], (2, 4))), expected)
