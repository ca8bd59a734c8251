from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from simulated_raters import names, ranking, simulate
from test_ranking_rates import weak_orders

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.luce import fit_strengths
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.strengths import bradley_terry, plackett_luce, strengths

FEW = Bootstrap(resamples=100)
NO_PRIOR = 1e-12
# American League East 1987, 13 games a pair: wins of the row over the column (Agresti 2002, p. 438)
BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)


def sample(orders, variants):
    """Answers to one prompt: nothing is drawn."""
    rankings = [ranking(*tiers, item=f"i{i}", prompt="p") for i, tiers in enumerate(orders)]
    return Sample.of(rankings, tuple(variants), "prompt", FEW)


def maximised(log_likelihood, k):
    found = minimize(lambda s: -log_likelihood(s - s.mean()), np.zeros(k), method="BFGS", options={"gtol": 1e-7})
    return found.x - found.x.mean()


def linear_orders(tiers):
    """All strict orders that a ranking allows, and whether it is a choice of the best alone."""
    return [[v for tier in choice for v in tier] for choice in product(*(permutations(tier) for tier in tiers))]


def plackett_luce_reference(orders, variants, prior):
    """Direct maximisation: ties by the mean over strict orders, a choice of the best by its first stage."""
    index = {v: i for i, v in enumerate(variants)}
    winners, fields, weights = [], [], []
    for tiers in orders:
        strict = linear_orders(tiers)
        for order in strict:
            rows = [index[v] for v in order]
            for stage in range(len(tiers[0]) if len(tiers) == 2 else len(rows)):
                winners.append(rows[stage])
                fields.append(np.isin(range(len(variants)), rows[stage:]))
                weights.append(1 / len(strict))
    for pair in permutations(range(len(variants)), 2):
        winners.append(pair[0])
        fields.append(np.isin(range(len(variants)), pair))
        weights.append(prior / (len(variants) - 1) / 2)
    field, weight = np.array(fields, dtype=float), np.array(weights)
    return maximised(lambda s: weight @ (s[winners] - np.log(field @ np.exp(s))), len(variants))


def test_bradley_terry_gives_the_published_abilities_of_baseball_teams():
    pairs = list(combinations(range(7), 2))
    members = np.zeros((len(pairs), 7))
    for row, pair in enumerate(pairs):
        members[row, list(pair)] = 1
    choices = np.array([[BASEBALL[i, j] + BASEBALL[j, i] for i, j in pairs]], dtype=float)
    found = fit_strengths(BASEBALL.sum(axis=1)[None].astype(float), choices, members)[0]
    # Agresti 2002, Table 10.11; R package BradleyTerry2 tests the same numbers
    assert found - found[-1] == pytest.approx([1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0], abs=0.005)


def test_bradley_terry_through_rankings_of_two_equals_the_direct_fit():
    letters = "abcdefg"
    orders = [[letters[i], letters[j]] for i, j in np.ndindex(7, 7) for _ in range(BASEBALL[i, j])]
    found, _ = bradley_terry(sample(orders, letters), prior=NO_PRIOR)
    assert found - found[-1] == pytest.approx([1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0], abs=0.005)
    same, _ = plackett_luce(sample(orders, letters), prior=NO_PRIOR)
    assert same == pytest.approx(found, abs=1e-6)  # of two variants both models are one


def test_two_variants_have_the_closed_form():
    orders = [["a", "b"]] * 7 + [["b", "a"]] * 2 + [["ab"]] * 4
    for model in (bradley_terry, plackett_luce):
        found, _ = model(sample(orders, "ab"), prior=1.0)
        assert found[0] - found[1] == pytest.approx(np.log((7 + 2 + 0.5) / (2 + 2 + 0.5)), abs=1e-8)


def test_choices_of_the_best_have_the_closed_form():
    orders = [["a", "bc"]] * 6 + [["b", "ac"]] * 3 + [["c", "ab"]] * 1
    found, _ = plackett_luce(sample(orders, "abc"), prior=NO_PRIOR)
    assert np.exp(found) / np.exp(found).sum() == pytest.approx([0.6, 0.3, 0.1], abs=1e-8)
    # of Luce's axiom the pairs of such choices follow too
    assert bradley_terry(sample(orders, "abc"), prior=NO_PRIOR)[0] == pytest.approx(found, abs=1e-6)


@given(st.lists(weak_orders("abcd"), min_size=3, max_size=10), st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_plackett_luce_equals_direct_maximisation(orders, prior):
    found, _ = plackett_luce(sample(orders, "abcd"), prior)
    assert found == pytest.approx(plackett_luce_reference(orders, "abcd", prior), abs=1e-4)


@given(st.lists(weak_orders("abcd"), min_size=3, max_size=10))
@settings(max_examples=25, deadline=None)
def test_bradley_terry_equals_direct_maximisation(orders):
    index = {v: i for i, v in enumerate("abcd")}
    wins = np.full((4, 4), 1 / 6)  # the prior: 1/3 comparison a pair, half won
    for tiers in orders:
        tier_of = {index[v]: i for i, tier in enumerate(tiers) for v in tier}
        for i, j in permutations(range(4), 2):
            if tier_of[i] < tier_of[j]:
                wins[i, j] += 1
            elif tier_of[i] == tier_of[j] and not (len(tiers) == 2 and tier_of[i] == 1):
                wins[i, j] += 0.5
    found, _ = bradley_terry(sample(orders, "abcd"), prior=1.0)
    reference = maximised(
        lambda s: sum(wins[i, j] * (s[i] - np.logaddexp(s[i], s[j])) for i, j in permutations(range(4), 2)), 4
    )
    assert found == pytest.approx(reference, abs=1e-4)


@given(st.lists(weak_orders("abcd"), min_size=2, max_size=8), st.permutations("abcd"))
@settings(max_examples=25, deadline=None)
def test_other_names_for_the_variants_permute_the_strengths(orders, order):
    renamed = dict(zip("abcd", order, strict=True))
    moved = [["".join(renamed[v] for v in tier) for tier in tiers] for tiers in orders]
    for model in (bradley_terry, plackett_luce):
        before = dict(zip("abcd", model(sample(orders, "abcd"))[0], strict=True))
        after = dict(zip("abcd", model(sample(moved, "abcd"))[0], strict=True))
        assert [after[renamed[v]] for v in "abcd"] == pytest.approx([before[v] for v in "abcd"], abs=1e-6)


@given(st.lists(st.permutations("abcd"), min_size=2, max_size=8))
@settings(max_examples=25, deadline=None)
def test_reversed_preferences_negate_bradley_terry(orders):
    found, _ = bradley_terry(sample(orders, "abcd"))
    assert bradley_terry(sample([order[::-1] for order in orders], "abcd"))[0] == pytest.approx(-found, abs=1e-6)


@given(st.lists(st.permutations("abc"), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None)
def test_data_given_twice_with_twice_the_prior_leave_the_strengths(orders):
    for model in (bradley_terry, plackett_luce):
        once, _ = model(sample(orders, "abc"), prior=1.0)
        twice, _ = model(sample(orders * 2, "abc"), prior=2.0)
        assert twice == pytest.approx(once, abs=1e-6)


def test_ties_everywhere_and_opposite_orders_give_equal_strengths():
    for orders in ([["abcd"]] * 5, [["a", "b", "c", "d"], ["d", "c", "b", "a"]]):
        found, _ = bradley_terry(sample(orders, "abcd"))
        assert found == pytest.approx(np.zeros(4), abs=1e-8)
    assert plackett_luce(sample([["abcd"]] * 5, "abcd"))[0] == pytest.approx(np.zeros(4), abs=1e-8)


def test_a_variant_that_never_wins_has_a_finite_strength_that_falls_with_more_answers():
    few, many = (
        {v: e.value for v, e in strengths(sample([["a", "b", "c"]] * n, "abc")).plackett_luce.items()} for n in (10, 40)
    )
    assert np.isfinite(list(few.values())).all()
    assert few["a"] > few["b"] > few["c"] > many["c"]
    with pytest.raises(ConfigError, match="must be above 0"):
        plackett_luce(sample([["a", "b", "c"]] * 10, "abc"), prior=0.0)


def test_strengths_that_leave_the_numbers_of_a_computer_are_refused():
    with pytest.raises(DataError, match="use a larger prior"):
        plackett_luce(sample([["a", "b", "c"]] * 10, "abc"), prior=1e-140)


@pytest.mark.parametrize("best_only", [False, True])
def test_planted_strengths_are_recovered_within_their_intervals(best_only):
    planted = np.array([0.9, 0.2, -0.3, -0.8])
    rankings = simulate(planted, np.random.default_rng(5), prompts=100, seeds=8, best_only=best_only)
    found = strengths(Sample.of(rankings, names(4), "prompt", Bootstrap(resamples=400, level=0.99)))
    worth = np.exp(planted) / np.exp(planted).sum()
    for i, name in enumerate(names(4)):
        for estimate, truth in (
            (found.bradley_terry[name], planted[i]),
            (found.plackett_luce[name], planted[i]),
            (found.worth[name], worth[i]),
        ):
            assert estimate.value == pytest.approx(truth, abs=0.25)
            assert estimate.low < truth < estimate.high
    assert sum(e.value for e in found.worth.values()) == pytest.approx(1)


def test_large_ties_keep_tied_variants_equal_and_the_winner_ahead():
    letters = "abcdefghijkl"
    found, _ = plackett_luce(sample([["a", letters[1:-1], "l"]] * 3, letters))
    assert np.ptp(found[1:-1]) < 1e-8
    assert found[0] > found[1] > found[-1]


def test_replicates_equal_fits_of_the_drawn_answers():
    rankings = simulate([0.5, 0, -0.5], np.random.default_rng(4), prompts=6, seeds=3)
    drawn = Sample.of(rankings, names(3), "prompt", FEW)
    _, replicates = plackett_luce(drawn, prior=1.0)
    orders = [[[drawn.variants[v] for v in tier] for tier in order] for order in drawn.orders]
    for draw in (0, 57):
        counts = drawn.count_replicates[draw].round().astype(int)
        repeated = [order for order, count in zip(orders, counts, strict=True) for _ in range(count)]
        expected = plackett_luce_reference(repeated, drawn.variants, 1.0)
        assert replicates[draw] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("variants", "count"), [("ab", 5000), ("abcd", 5000), ("abcdefghijklmnop", 300)])
def test_unanimous_answers_settle(variants, count):
    found, _ = plackett_luce(sample([list(variants)] * count, variants))
    assert (np.diff(found) < 0).all()
    if len(variants) == 2:
        assert found[0] - found[1] == pytest.approx(np.log((count + 0.5) / 0.5))
    else:  # the likelihood is flat there: its gradient is zero
        k, shares = len(variants), np.exp(found)
        prior = 0.5 - np.array(
            [sum(shares[i] / (shares[i] + shares[j]) for j in range(k) if j != i) for i in range(k)]
        ) / (k - 1)
        chances = np.array(
            [[shares[i] / shares[first:].sum() if i >= first else 0 for i in range(k)] for first in range(k)]
        )
        assert count * (1 - chances.sum(axis=0)) + prior == pytest.approx(np.zeros(k), abs=1e-4)
