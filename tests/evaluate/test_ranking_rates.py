from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_raters import names, ranking, simulate

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.first_place import first_place_by_dataset, first_place_rates, rank_distributions
from flowgrain.evaluate.ranking.pairwise import win_rates
from flowgrain.evaluate.ranking.sample import Sample

FEW = Bootstrap(resamples=100)


@st.composite
def weak_orders(draw, variants="abcd"):
    order = draw(st.permutations(variants))
    cuts = draw(st.lists(st.booleans(), min_size=len(order) - 1, max_size=len(order) - 1))
    tiers = [[order[0]]]
    for cut, variant in zip(cuts, order[1:], strict=True):
        if cut:
            tiers.append([variant])
        else:
            tiers[-1].append(variant)
    return ["".join(tier) for tier in tiers]


answers = st.lists(weak_orders(), min_size=2, max_size=12)


def sample(orders, variants="abcd", cluster="prompt", **options):
    rankings = [ranking(*tiers, item=f"i{i}", **options) for i, tiers in enumerate(orders)]
    return Sample.of(rankings, tuple(variants), cluster, FEW)


def values(estimates):
    return {key: estimate.value for key, estimate in estimates.items()}


def test_first_places_are_shared_by_ties():
    rates = first_place_rates(sample([["ab", "c"], ["a", "bc"], ["c", "a", "b"], ["abc"]], "abc"))
    assert values(rates) == pytest.approx({"a": (0.5 + 1 + 1 / 3) / 4, "b": (0.5 + 1 / 3) / 4, "c": (1 + 1 / 3) / 4})
    assert rates["a"].n == 4


def test_ranks_of_a_tier_are_averaged_over_what_it_spans():
    distribution = rank_distributions(sample([["a", "bc", "d"], ["a", "d", "c", "b"]]))
    assert distribution["b"].mean_rank.value == pytest.approx((2.5 + 4) / 2)
    assert [share.value for share in distribution["b"].shares] == pytest.approx([0, 0.25, 0.25, 0.5])
    assert [share.value for share in distribution["a"].shares] == pytest.approx([1, 0, 0, 0])


def test_rates_of_a_variant_that_is_not_always_shown_are_among_the_answers_that_show_it():
    rates = first_place_rates(sample([["a", "b"], ["a", "c"], ["b", "c"]], "abc"))
    assert values(rates) == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.0})
    assert {rate.n for rate in rates.values()} == {2}


def test_ties_count_half_a_win_and_the_rest_of_a_choice_is_not_compared():
    rates = {(r.first, r.second): r for r in win_rates(sample([["ab", "c", "d"], ["a", "bcd"], ["d", "c", "ab"]]))}
    assert (rates["a", "b"].rate.value, rates["a", "b"].ties, rates["a", "b"].rate.n) == (pytest.approx(2 / 3), 2, 3)
    assert rates["b", "c"].rate.n == 2  # not compared by the choice of a
    assert rates["c", "d"].rate.value == pytest.approx(0.5)


def test_two_variants_that_were_never_shown_together_have_no_win_rate():
    rates = win_rates(sample([["a", "b"], ["c", "d"]]))
    assert [(rate.first, rate.second) for rate in rates] == [("a", "b"), ("c", "d")]


def test_by_dataset():
    rankings = [ranking("a", "b", item="1", dataset="x"), ranking("b", "a", item="2", dataset="y")]
    rates = first_place_by_dataset(rankings, ("a", "b"), "prompt", FEW)
    assert {name: values(row) for name, row in rates.items()} == {"x": {"a": 1, "b": 0}, "y": {"a": 0, "b": 1}}
    assert rates["x"]["a"].low is None  # one prompt gives no interval


@given(answers)
@settings(max_examples=60, deadline=None)
def test_rates_sum_to_one_and_ranks_to_their_mean(orders):
    drawn = sample(orders)
    assert sum(values(first_place_rates(drawn)).values()) == pytest.approx(1)
    distributions = rank_distributions(drawn)
    assert sum(d.mean_rank.value for d in distributions.values()) == pytest.approx(10)
    for distribution in distributions.values():
        shares = [share.value for share in distribution.shares]
        assert sum(shares) == pytest.approx(1)
        assert np.dot(shares, [1, 2, 3, 4]) == pytest.approx(distribution.mean_rank.value)


@given(answers, st.permutations("abcd"))
@settings(max_examples=40, deadline=None)
def test_other_names_for_the_variants_change_nothing_but_names(orders, order):
    renamed = dict(zip("abcd", order, strict=True))
    other = sample([["".join(renamed[v] for v in tier) for tier in tiers] for tiers in orders])
    rates, moved = first_place_rates(sample(orders)), first_place_rates(other)
    for variant in "abcd":
        assert moved[renamed[variant]].model_dump() == pytest.approx(rates[variant].model_dump(), nan_ok=True)


@given(answers)
@settings(max_examples=40, deadline=None)
def test_every_answer_given_twice_leaves_the_estimates(orders):
    once = sample(orders)
    again = [ranking(*tiers, item=f"i{i}", repeat=r) for r in (0, 1) for i, tiers in enumerate(orders)]
    twice = Sample.of(again, tuple("abcd"), "prompt", FEW)
    assert values(first_place_rates(twice)) == pytest.approx(values(first_place_rates(once)))
    assert [r.rate.value for r in win_rates(twice)] == pytest.approx([r.rate.value for r in win_rates(once)])


@given(answers)
@settings(max_examples=40, deadline=None)
def test_reversed_orders_reverse_the_win_rates(orders):
    strict = [[v for tier in tiers for v in tier] for tiers in orders]
    for rate, other in zip(win_rates(sample(strict)), win_rates(sample([o[::-1] for o in strict])), strict=True):
        assert rate.rate.value == pytest.approx(1 - other.rate.value)


def test_ties_everywhere_give_equal_rates_and_no_interval():
    rates = first_place_rates(sample([["abcd"]] * 6))
    assert all((r.value, r.low, r.high) == (0.25, None, None) for r in rates.values())


def test_the_order_in_which_answers_are_given_changes_nothing():
    rankings = simulate([1, 0, 0], np.random.default_rng(0), raters=4, prompts=5)
    for cluster in ("prompt", "rater", "crossed"):
        forward = first_place_rates(Sample.of(rankings, names(3), cluster, FEW))
        backward = first_place_rates(Sample.of(rankings[::-1], names(3), cluster, FEW))
        for variant in names(3):
            assert forward[variant].model_dump() == pytest.approx(backward[variant].model_dump())


def test_planted_strengths_are_found_as_first_place_rates():
    rankings = simulate(np.log([5, 3, 2]), np.random.default_rng(1), prompts=200, seeds=10)
    rates = values(first_place_rates(Sample.of(rankings, names(3), "prompt", FEW)))
    assert list(rates.values()) == pytest.approx([0.5, 0.3, 0.2], abs=0.035)  # three standard deviations


@pytest.mark.parametrize(
    ("rankings", "message"),
    [
        ([], "no rankings"),
        ([ranking("a", "x")], "no variant 'x'; variants: a, b"),
        ([ranking("a")], "one picture only"),
        ([ranking("a", "b"), ranking("b", "a")], "answered twice as repeat 0"),
    ],
)
def test_answers_that_cannot_be_measured_are_refused(rankings, message):
    with pytest.raises(DataError, match=message):
        Sample.of(rankings, ("a", "b"), "prompt", FEW)


def test_all_strict_orders_once_give_every_share_a_quarter():
    orders = [list(order) for order in permutations("abcd")]
    for distribution in rank_distributions(sample(orders)).values():
        assert [share.value for share in distribution.shares] == pytest.approx([0.25] * 4)
