"""Numbers of granularity-and-urae.md (e.3), diffusers' own tables, and the laws between the three predictions."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.flow.variance_preserving import NoiseSchedule, VariancePreserving
from flowgrain.flow.weightings import Debiased, MinSnr

SDXL = NoiseSchedule()
# t: (abar, SNR, epsilon weights for gamma 4, 5, 7, v weights)
TABLE = {
    0: (0.999150, 1175.470588, (0.003403, 0.004254, 0.005955), (0.003400, 0.004250, 0.005950)),
    1: (0.998296, 585.864048, (0.006828, 0.008534, 0.011948), (0.006816, 0.008520, 0.011928)),
    10: (0.990431, 103.507504, (0.038645, 0.048306, 0.067628), (0.038275, 0.047843, 0.066981)),
    50: (0.951577, 19.651302, (0.203549, 0.254436, 0.356210), (0.193692, 0.242115, 0.338962)),
    100: (0.894223, 8.453894, (0.473155, 0.591443, 0.828021), (0.423106, 0.528883, 0.740436)),
    150: (0.827812, 4.807593, (0.832017, 1, 1), (0.688753, 0.827812, 0.827812)),
    200: (0.753692, 3.059958, (1, 1, 1), (0.753692,) * 3),
    500: (0.276333, 0.381850, (1, 1, 1), (0.276333,) * 3),
    999: (0.004660, 0.004682, (1, 1, 1), (0.004660,) * 3),
}


def levels(*steps):
    return (torch.tensor(steps, dtype=torch.float64) + 0.5) / 1000


ALL = levels(*range(1000))


@pytest.mark.parametrize("step", TABLE)
def test_the_numbers_of_the_spec(step):
    abar, snr, epsilon, velocity = TABLE[step]
    t = levels(step).expand(3)
    path = VariancePreserving(SDXL)
    granularity = torch.arange(3)
    assert path.coefficients(t).alpha.square().flatten()[0].item() == pytest.approx(abar, abs=6e-7)
    assert path.snr(t)[0].item() == pytest.approx(snr, rel=1e-6, abs=6e-7)
    assert MinSnr(path)(t, granularity).tolist() == pytest.approx(epsilon, abs=6e-7)
    v_path = VariancePreserving(SDXL, "v_prediction")
    assert MinSnr(v_path)(t, granularity).tolist() == pytest.approx(velocity, abs=6e-7)


def test_where_the_weights_reach_one_and_their_means():
    path = VariancePreserving(SDXL)
    snr = path.snr(ALL)
    assert [int((snr <= gamma).nonzero()[0]) for gamma in (4, 5, 7)] == [170, 147, 116]
    assert int((snr < 1).nonzero()[0]) == 354
    for granularity, mean, v_mean in ((0, 0.901567, 0.281123), (1, 0.916571, 0.294330), (2, 0.935823, 0.311751)):
        kinds = torch.full((1000,), granularity)
        assert MinSnr(path)(ALL, kinds).double().mean().item() == pytest.approx(mean, abs=6e-7)
        v_path = VariancePreserving(SDXL, "v_prediction")
        assert MinSnr(v_path)(ALL, kinds).double().mean().item() == pytest.approx(v_mean, abs=6e-7)


def test_zero_terminal_snr():
    zero = VariancePreserving(NoiseSchedule(zero_terminal_snr=True), "v_prediction")
    snr = zero.snr(ALL)
    assert snr[500].item() == pytest.approx(0.317556, abs=6e-7)
    assert snr[998].item() == pytest.approx(1.9679e-7, rel=1e-4)
    assert snr[999].item() == pytest.approx(0, abs=1e-12)
    assert [int((snr <= gamma).nonzero()[0]) for gamma in (4, 5, 7)] == [161, 139, 109]
    last, macro = levels(999), torch.tensor([0])
    assert MinSnr(zero)(last, macro).item() == pytest.approx(0, abs=1e-12)
    epsilon = VariancePreserving(NoiseSchedule(zero_terminal_snr=True))
    assert MinSnr(epsilon)(last, macro).item() == 1  # the limit, not 0 / 0


def test_debiased_estimation():
    path, steps = VariancePreserving(SDXL), levels(0, 100, 500, 999)
    expected = [0.031623, 0.343931, 1.618279, 14.614641]
    assert Debiased(path)(steps, torch.zeros(4, dtype=torch.long)).tolist() == pytest.approx(
        expected, rel=2e-6, abs=6e-7
    )
    v_weights = Debiased(VariancePreserving(SDXL, "v_prediction"))(
        levels(0, 500, 999), torch.zeros(3, dtype=torch.long)
    )
    assert v_weights.tolist() == pytest.approx([0.000999, 0.723667, 0.995340], abs=6e-7)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_those_of_diffusers(kind, zero):
    reference = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule=kind, rescale_betas_zero_snr=zero)
    own = NoiseSchedule(beta_start=0.0015, beta_end=0.0195, kind=kind, zero_terminal_snr=zero).alphas_cumprod()
    torch.testing.assert_close(own.float(), reference.alphas_cumprod, rtol=3e-5, atol=1e-7)
    if not zero:
        steps = torch.tensor([0, 500, 999])
        own_snr = VariancePreserving(NoiseSchedule(beta_start=0.0015, beta_end=0.0195, kind=kind)).snr(
            levels(0, 500, 999)
        )
        torch.testing.assert_close(own_snr.float(), compute_snr(reference, steps), rtol=1e-4, atol=0)


@given(st.integers(0, 999), st.sampled_from(["epsilon", "v_prediction", "sample"]), st.integers(0, 2**31))
def test_x_t_and_targets_are_those_of_diffusers_and_lead_back(step, prediction, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    path, t = VariancePreserving(SDXL, prediction), levels(step).expand(2)
    sample = path(x0, noise, t)
    steps = torch.tensor([step, step])
    torch.testing.assert_close(sample.x_t, reference.add_noise(x0, noise, steps), rtol=1e-4, atol=1e-5)
    if prediction == "v_prediction":
        torch.testing.assert_close(sample.target, reference.get_velocity(x0, noise, steps), rtol=1e-4, atol=1e-5)
    back = path.prediction_to_x0(sample.target, sample.x_t, t)
    torch.testing.assert_close(back, x0, rtol=1e-8, atol=1e-9)
    assert torch.equal(path.steps(sample.times.flatten()), steps)
    assert torch.equal(path.steps(sample.times.float().flatten()), steps)
    velocity = path.noise_to_velocity(noise, sample.x_t, t)
    torch.testing.assert_close(path.velocity_to_x0(velocity, sample.x_t, t), x0, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(path.velocity_to_noise(velocity, sample.x_t, t), noise, rtol=1e-6, atol=1e-6)


@given(st.floats(0, 1))
def test_every_level_has_a_step_and_unit_variance(t):
    path = VariancePreserving(SDXL)
    level = torch.tensor([t], dtype=torch.float64)
    c = path.coefficients(level)
    assert (c.alpha**2 + c.sigma**2).item() == pytest.approx(1, abs=1e-12)
    assert (c.alpha * c.d_alpha + c.sigma * c.d_sigma).item() == pytest.approx(0, abs=1e-12)
    assert 0 <= path.steps(level).item() <= 999
