"""Time laws: numbers of spec e.1 and e.2, the paper's own formula, quantile and density as inverses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.flow.time_laws import LinearShift, LogitNormal

DELTA = (0.5, 0.0, -0.5)
FLUX = LinearShift()
UNIT = st.floats(1e-6, 1 - 1e-6)


def column(value, dtype=torch.float64, n=1):
    return torch.full((n,), value, dtype=dtype)


@pytest.mark.parametrize(
    ("width", "height", "tokens", "mu"),
    [
        (256, 256, 256, 0.5),
        (512, 512, 1024, 0.63),
        (768, 768, 2304, 0.8466667),
        (1024, 1024, 4096, 1.15),
        (832, 1216, 3952, 1.125625),
        (1280, 1280, 6400, 1.54),
        (1152, 1408, 6336, 1.5291667),
        (960, 1664, 6240, 1.5129167),
        (2048, 2048, 16384, 3.23),
        (4096, 4096, 65536, 11.55),
    ],
)
def test_resolution_shift_is_the_flux_line_without_a_clamp(width, height, tokens, mu):
    assert (width // 16) * (height // 16) == tokens
    assert FLUX(torch.tensor([tokens])).item() == pytest.approx(mu, abs=1e-7)


def test_resolution_shift_agrees_with_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (64, 256, 3952, 4096, 6400, 65536):
        theirs = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        assert FLUX(torch.tensor([tokens])).item() == pytest.approx(theirs, rel=1e-12)


# side of the square, granularity index -> logit mean, median, mean, P(t < .5), P(t > .9)
TABLE_E2 = [
    (512, 0, 1.13, 0.755839, 0.719410, 0.12924, 0.14294),
    (512, 1, 0.63, 0.652489, 0.627623, 0.26435, 0.05853),
    (512, 2, 0.13, 0.532454, 0.526838, 0.44828, 0.01936),
    (1024, 0, 1.65, 0.838891, 0.800041, 0.04947, 0.29211),
    (1024, 1, 1.15, 0.759511, 0.722816, 0.12507, 0.14750),
    (1024, 2, 0.65, 0.657010, 0.631509, 0.25785, 0.06090),
    (1280, 0, 2.04, 0.884933, 0.849116, 0.02068, 0.43753),
    (1280, 1, 1.54, 0.823465, 0.784406, 0.06178, 0.25552),
    (1280, 2, 1.04, 0.738850, 0.703810, 0.14917, 0.12359),
]


@pytest.mark.parametrize(("side", "granularity", "location", "median", "mean", "below", "above"), TABLE_E2)
def test_modulated_law_has_the_tabulated_moments(side, granularity, location, median, mean, below, above):
    law = LogitNormal(delta=DELTA, shift=FLUX)
    n = 200_001
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # midpoint rule in u: the law's own quadrature
    g, tokens = column(granularity, torch.int64, n), column((side // 16) ** 2, torch.int64, n)
    t = law.quantile(u, g, tokens)
    assert law.location(g[:1], tokens[:1]).item() == pytest.approx(location, abs=1e-9)
    assert t[n // 2].item() == pytest.approx(median, abs=1e-6)
    assert t.mean().item() == pytest.approx(mean, abs=1e-5)
    assert (t < 0.5).double().mean().item() == pytest.approx(below, abs=2e-5)
    assert (t > 0.9).double().mean().item() == pytest.approx(above, abs=2e-5)


@given(u=UNIT, granularity=st.integers(0, 2), tokens=st.integers(16, 65536), std=st.floats(0.1, 2))
def test_closed_form_equals_the_papers_two_stages(u, granularity, tokens, std):
    """Eq. 30 (sigmoid of s z + Delta) followed by Eq. 31 (resolution shift), written out in plain Python."""
    law = LogitNormal(std=std, delta=DELTA, shift=FLUX)
    t = law.quantile(column(u), column(granularity, torch.int64), column(tokens, torch.int64)).item()
    z = torch.special.ndtri(torch.tensor(u, dtype=torch.float64)).item()
    t_logit = 1 / (1 + math.exp(-(std * z + DELTA[granularity])))
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    assert t == pytest.approx(t_logit / (t_logit + (1 - t_logit) * math.exp(-mu)), rel=1e-9)


@given(u=UNIT, granularity=st.integers(0, 2))
def test_neutral_modulation_is_the_plain_law_bit_for_bit(u, granularity):
    g, tokens = column(granularity, torch.int64), column(64, torch.int64)
    plain = LogitNormal(shift=FLUX).quantile(column(u), column(0, torch.int64), tokens)
    assert torch.equal(LogitNormal(delta=(0.0, 0.0, 0.0), shift=FLUX).quantile(column(u), g, tokens), plain)


def test_coarser_slices_train_noisier_on_the_flux_clock():
    law = LogitNormal(delta=DELTA, shift=FLUX)
    u = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    tokens = torch.full((999,), 4096)
    macro, meso, micro = (law.quantile(u, torch.full((999,), g), tokens) for g in range(3))
    assert (macro > meso).all() and (meso > micro).all()


@given(granularity=st.integers(0, 2), mean=st.floats(-2, 2), std=st.floats(0.3, 2))
def test_density_is_the_derivative_of_the_distribution(granularity, mean, std):
    law = LogitNormal(mean=mean, std=std, delta=DELTA)
    u = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    step = 1e-6
    g, tokens = column(granularity, torch.int64, 5), column(64, torch.int64, 5)
    slope = (law.quantile(u + step, g, tokens) - law.quantile(u - step, g, tokens)) / (2 * step)
    density = law.density(law.quantile(u, g, tokens), g, tokens)
    torch.testing.assert_close(density * slope, torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)
