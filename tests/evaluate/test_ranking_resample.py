import numpy as np
import pytest
from simulated_raters import names, simulate

from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.first_place import first_place_rates
from flowgrain.evaluate.ranking.resample import Resampler, mean_estimate
from flowgrain.evaluate.ranking.sample import Sample

FEW = Bootstrap(resamples=200)


def crossed_values(generator, raters, prompts, rater_sd, prompt_sd, noise_sd):
    """Values, their raters and their prompts; each rater answers each prompt once."""
    values = (
        generator.normal(size=(raters, 1)) * rater_sd
        + generator.normal(size=(1, prompts)) * prompt_sd
        + generator.normal(size=(raters, prompts)) * noise_sd
    )
    rows, columns = np.indices(values.shape)
    return values.ravel(), rows.ravel().tolist(), columns.ravel().tolist()


def coverage(cluster, simulations, *shape):
    generator = np.random.default_rng(30)
    held = 0
    for seed in range(simulations):
        values, raters, prompts = crossed_values(generator, *shape)
        resampler = Resampler.of(prompts, raters, cluster, Bootstrap(resamples=100, seed=seed))
        estimate = mean_estimate(values, resampler)
        held += estimate.low <= 0 <= estimate.high
    return held / simulations


def test_the_interval_of_a_mean_has_the_width_of_students_t():
    values = np.random.default_rng(31).normal(size=9)
    estimate = mean_estimate(values, Resampler.of(range(9), [0] * 9, "prompt", Bootstrap(resamples=4000)))
    half = 2.306 * values.std(ddof=1) / 3  # t with 8 degrees of freedom
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize(
    ("cluster", "shape"),
    [
        ("prompt", (1, 8, 0.0, 1.0, 1.0)),
        ("crossed", (8, 8, 1.0, 1.0, 1.0)),
        ("crossed", (6, 12, 1.0, 0.0, 1.0)),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(cluster, shape):
    # 0.95, three standard deviations of 200 trials either way; two-way intervals may hold it a little more often
    assert 0.9 <= coverage(cluster, 200, *shape) <= 0.995


def test_drawing_prompts_alone_overlooks_that_raters_differ():
    assert coverage("prompt", 100, 6, 12, 1.0, 0.1, 0.5) < 0.6


def test_the_two_way_variance_adds_both_factors_and_counts_chance_once():
    generator = np.random.default_rng(32)
    widths = []
    for rater_sd, prompt_sd in ((1.0, 1.0), (0.0, 0.0)):
        values, raters, prompts = crossed_values(generator, 30, 40, rater_sd, prompt_sd, 1.0)
        resampler = Resampler.of(prompts, raters, "crossed", Bootstrap(resamples=1000))
        estimate = mean_estimate(values, resampler)
        widths.append((estimate.high - estimate.low) / 2 / 2.045)  # t with 29 degrees of freedom
    assert widths[0] == pytest.approx(np.sqrt(1 / 30 + 1 / 40 + 1 / 1200), rel=0.25)
    assert widths[1] == pytest.approx(np.sqrt(1 / 1200), rel=0.35)


def test_a_factor_with_one_level_is_not_drawn():
    values = np.random.default_rng(33).normal(size=20)
    many, one = [i // 2 for i in range(20)], ["only"] * 20
    both = mean_estimate(values, Resampler.of(many, one, "crossed", FEW))
    assert both == mean_estimate(values, Resampler.of(many, one, "prompt", FEW))
    nothing = mean_estimate(values, Resampler.of(one, one, "crossed", FEW))
    assert (nothing.low, nothing.high) == (None, None)


def test_totals_are_sums_over_the_drawn_clusters():
    """Values that mark their cluster give the number of times each was drawn: as many in all as there are clusters."""
    prompts = [i % 5 for i in range(20)]
    totals = Resampler.of(prompts, prompts, "prompt", FEW).totals(np.eye(5)[prompts])
    assert totals.shape == (200, 5)
    assert (totals % 4 == 0).all()
    assert totals.sum(axis=1) == pytest.approx(np.full(200, 20))
    assert totals.mean() == pytest.approx(4, abs=1e-9)
    assert 0.6 < (totals > 0).mean() < 0.75  # 1 - (4 / 5)^5 = 0.672


def test_the_number_of_draws_need_not_be_round():
    totals = Resampler.of(range(4), range(4), "crossed", Bootstrap(resamples=130)).totals(np.ones((4, 1)))
    assert totals.shape == (3 * 130, 1)


def test_nobody_ever_is_no_certainty():
    values = np.zeros(16)
    estimate = mean_estimate(values, Resampler.of([i // 2 for i in range(16)], range(16), "prompt", FEW), (0.0, 1.0))
    assert (estimate.value, estimate.low) == (0, 0)
    assert estimate.high == pytest.approx(1 - 0.025 ** (1 / 8))  # exact binomial, none of 8
    certain = mean_estimate(values + 1, Resampler.of([i // 2 for i in range(16)], range(16), "prompt", FEW), (0.0, 1.0))
    assert (certain.low, certain.high) == (pytest.approx(0.025 ** (1 / 8)), 1)


def test_values_that_are_undefined_are_left_out():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    estimate = mean_estimate(values, Resampler.of(range(4), range(4), "prompt", FEW))
    assert (estimate.value, estimate.n) == (2, 2)
    assert mean_estimate(np.full(3, np.nan), Resampler.of(range(3), range(3), "prompt", FEW)) is None


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    rankings = simulate([0.5, 0, 0], np.random.default_rng(34), raters=3)
    same = [first_place_rates(Sample.of(rankings, names(3), "crossed", Bootstrap(seed=s)))["v0"] for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_intervals_stay_within_their_bounds():
    rankings = simulate([4.0, 0, 0], np.random.default_rng(35), prompts=3, seeds=2)
    for rate in first_place_rates(Sample.of(rankings, names(3), "prompt", FEW)).values():
        assert 0 <= rate.low <= rate.value <= rate.high <= 1
