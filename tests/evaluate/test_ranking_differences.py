import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test
from simulated_raters import names, ranking, simulate

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.ranking.differences import (
    first_place_differences,
    holm,
    sign_flip_p_value,
    statements,
)
from flowgrain.evaluate.ranking.first_place import first_place_rates
from flowgrain.evaluate.ranking.records import Score
from flowgrain.evaluate.ranking.sample import Sample
from flowgrain.evaluate.ranking.scores import score_table
from flowgrain.evaluate.ranking.summarise import summarise

FEW = Bootstrap(resamples=100)


def difference(rankings, variants, pair, cluster="prompt", seed=0):
    sample = Sample.of(rankings, variants, cluster, Bootstrap(resamples=100, seed=seed))
    return first_place_differences(sample, [pair])[0]


def score(variant, value, item="i", rater="r", repeat=0, dimension="overall"):
    return Score(
        item=item, dataset="d", prompt=item, seed=0, dimension=dimension, rater=rater, repeat=repeat,
        variant=variant, value=value,
    )  # fmt: skip


def test_a_difference_is_that_of_the_rates():
    rankings = simulate([0.8, 0, -0.4], np.random.default_rng(40), prompts=10)
    sample = Sample.of(rankings, names(3), "prompt", FEW)
    rates = first_place_rates(sample)
    for found in first_place_differences(sample, [("v0", "v1"), ("v2", "v0")]):
        assert found.difference.value == pytest.approx(rates[found.second].value - rates[found.first].value)
        assert found.difference.low < found.difference.value < found.difference.high


def test_equal_sums_give_the_sign_test():
    for wins, losses in ((8, 0), (7, 1), (10, 4), (3, 3)):
        p_value = sign_flip_p_value(np.array([1.0] * wins + [-1.0] * losses), seed=0)
        assert p_value == pytest.approx(binomtest(wins, wins + losses).pvalue)


def test_the_sign_flip_test_equals_scipys():
    sums = np.random.default_rng(41).normal(0.4, 1, size=10)
    expected = permutation_test(
        (sums,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p_value(sums, seed=0) == pytest.approx(expected.pvalue)


def test_many_clusters_are_flipped_at_random_and_agree_with_the_sign_test():
    p_value = sign_flip_p_value(np.array([1.0] * 26 + [-1.0] * 14), seed=1)
    assert p_value == pytest.approx(binomtest(26, 40).pvalue, abs=0.015)


def test_clusters_without_a_difference_change_nothing_and_none_at_all_gives_one():
    assert sign_flip_p_value(np.array([1.0, 2.0, 0.0, 0.0]), seed=0) == sign_flip_p_value(np.array([1.0, 2.0]), seed=0)
    assert sign_flip_p_value(np.zeros(4), seed=0) == 1


@pytest.mark.parametrize(
    ("cluster", "options"),
    [
        ("prompt", {"prompts": 10, "seeds": 4, "prompt_spread": 1.0}),
        ("crossed", {"prompts": 8, "seeds": 1, "raters": 6, "prompt_spread": 0.7, "rater_spread": 0.7}),
    ],
)
def test_equal_variants_differ_as_often_as_the_level_says_and_unequal_ones_are_found(cluster, options):
    generator = np.random.default_rng(42)
    shares = []
    for strengths, simulations in (([0.0, 0, 0], 100), ([2.4, -0.6, 0], 25)):
        p_values = [
            difference(simulate(strengths, generator, **options), names(3), ("v0", "v1"), cluster, seed).p_value
            for seed in range(simulations)
        ]
        shares.append(np.mean(np.array(p_values) <= 0.05))
    assert shares[0] <= 0.12  # 0.05 and three standard deviations of 100 trials
    assert shares[1] >= 0.8


def test_ignoring_clusters_would_find_differences_that_are_not_there():
    """The pictures of one prompt being alike, answers are no independent trials; the test by prompts knows."""
    generator = np.random.default_rng(43)
    naive, clustered = 0, 0
    for seed in range(40):
        rankings = simulate([0.0, 0], generator, prompts=10, seeds=10, prompt_spread=2.0)
        wins = sum(r.tiers[0] == ("v0",) for r in rankings)
        naive += binomtest(wins, 100).pvalue <= 0.05
        clustered += difference(rankings, names(2), ("v0", "v1"), seed=seed).p_value <= 0.05
    assert naive / 40 > 0.2 > 0.16 > clustered / 40


def test_holms_worked_example():
    # Holm 1979: the smallest p-value times their number, the next times one fewer, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1, len(p_values) * p)
    assert np.all(np.diff(np.array(adjusted)[np.argsort(p_values, kind="stable")]) >= 0)


def test_pairs_that_no_answer_shows_together_are_left_out_of_the_correction():
    rankings = [ranking("a", "b", item=f"i{i}") for i in range(8)] + [ranking("c", "d", item=f"j{i}") for i in range(8)]
    sample = Sample.of(rankings, tuple("abcd"), "prompt", FEW)
    found = first_place_differences(sample, [("a", "b"), ("a", "c"), ("c", "d")])
    assert [(d.first, d.second, d.difference.value) for d in found] == [("a", "b", -1), ("c", "d", -1)]
    assert [d.p_holm for d in found] == pytest.approx([2 * 2 / 2**8] * 2)
    assert all(d.supported and d.ahead == d.first for d in found)
    assert all(d.difference.low == -1 and d.difference.high > -1 for d in found)


def test_five_prompts_support_nothing():
    found = difference([ranking("a", "b", item=f"i{i}") for i in range(5)], ("a", "b"), ("a", "b"))
    assert found.p_value == pytest.approx(2 / 2**5)
    assert not found.supported and found.ahead is None


def test_unanimous_people_are_believed_as_far_as_their_number_goes():
    for raters, prompts in ((8, 10), (10, 7), (4, 40)):
        rankings = [ranking("a", "b", item=f"i{p}", rater=f"r{r}") for p in range(prompts) for r in range(raters)]
        found = difference(rankings, ("a", "b"), ("a", "b"), "crossed")
        assert found.p_value == pytest.approx(2 / 2 ** min(raters, prompts))
        # one dissent of all can only make it less certain
        rankings[0] = ranking("b", "a", item="i0", rater="r0")
        assert difference(rankings, ("a", "b"), ("a", "b"), "crossed").p_value >= found.p_value


def test_statements_say_what_is_supported_and_what_is_not():
    rankings = simulate([2.5, 0, 0], np.random.default_rng(44), prompts=20)
    summary = summarise(rankings, source="judge", dimensions=("overall",), variants=names(3), bootstrap=FEW)
    first, second, third = statements(summary, "overall")
    assert first.startswith("v0 comes first more often than v1 (v1 less v0: -")
    assert second.startswith("v0 comes first more often than v2")
    assert third.startswith("v2 less v1: no difference is supported")
    assert "at 95 %, 100 answers, p = " in third and third.endswith("(Holm)).")
    with pytest.raises(DataError, match="no rankings on the dimension 'colour'; dimensions with rankings: overall"):
        statements(summary, "colour")


def test_scores_have_means_and_paired_differences():
    generator = np.random.default_rng(45)
    scores = []
    for i in range(12):
        level = generator.normal(60, 15)  # prompts differ far more than the variants do
        scores += [score("a", level, f"i{i}"), score("b", level + 2 + generator.normal(0, 0.5), f"i{i}")]
    scores.append(score("c", 10.0, "alone"))
    table = score_table(scores, ("a", "b", "c", "d"), [("a", "b"), ("a", "c"), ("a", "d")], "prompt", FEW)
    assert set(table.mean) == {"a", "b", "c"}
    assert table.mean["a"].value == pytest.approx(np.mean([s.value for s in scores if s.variant == "a"]))
    assert table.mean["a"].high - table.mean["a"].low > 8
    (found,) = table.differences  # only a and b were scored on the same items
    assert found.difference.value == pytest.approx(2, abs=0.5)
    assert found.difference.high - found.difference.low < 1.5
    assert found.supported and found.ahead == "b"


def test_scores_of_unknown_variants_or_given_twice_are_refused():
    with pytest.raises(DataError, match="no variant 'x'; variants: a, b"):
        score_table([score("x", 1.0)], ("a", "b"), [], "prompt", FEW)
    with pytest.raises(DataError, match="'a' is scored twice as repeat 0"):
        score_table([score("a", 1.0), score("a", 2.0)], ("a", "b"), [], "prompt", FEW)
