import numpy as np
import pytest
from scipy.stats import chi2
from simulated_raters import names, ranking, simulate

from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.first_place import first_place_rates
from flowgrain.evaluate.ranking.position import position_bias
from flowgrain.evaluate.ranking.sample import Sample

FEW = Bootstrap(resamples=100)
FOUR = names(4)
STRENGTHS = [0.8, 0.2, -0.2, -0.8]


def bias_of(rankings, variants=FOUR, permutations=199, seed=0):
    return position_bias(Sample.of(rankings, variants, "prompt", Bootstrap(resamples=100, seed=seed)), permutations)


def found_share(simulations, **options):
    generator = np.random.default_rng(11)
    found = 0
    for seed in range(simulations):
        rankings = simulate(STRENGTHS, generator, **options)
        found += bias_of(rankings, permutations=99, seed=seed).p_value <= 0.05
    return found / simulations


def test_a_bias_is_found_by_chance_as_often_as_the_level_says():
    share = found_share(160, prompts=8, seeds=4)
    assert 0.0 < share <= 0.1  # 0.05, three standard deviations of 160 trials either way


def test_a_planted_bias_is_found():
    assert found_share(40, prompts=8, seeds=5, first_place_bonus=1.2) >= 0.9


def test_orders_in_rotation_find_no_more_by_chance_and_still_find_a_bias():
    assert found_share(60, prompts=8, seeds=2, repeats=4, rotate=True) <= 0.1
    assert found_share(20, prompts=8, seeds=2, repeats=4, rotate=True, first_place_bonus=1.5) >= 0.9


def test_dimensions_asked_on_one_screen_are_no_independent_evidence():
    """Raters who give the same order on six dimensions are as surprising as on one."""
    generator = np.random.default_rng(12)
    found = 0
    for seed in range(60):
        rankings = simulate(STRENGTHS, generator, prompts=8, seeds=3)
        copies = [r.model_copy(update={"dimension": f"d{i}"}) for r in rankings for i in range(6)]
        found += bias_of(copies, permutations=99, seed=seed).p_value <= 0.05
    assert found / 60 <= 0.14


def test_a_planted_winner_and_a_planted_bias_are_told_apart():
    generator = np.random.default_rng(13)
    rankings = simulate([1.5, 0, 0, 0], generator, prompts=20, seeds=10, first_place_bonus=1.0)
    sample = Sample.of(rankings, names(4), "prompt", FEW)
    rates = first_place_rates(sample)
    assert rates["v0"].low > max(rates[name].high for name in names(4)[1:])
    bias = position_bias(sample)
    assert bias.found and bias.p_value == pytest.approx(1 / 2000)
    assert bias.rates[0].low > 0.25 > max(rate.value for rate in bias.rates[1:])
    assert sum(rate.value for rate in bias.rates) == pytest.approx(1)
    assert bias.expected == pytest.approx([0.25] * 4, abs=0.06)


def test_a_winner_that_often_stood_left_is_no_bias():
    generator = np.random.default_rng(14)
    rankings = []
    for r in simulate([3.0, 0, 0], generator, prompts=30, seeds=4):
        shown = ("v0", "v1", "v2") if generator.random() < 0.8 else r.shown
        rankings.append(r.model_copy(update={"shown": shown}))
    bias = bias_of(rankings, names(3))
    assert bias.rates[0].value > 0.7
    assert bias.expected[0] == pytest.approx(bias.rates[0].value, abs=0.05)
    assert not bias.found


def test_orders_that_never_change_tell_nothing():
    rankings = [ranking("a", "b", item=f"i{i}", shown="ab") for i in range(30)]
    bias = bias_of(rankings, ("a", "b"))
    assert (bias.p_value, bias.statistic) == (1.0, pytest.approx(0))


def test_places_of_ties_share_the_first_place():
    rankings = [ranking("ab", "c", item="1", shown="cab"), ranking("c", "ab", item="2", shown="cba")]
    bias = bias_of(rankings, ("a", "b", "c"))
    assert [rate.value for rate in bias.rates] == pytest.approx([0.5, 0.25, 0.25])


def test_permutation_p_values_agree_with_chi_square_where_orders_are_random():
    generator = np.random.default_rng(15)
    for bonus in (0.0, 0.3, 0.4):
        rankings = simulate([0.0] * 4, generator, prompts=50, seeds=10, first_place_bonus=bonus)
        bias = bias_of(rankings, permutations=999)
        assert bias.p_value == pytest.approx(chi2.sf(bias.statistic, 3), abs=0.05)


def test_orders_are_exchanged_among_answers_about_the_same_variants_only():
    rankings = [ranking("a", "b", item=f"i{i}", shown="ab") for i in range(20)]
    rankings += [ranking("d", "c", item=f"i{i}", shown="cd") for i in range(20)]
    bias = bias_of(rankings, tuple("abcd"))
    assert (bias.p_value, bias.expected) == (1.0, (0.5, 0.5))  # neither pair was ever shown the other way round
