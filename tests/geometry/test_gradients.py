"""Interactions of the levels' gradients: closed forms, laws, and honest intervals over updates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.geometry.gradients import InteractionLog, Interactions, block_draws, cross_gram, gradient_gram

seeds = st.integers(0, 2**31 - 1)
LEVELS = ("macro", "meso", "micro")


def draw(seed, levels, size):
    rows = torch.randn(levels, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {f"level{i}": row for i, row in enumerate(rows)}


def test_two_known_vectors():
    measured = Interactions.measure({"macro": torch.tensor([3.0, 0.0]), "micro": torch.tensor([-1.0, 1.0])})
    assert measured.levels == ("macro", "micro")
    np.testing.assert_allclose(measured.gram, [[9, -3], [-3, 2]])
    np.testing.assert_allclose(measured.norms, [3, math.sqrt(2)])
    assert measured.cosines[0, 1] == pytest.approx(-1 / math.sqrt(2))
    assert measured.magnitude_similarity[0, 1] == pytest.approx(2 * 3 * math.sqrt(2) / 11)
    assert measured.conflict_rate == 1
    assert measured.cross_share == pytest.approx(-6 / 5)
    assert measured.resultant == pytest.approx(math.sqrt(5) / (3 + math.sqrt(2)))


@given(levels=st.integers(2, 5), size=st.integers(1, 40), seed=seeds)
def test_laws(levels, size, seed):
    gradients = draw(seed, levels, size)
    measured = Interactions.measure(gradients)
    total = torch.stack(list(gradients.values())).sum(0)
    assert measured.gram.sum() == pytest.approx(total.square().sum().item(), rel=1e-9, abs=1e-9)  # Eq. 43
    cross = measured.gram.sum() - measured.gram.trace()
    assert measured.cross_share * measured.gram.sum() == pytest.approx(cross, rel=1e-6, abs=1e-9)
    assert measured.cross_share <= 1 - 1 / levels + 1e-9
    assert 0 <= measured.resultant <= 1 + 1e-12
    assert (np.abs(measured.cosines) <= 1 + 1e-12).all()
    similar = measured.magnitude_similarity
    assert ((similar > 0) & (similar <= 1 + 1e-12)).all()
    np.testing.assert_allclose(similar.diagonal(), 1)


@given(seed=seeds)
def test_a_list_of_tensors_is_the_flat_gradient_and_none_is_zero(seed):
    flat = draw(seed, 3, 10)
    parts = {name: [row[:4].view(2, 2), None, row[4:]] for name, row in flat.items()}
    np.testing.assert_allclose(gradient_gram(parts), gradient_gram(flat), rtol=1e-12, atol=1e-12)
    parts["level1"] = [None, None, flat["level1"][4:]]
    cut = {**flat, "level1": torch.cat([torch.zeros(4).double(), flat["level1"][4:]])}
    np.testing.assert_allclose(gradient_gram(parts), gradient_gram(cut), rtol=1e-12, atol=1e-12)


def test_gradients_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="same parameters"):
        gradient_gram({"macro": [torch.ones(2)], "micro": [torch.ones(2), torch.ones(1)]})
    with pytest.raises(ValueError, match="levels differ"):
        cross_gram({"macro": torch.ones(2)}, {"micro": torch.ones(2)})


def test_halves_take_the_noise_out_of_the_cosine():
    """True cosine 0.6 at five times as much noise as signal: plain cosines shrink, pooled cross products do not."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.zeros(2, 50).double()
    truth[0, 0], truth[1, 0], truth[1, 1] = 1.0, 0.6, 0.8
    plain, halves = InteractionLog(["a", "b"]), InteractionLog(["a", "b"])
    for _ in range(3000):
        one, two = (truth + 0.4 * torch.randn(2, 50, generator=rng, dtype=torch.float64) for _ in range(2))
        plain.add(Interactions.measure(dict(zip("ab", one, strict=True))))
        pair = dict(zip("ab", one, strict=True)), dict(zip("ab", two, strict=True))
        halves.add(Interactions(("a", "b"), cross_gram(*pair)))
    assert plain.pooled().cosines[0, 1] < 0.1
    assert halves.pooled().cosines[0, 1] == pytest.approx(0.6, abs=0.05)
    np.testing.assert_allclose(halves.pooled().norms, 1, atol=0.05)


def test_absent_levels_count_where_they_are_present():
    log = InteractionLog(LEVELS)
    log.add(Interactions.measure({"macro": torch.tensor([1.0, 0.0]), "meso": torch.tensor([1.0, 1.0])}))
    log.add(Interactions.measure({name: torch.tensor([1.0, -1.0 * i]) for i, name in enumerate(LEVELS)}))
    log.add(Interactions.measure({"micro": torch.tensor([0.0, 2.0])}))
    summary = log.summary(np.random.default_rng(0))
    assert summary.updates == len(log) == 3
    assert summary.norm["macro"].count == 2 and summary.norm["micro"].count == 2
    assert summary.cosine["macro", "micro"].count == 1 and summary.cosine["macro", "meso"].count == 2
    assert summary.cosine["macro", "meso"].mean == pytest.approx(1 / math.sqrt(2))
    assert summary.interaction["meso", "micro"].mean == pytest.approx(3)
    assert summary.conflict_rate.mean == 0 and summary.conflict_rate.count == 2
    # sums of 5 = 3 + 2 and of 18 = 8 + 10, the update with one level left out
    assert summary.cross_share.mean == pytest.approx((2 + 10) / (5 + 18))
    assert log.mean_gram()[0, 0] == 1 and log.pooled().gram[0, 2] == 1
    with pytest.raises(ValueError, match="giga"):
        log.add(Interactions.measure({"giga": torch.ones(2)}))


def test_conflict_rate_of_known_updates():
    log = InteractionLog(["a", "b"])
    for sign in (1, -1, -1, 1, -1):
        log.add(Interactions.measure({"a": torch.tensor([1.0]), "b": torch.tensor([1.0 * sign])}))
    estimate = log.summary(np.random.default_rng(0)).conflict_rate
    assert estimate.mean == pytest.approx(0.6) and estimate.low < 0.6 < estimate.high


def test_intervals_cover_at_their_level():
    """200 experiments of 40 independent updates: the 90 % interval holds the true mean about as often as it says."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        log = InteractionLog(["a", "b"])
        for value in rng.normal(0.3, 1, 40):
            log.add(Interactions(("a", "b"), np.array([[1.0, value], [value, 1.0]])))
        estimate = log.summary(rng, resamples=200, confidence=0.9).interaction["a", "b"]
        held += estimate.low <= 0.3 <= estimate.high
    assert 0.83 <= held / 200 <= 0.96


def test_blocks_widen_the_interval_of_updates_that_drift_together():
    rng, log = np.random.default_rng(0), InteractionLog(["a", "b"])
    value = 0.0
    for _ in range(400):
        value = 0.95 * value + rng.normal()
        log.add(Interactions(("a", "b"), np.array([[1.0, value], [value, 1.0]])))
    one = log.summary(np.random.default_rng(1)).interaction["a", "b"]
    many = log.summary(np.random.default_rng(1), block=40).interaction["a", "b"]
    assert many.high - many.low > 2 * (one.high - one.low)
    assert one.mean == many.mean


@given(count=st.integers(1, 30), block=st.integers(1, 40), seed=st.integers(0, 99))
def test_block_draws_are_runs(count, block, seed):
    rows = block_draws(count, block, 7, np.random.default_rng(seed))
    assert rows.shape == (7, count) and rows.min() >= 0 and rows.max() < count
    length = min(block, count)
    inside = np.arange(1, count) % length != 0
    assert ((np.diff(rows, axis=1) % count == 1 % count) | ~inside).all()


def test_one_update_has_no_interval_and_none_no_summary():
    log = InteractionLog(["a", "b"])
    with pytest.raises(DataError, match="no update"):
        log.summary(np.random.default_rng(0))
    log.add(Interactions.measure({"a": torch.ones(1), "b": torch.ones(1)}))
    estimate = log.summary(np.random.default_rng(0)).cosine["a", "b"]
    assert estimate.mean == 1 and math.isnan(estimate.low) and estimate.count == 1
    with pytest.raises(ConfigError, match="at least 1"):
        log.summary(np.random.default_rng(0), block=0)


def test_a_zero_gradient_has_no_direction():
    measured = Interactions.measure({"a": torch.zeros(2), "b": torch.ones(2)})
    assert (
        math.isnan(measured.cosines[0, 1]) and measured.conflict_rate == 0 and measured.magnitude_similarity[0, 1] == 0
    )
