import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, kendalltau, rankdata, spearmanr
from simulated_raters import names, ranking, simulate

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.agreement import agreement, repeats
from flowgrain.evaluate.ranking.chance_corrected import coincidences, fleiss_kappa, fleiss_parts, krippendorff_alpha
from flowgrain.evaluate.ranking.concordance import kendalls_w, mean_kendall_tau, mean_spearman
from flowgrain.evaluate.ranking.groups import group_agreement
from flowgrain.evaluate.ranking.sample import Sample

FEW = Bootstrap(resamples=100)
NONE = -1
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": four observers, twelve units, values 1 to 5
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
# Wikipedia, "Fleiss' kappa", worked example: 14 raters, ten subjects, five categories; counts of each category
SUBJECTS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
# R package irr, data set "anxiety": 20 subjects by three raters, with many ties
ANXIETY = [
    [3, 3, 3, 4, 5, 5, 2, 3, 5, 2, 2, 6, 1, 5, 2, 2, 1, 2, 4, 3],
    [3, 6, 4, 6, 2, 4, 2, 4, 3, 3, 2, 3, 3, 3, 2, 2, 1, 3, 3, 4],
    [2, 1, 4, 4, 3, 2, 1, 6, 1, 1, 1, 2, 3, 3, 1, 1, 3, 3, 2, 2],
]


def coincidence_of(rows):
    units = np.array(rows).T
    return sum(coincidences(unit[unit != NONE] - 1, 5) for unit in units)


def measured(rankings, variants="abcd"):
    return agreement(Sample.of(rankings, tuple(variants), "prompt", FEW))


def by_raters(orders, item):
    return [ranking(*tiers, item=item, rater=f"r{i}") for i, tiers in enumerate(orders)]


def test_krippendorffs_published_example():
    coincidence = coincidence_of(OBSERVERS)
    assert coincidence.sum() == pytest.approx(40)  # pairable values
    assert krippendorff_alpha(coincidence[None], ordinal=False)[0] == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(coincidence[None], ordinal=True)[0] == pytest.approx(0.815, abs=5e-4)


def test_fleiss_published_example():
    parts = sum(fleiss_parts(np.repeat(np.arange(5), counts), 5) for counts in SUBJECTS)
    assert fleiss_kappa(parts[None])[0] == pytest.approx(0.210, abs=5e-4)


def test_kendalls_w_of_a_published_example_with_ties():
    ranks = rankdata(ANXIETY, axis=1)
    assert kendalls_w(ranks) == pytest.approx(0.54, abs=5e-3)  # irr: kendall(anxiety, correct = TRUE)


@given(st.integers(3, 6), st.integers(2, 6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_concordance_equals_scipy_with_ties(k, m, seed):
    values = np.random.default_rng(seed).integers(0, 4, size=(m, k))
    ranks = rankdata(values, axis=1)
    pairs = [(i, j) for i in range(m) for j in range(i) if np.ptp(ranks[i]) and np.ptp(ranks[j])]
    if not pairs:
        assert np.isnan(mean_kendall_tau(ranks)) and np.isnan(mean_spearman(ranks))
        return
    assert mean_kendall_tau(ranks) == pytest.approx(np.mean([kendalltau(ranks[i], ranks[j])[0] for i, j in pairs]))
    assert mean_spearman(ranks) == pytest.approx(np.mean([spearmanr(ranks[i], ranks[j])[0] for i, j in pairs]))
    if m >= 3:
        assert kendalls_w(ranks) == pytest.approx(friedmanchisquare(*values.T)[0] / (m * (k - 1)))


def test_perfect_agreement_is_one_everywhere():
    rankings = [r for i, o in enumerate(("abcd", "bdca", "cabd")) for r in by_raters([list(o)] * 4, f"i{i}")]
    found = measured(rankings)
    assert (found.questions, found.raters) == (3, 4)
    for name in ("kendalls_w", "kendall_tau", "spearman", "alpha_ranks", "alpha_first", "fleiss_kappa"):
        assert getattr(found, name).value == pytest.approx(1)
    assert found.kendalls_w_by_chance == pytest.approx(0.25)


def test_raters_at_random_agree_by_chance_only():
    rankings = simulate([0.0] * 4, np.random.default_rng(20), prompts=60, seeds=2, raters=5)
    found = measured(rankings, names(4))
    assert found.kendalls_w.value == pytest.approx(found.kendalls_w_by_chance, abs=0.03)
    for estimate in (found.kendall_tau, found.spearman, found.alpha_ranks, found.alpha_first, found.fleiss_kappa):
        assert abs(estimate.value) < 0.05
        assert estimate.low < 0 < estimate.high


def test_raters_with_one_taste_agree_more_than_by_chance():
    rankings = simulate([3.0, 1.0, -1.0, -3.0], np.random.default_rng(21), prompts=30, seeds=1, raters=4)
    found = measured(rankings, names(4))
    for estimate in (found.kendall_tau, found.spearman, found.alpha_ranks):
        assert estimate.low > 0.4


def test_agreement_counts_only_questions_that_two_raters_answered():
    rankings = [*by_raters([["a", "b"], ["b", "a"]], "shared"), ranking("a", "b", item="alone", rater="r0")]
    found = measured(rankings, "ab")
    assert (found.questions, found.kendall_tau.value, found.kendall_tau.low) == (1, -1, None)
    assert measured(rankings[2:], "ab") is None


def test_raters_who_tie_everything_leave_agreement_undefined():
    found = measured(by_raters([["abc"], ["abc"]], "i"), "abc")
    assert (found.kendalls_w, found.kendall_tau, found.alpha_ranks, found.alpha_first, found.fleiss_kappa) == (
        None,
    ) * 5


def test_repeats_of_a_rater_are_averaged_before_raters_are_compared():
    orders = [("abc", 0), ("abc", 1), ("bac", 2)]
    rankings = [ranking(*o, item="i", rater="r0", repeat=n) for o, n in orders] + [
        ranking(*"abc", item="i", rater="r1")
    ]
    assert measured(rankings, "abc").kendall_tau.value == pytest.approx(1)


def test_repeats_tell_changed_orders_from_same_ones():
    rankings = [
        ranking(*"abc", item="1", shown="abc"),
        ranking(*"acb", item="1", shown="cba", repeat=1),
        ranking(*"abc", item="2", shown="abc"),
        ranking(*"bac", item="2", shown="abc", repeat=1),
        ranking(*"cba", item="3", shown="abc"),
        ranking(*"abc", item="3", shown="bca", repeat=1),
    ]
    found = repeats(Sample.of(rankings, tuple("abc"), "prompt", FEW))
    assert (found.changed_order.same_first.value, found.changed_order.same_first.n) == (0.5, 2)
    assert found.changed_order.kendall_tau.value == pytest.approx((1 / 3 - 1) / 2)
    assert (found.same_order.same_first.value, found.same_order.same_first.n) == (0, 1)
    assert repeats(Sample.of(rankings[::2], tuple("abc"), "prompt", FEW)) is None


def test_a_rater_that_follows_places_is_inconsistent_where_orders_change():
    options = {"prompts": 20, "seeds": 2, "repeats": 2, "rotate": True}
    steady = simulate([4, 2, 0, -2], np.random.default_rng(22), **options)
    led = simulate([0.4, 0.2, 0, -0.2], np.random.default_rng(22), first_place_bonus=6.0, **options)
    shares = [repeats(Sample.of(r, names(4), "prompt", FEW)).changed_order.same_first.value for r in (steady, led)]
    assert shares[0] > 0.7 > 0.1 > shares[1]


def test_groups_that_agree_and_groups_that_do_not():
    orders = ["abcd", "bcda", "cdab", "dabc", "acbd", "badc"]
    judge = [ranking(*o, item=f"i{i}", rater="judge", dimension="geometry") for i, o in enumerate(orders)]
    people = [ranking(*o, item=f"i{i}", rater=f"p{r}") for i, o in enumerate(orders) for r in range(3)]
    found = group_agreement(judge, people, "abcd", bootstrap=FEW)
    assert (found.items, found.kendall_tau.value, found.same_first.value) == (6, pytest.approx(1), 1)
    assert found.strength_correlation.value > 0.99
    assert found.same_first_by_chance == pytest.approx((2 * 2 + 2 * 2 + 1 + 1) / 36)
    turned = [r.model_copy(update={"tiers": r.tiers[::-1]}) for r in people]
    opposite = group_agreement(judge, turned, "abcd", bootstrap=FEW)
    assert (opposite.kendall_tau.value, opposite.same_first.value) == (pytest.approx(-1), 0)
    assert opposite.strength_correlation.value < 0


def test_favourites_that_are_tied_count_in_parts():
    judge = [ranking("a", "b", "c", item="1", rater="judge")]
    people = [ranking(*o, item="1", rater=f"p{i}") for i, o in enumerate(("abc", "bac"))]
    found = group_agreement(judge, people, "abc", bootstrap=FEW)
    assert (found.same_first.value, found.same_first_by_chance) == (0.5, 0.5)
    assert found.kendall_tau.value == pytest.approx(2 / np.sqrt(6))  # ranks 1, 2, 3 against 1.5, 1.5, 3


def test_groups_are_compared_on_the_dimension_asked_for_and_on_shared_items():
    judge = [ranking("a", "b", "c", item="1", dimension=d) for d in ("x", "y")] + [ranking("b", "a", "c", item="2")]
    people = [ranking("a", "b", "c", item="1"), ranking("c", "b", "a", item="3")]
    found = group_agreement(judge, people, "abc", dimensions=("x", "overall"), bootstrap=FEW)
    assert (found.dimensions, found.items, found.kendall_tau.value) == (("x", "overall"), 1, pytest.approx(1))
    with pytest.raises(DataError, match="share no item"):
        group_agreement(judge, people[1:], "abc", bootstrap=FEW)
    with pytest.raises(DataError, match="only answers about the same variants"):
        group_agreement(judge, [ranking("a", "b", item="1")], "abc", bootstrap=FEW)


def test_planted_strengths_correlate_between_groups():
    strengths = [1.0, 0.3, -0.3, -1.0]
    judge = simulate(strengths, np.random.default_rng(23), prompts=25, seeds=2)
    people = simulate(strengths, np.random.default_rng(24), prompts=25, seeds=2, raters=5)
    found = group_agreement(judge, people, names(4), bootstrap=FEW)
    assert found.strength_correlation.value > 0.9
    assert found.strength_correlation.low > 0.6
    assert found.same_first.low > 0 and found.same_first.value > found.same_first_by_chance
