"""Oscillation measures on the three cases with closed forms, and on streams of tensors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import ConfigError
from flowgrain.geometry.oscillation import Oscillation, high_frequency_share, step_spectrum


def run(steps, window=16, sketch=256, seed=0):
    log = Oscillation(torch.Generator().manual_seed(seed), window=window, sketch=sketch)
    for step in steps:
        log.add(step)
    return log.measures()


@given(n=st.integers(2, 40), size=st.integers(1, 30), seed=st.integers(0, 2**31 - 1))
def test_a_straight_line(n, size, seed):
    step = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = run([step * (1 + i) for i in range(n)], window=2)
    assert found.mean_cosine == pytest.approx(1) and found.straightness == pytest.approx(1)
    assert found.window_straightness == pytest.approx(1) and found.windows == n // 2
    assert found.sign_flip_rate == 0
    even = run([step] * n)
    assert even.variance_ratio == pytest.approx(n) and even.random_straightness == pytest.approx(1 / math.sqrt(n))
    assert even.high_frequency_share == pytest.approx(0, abs=1e-12) or not torch.any(step)


@given(pairs=st.integers(2, 20), size=st.integers(1, 30), seed=st.integers(0, 2**31 - 1))
def test_a_perfect_oscillation(pairs, size, seed):
    step = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = run([step, -step] * pairs, window=2)
    assert found.mean_cosine == pytest.approx(-1) and found.sign_flip_rate == 1
    assert found.straightness == pytest.approx(0, abs=1e-12) and found.variance_ratio == pytest.approx(0, abs=1e-12)
    assert found.window_straightness == pytest.approx(0, abs=1e-12)
    assert found.high_frequency_share == pytest.approx(1)


def test_a_random_walk():
    rng = torch.Generator().manual_seed(3)
    found = run([torch.randn(20000, generator=rng) for _ in range(64)])
    assert abs(found.mean_cosine) < 0.01
    assert found.straightness == pytest.approx(1 / 8, rel=0.05)
    assert found.random_straightness == pytest.approx(1 / 8, rel=0.01)
    assert found.window_straightness == pytest.approx(1 / 4, rel=0.05) and found.windows == 4
    assert found.variance_ratio == pytest.approx(1, rel=0.1)
    assert found.sign_flip_rate == pytest.approx(0.5, abs=0.01)
    assert found.high_frequency_share == pytest.approx(0.5, abs=0.03)


def test_the_sketched_spectrum_is_that_of_the_steps():
    rng = torch.Generator().manual_seed(0)
    smooth, steps = torch.zeros(3000).double(), []
    for _ in range(128):
        smooth = 0.7 * smooth + torch.randn(3000, generator=rng, dtype=torch.float64)
        steps.append(smooth)
    exact = high_frequency_share(torch.stack(steps).numpy())
    assert exact < 0.3
    assert run(steps, sketch=1024).high_frequency_share == pytest.approx(exact, abs=0.03)


@given(n=st.integers(2, 33), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_spectrum_shares_sum_to_one(n, k, seed):
    frequency, share = step_spectrum(np.random.default_rng(seed).normal(size=(n, k)))
    assert share.sum() == pytest.approx(1) and frequency[0] == 0 and frequency[-1] <= 0.5 and (share >= 0).all()


def test_white_steps_have_half_of_their_energy_at_high_frequencies():
    """Exactly 1/2 in expectation for n divisible by 4: here the expected energies themselves, as orthogonal steps."""
    for n in (4, 8, 20):
        assert high_frequency_share(np.eye(n)) == pytest.approx(0.5)


def test_a_list_of_parameters_is_one_update_and_zeros_do_not_flip():
    updates = [[torch.tensor([[1.0, 0.0]]), torch.tensor([2.0])], [torch.tensor([[-1.0, 3.0]]), torch.tensor([0.0])]]
    flat = run([torch.tensor([1.0, 0.0, 2.0]), torch.tensor([-1.0, 3.0, 0.0])], window=2)
    assert run(updates, window=2) == flat
    assert flat.sign_flip_rate == 1  # one coordinate is non-zero in both, and it flips
    assert flat.mean_cosine == pytest.approx(-1 / math.sqrt(50))


def test_too_few_updates_and_other_lengths():
    log = Oscillation(torch.Generator().manual_seed(0))
    assert math.isnan(log.measures().straightness)
    log.add(torch.ones(3))
    one = log.measures()
    assert one.straightness == pytest.approx(1) and math.isnan(one.mean_cosine) and math.isnan(one.high_frequency_share)
    with pytest.raises(ValueError, match="4 numbers"):
        log.add(torch.ones(4))
    with pytest.raises(ConfigError, match="at least 2"):
        Oscillation(torch.Generator(), window=1)


def test_half_precision_updates_are_summed_in_full():
    """256 + 1 is 256 in bfloat16."""
    found = run([torch.ones(4, dtype=torch.bfloat16)] * 600)
    assert found.straightness == pytest.approx(1) and found.variance_ratio == pytest.approx(600)


def test_the_callers_tensor_may_change_afterwards():
    log, step = Oscillation(torch.Generator().manual_seed(0)), torch.ones(4)
    log.add(step)
    step.neg_()
    log.add(step)
    assert log.measures().mean_cosine == pytest.approx(-1)


def test_the_energies_by_frequency_are_the_share_above_the_cutoff():
    log = Oscillation(torch.Generator().manual_seed(0), sketch=8)
    rng = torch.Generator().manual_seed(1)
    for _ in range(15):
        log.add(torch.randn(50, generator=rng))
    frequency, share = log.energy_by_frequency()
    assert share[frequency > 0.25].sum() == pytest.approx(log.measures().high_frequency_share)
