import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.inception_score import InceptionScore, inception_score, softmax


def by_torchmetrics(logits, splits):
    """The lines of torchmetrics.image.inception's compute, without its shuffle."""
    prob = torch.from_numpy(logits).softmax(dim=1).chunk(splits, dim=0)
    log_prob = torch.from_numpy(logits).log_softmax(dim=1).chunk(splits, dim=0)
    scores = [
        (p * (log_p - p.mean(dim=0, keepdim=True).log())).sum(dim=1).mean().exp()
        for p, log_p in zip(prob, log_prob, strict=True)
    ]
    return float(torch.stack(scores).mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 12), st.floats(0, 20))
def test_equals_torchmetrics_and_stays_within_its_bounds(seed, chunks, classes, sharpness):
    logits = np.random.default_rng(seed).normal(size=(10 * chunks, classes)) * sharpness
    score, _ = inception_score(softmax(logits), chunk=10, seed=None)
    assert score == pytest.approx(by_torchmetrics(logits, chunks), rel=1e-9)
    assert 1 - 1e-12 <= score <= classes + 1e-9


def test_uniform_rows_score_one_and_sure_balanced_rows_the_number_of_classes():
    assert inception_score(np.full((20, 8), 1 / 8)) == (pytest.approx(1), 0.0)
    assert inception_score(np.tile(np.eye(8), (5, 1))) == (pytest.approx(8), 0.0)
    assert inception_score(np.tile(np.eye(8)[:1], (5, 1)))[0] == pytest.approx(1)


def test_pictures_sorted_by_class_score_far_too_low_unless_shuffled():
    by_class = np.repeat(np.eye(10), 100, axis=0)
    assert inception_score(by_class, chunk=100, seed=None)[0] == pytest.approx(1)
    shuffled = inception_score(by_class, chunk=100, seed=0)
    assert 9 < shuffled[0] < 10
    assert shuffled == inception_score(by_class, chunk=100, seed=0) != inception_score(by_class, chunk=100, seed=1)


def test_last_smaller_chunk_counts_like_the_others():
    probabilities = np.concatenate([np.eye(4), np.eye(4)[:1]])
    assert inception_score(probabilities, chunk=4, seed=None) == (pytest.approx((4 + 1) / 2), pytest.approx(1.5))


def test_softmax_does_not_overflow_and_keeps_the_precision():
    found = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], dtype=np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 0], [0.5, 0.5]])


def test_statistic_weights_the_drawn_rows_and_keeps_them_in_their_chunk():
    logits = np.random.default_rng(0).normal(size=(12, 5)) * 3
    features = FeatureSet(np.zeros((12, 1)), None, np.zeros((2, 1)), logits=logits)
    statistic = InceptionScore(chunk=100).statistic(features)
    rows = np.array([0, 0, 3, 7, 7, 7])
    assert statistic(np.arange(12)) == pytest.approx(inception_score(softmax(logits))[0])
    assert statistic(rows) == pytest.approx(inception_score(softmax(logits[rows]))[0])
    chunked = InceptionScore(chunk=5, seed=3).statistic(features)
    assert chunked(np.arange(12)) == pytest.approx(inception_score(softmax(logits), chunk=5, seed=3)[0])
    assert np.isfinite(chunked(np.array([2])))  # chunks that lost all rows do not count


def test_left_out_is_the_score_of_the_rows_that_are_left():
    logits = np.random.default_rng(1).normal(size=(14, 4)) * 2
    features = FeatureSet(np.zeros((14, 1)), None, np.zeros((2, 1)), logits=logits)
    clusters = np.split(np.random.default_rng(2).permutation(14), [1, 4, 9])
    for metric in (InceptionScore(), InceptionScore(chunk=4, seed=1)):
        value, left_out = metric.left_out(features, clusters)
        statistic = metric.statistic(features)
        assert value == pytest.approx(statistic(np.arange(14)))
        expected = [statistic(np.delete(np.arange(14), rows)) for rows in clusters]
        np.testing.assert_allclose(left_out, expected, rtol=1e-9)
    everything = [np.arange(14), np.array([], dtype=np.int64)]
    assert np.isnan(InceptionScore().left_out(features, everything)[1][0])


def test_errors():
    with pytest.raises(DataError, match="sum to 1"):
        inception_score(np.ones((3, 4)))
    with pytest.raises(DataError, match="row 1 is not finite"):
        softmax(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(ConfigError, match="chunk 0"):
        inception_score(np.eye(3), chunk=0)
    with pytest.raises(DataError, match="no classifier"):
        InceptionScore().statistic(FeatureSet(np.zeros((3, 1)), None, np.zeros((2, 1))))
