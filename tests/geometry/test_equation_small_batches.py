"""E.6.1 of Semantic Granularity Alignment, exactly: measured gradient products over all batches of a size."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.geometry.gradients import cross_gram, gradient_gram

seeds = st.integers(0, 10**6)


def population(seed, samples):
    """Gradients of a level's samples, in three dimensions."""
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def batch_means(gradients, size):
    """The mean gradient of every batch of ``size`` draws with replacement, all equally likely."""
    return [gradients[list(rows)].mean(dim=0) for rows in itertools.product(range(len(gradients)), repeat=size)]


def moments(gradients):
    """Mean and covariance of one draw."""
    mean = gradients.mean(dim=0)
    away = gradients - mean
    return mean.numpy(), (away.T @ away / len(gradients)).numpy()


@given(seed=seeds, size=st.integers(1, 2))
@settings(max_examples=10)
def test_products_of_a_batch_are_biased_on_the_diagonal_only_and_vary_as_one_over_its_size(seed, size):
    """E <a, b> = <G_a, G_b>, E |a|^2 = |G_a|^2 + tr S_a / B, Var <a, b> = (b'S_a b + a'S_b a) / B + tr S_aS_b / B^2."""
    a, b = population(seed, 3), population(seed + 1, 3)
    grams = np.stack(
        [
            gradient_gram({"a": one, "b": two})
            for one, two in itertools.product(batch_means(a, size), batch_means(b, size))
        ]
    )
    (mean_a, s_a), (mean_b, s_b) = moments(a), moments(b)
    expected = np.array([[mean_a @ mean_a, mean_a @ mean_b], [mean_a @ mean_b, mean_b @ mean_b]])
    expected += np.diag([np.trace(s_a), np.trace(s_b)]) / size
    np.testing.assert_allclose(grams.mean(axis=0), expected, rtol=1e-10, atol=1e-12)
    variance = (mean_b @ s_a @ mean_b + mean_a @ s_b @ mean_a) / size + np.trace(s_a @ s_b) / size**2
    np.testing.assert_allclose(grams[:, 0, 1].var(), variance, rtol=1e-10)


@given(seed=seeds)
@settings(max_examples=5)
def test_products_of_independent_halves_have_no_bias(seed):
    """E cross_gram = the Gram matrix of the expected gradients, diagonal included."""
    a, b = population(seed, 2), population(seed + 1, 2)
    means_a, means_b = batch_means(a, 2), batch_means(b, 2)
    grams = [
        cross_gram({"a": one, "b": two}, {"a": three, "b": four})
        for one, two, three, four in itertools.product(means_a, means_b, means_a, means_b)
    ]
    mean = np.stack([moments(a)[0], moments(b)[0]])
    np.testing.assert_allclose(np.mean(grams, axis=0), mean @ mean.T, rtol=1e-10, atol=1e-12)
