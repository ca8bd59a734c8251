"""Weights from Gram matrices: closed forms, and what must hold for any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from flowgrain.geometry.level_weights import balanced_weights, relative_progress

LOW, HIGH = 0.5, 2.0


@st.composite
def grams(draw, most=4):
    """Gram matrices of random gradients of very different lengths."""
    count = draw(st.integers(2, most))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    vectors = generator.normal(size=(count, draw(st.integers(1, 5)))) * np.exp(generator.normal(size=(count, 1)))
    return vectors @ vectors.T


def two(a, b, cosine):
    return np.array([[a * a, a * b * cosine], [a * b * cosine, b * b]])


@pytest.mark.parametrize("norms", [(1.0, 1.0, 1.0), (1e-4, 1.0, 30.0)])
def test_orthogonal_levels_weigh_1_whatever_their_norms(norms):
    gram = np.diag(np.square(norms))
    assert np.array_equal(balanced_weights(gram, LOW, HIGH), np.ones(3))
    weights = np.array([0.5, 1.0, 1.5])
    assert relative_progress(gram, weights) == pytest.approx(weights, rel=1e-12)


def test_levels_that_help_each_other_weigh_1():
    assert np.array_equal(balanced_weights(two(1.0, 9.0, 0.8), LOW, HIGH), np.ones(2))


@pytest.mark.parametrize("cosine", [-0.9, -0.3])
def test_equal_levels_in_conflict_weigh_1(cosine):
    gram = np.full((3, 3), cosine / 2) + (1 - cosine / 2) * np.eye(3)
    assert balanced_weights(gram, LOW, HIGH) == pytest.approx(np.ones(3), abs=1e-7)


@pytest.mark.parametrize(("a", "b", "cosine"), [(1.0, 1.5, -0.4), (1.0, 1.2, -0.7), (3.0, 2.0, -0.2)])
def test_of_two_levels_in_conflict_the_shorter_is_raised_until_both_progress_alike(a, b, cosine):
    """w_a (1 - c a / b) = w_b (1 - c b / a), from p_a = p_b."""
    weights = balanced_weights(two(a, b, cosine), 0.01, 1.99)
    assert weights[0] / weights[1] == pytest.approx((1 - cosine * b / a) / (1 - cosine * a / b), rel=1e-6)
    first, second = relative_progress(two(a, b, cosine), weights)
    assert first == pytest.approx(second, abs=1e-6)
    assert (weights[0] > 1) == (a < b)


def test_a_level_that_meets_no_conflict_keeps_the_others_company():
    """Two levels in conflict and one apart: the loser is raised, and it is the loser that is raised most."""
    gram = np.eye(3)
    gram[:2, :2] = two(1.0, 3.0, -0.5)
    weights = balanced_weights(gram, LOW, HIGH)
    assert weights[0] > 1 and weights[0] == weights.max() and weights.mean() == pytest.approx(1, abs=1e-12)
    before, after = relative_progress(gram, np.ones(3)), relative_progress(gram, weights)
    assert before.min() == pytest.approx(1 - 1.5) and after.min() > before.min() + 0.3


@given(grams())
def test_weights_keep_the_mean_and_the_bounds_and_never_worsen_the_worst(gram):
    weights = balanced_weights(gram, LOW, HIGH)
    assert weights.mean() == pytest.approx(1, abs=1e-9) and LOW <= weights.min() <= weights.max() <= HIGH
    plain = min(1.0, relative_progress(gram, np.ones(len(gram))).min())
    assert min(1.0, relative_progress(gram, weights).min()) >= plain - 1e-7 * max(1.0, abs(plain))


@given(grams(most=3))
def test_no_other_weights_have_a_better_worst(gram):
    """Against the plain linear program over all weights."""
    count = len(gram)
    best = linprog(
        np.append(np.zeros(count), -1.0),
        A_ub=np.column_stack([-gram / gram.diagonal()[:, None], np.ones(count)]), b_ub=np.zeros(count),
        A_eq=np.append(np.ones(count), 0.0)[None], b_eq=[count], bounds=[(LOW, HIGH)] * count + [(None, 1)],
    ).x[-1]  # fmt: skip
    found = min(1.0, relative_progress(gram, balanced_weights(gram, LOW, HIGH)).min())
    assert found == pytest.approx(best, abs=1e-6 * max(1.0, abs(best)))


@given(grams(), st.randoms())
def test_the_order_of_the_levels_does_not_matter(gram, random):
    order = list(range(len(gram)))
    random.shuffle(order)
    turned = balanced_weights(gram[np.ix_(order, order)], LOW, HIGH)
    assert turned == pytest.approx(balanced_weights(gram, LOW, HIGH)[order], abs=1e-5)


@given(grams(), st.floats(1e-6, 1e6))
def test_the_scale_of_all_gradients_does_not_matter(gram, scale):
    assert balanced_weights(scale * gram, LOW, HIGH) == pytest.approx(balanced_weights(gram, LOW, HIGH), abs=1e-5)


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match="positive squared norms"):
        balanced_weights(np.array([[1.0, 0.0], [0.0, -0.1]]), LOW, HIGH)
    with pytest.raises(ValueError, match="positive squared norms"):
        relative_progress(np.array([[1.0, np.nan], [np.nan, 1.0]]), np.ones(2))
    with pytest.raises(ValueError, match="must enclose 1"):
        balanced_weights(np.eye(2), 1.1, 2.0)
