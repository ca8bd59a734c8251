import numpy as np
import pytest

from flowgrain.errors import DataError
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.cosine import ImageCosine, centre, mean_cosine, nearest_cosine, paired_cosine

X = np.array([[1.0, 0.0], [1.0, 1.0]])
Y = np.array([[0.0, 2.0], [3.0, 3.0]])


def test_paired_values_by_hand():
    np.testing.assert_allclose(paired_cosine(X, Y), [0.0, 1.0], atol=1e-12)


def test_nearest_and_mean_by_hand():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(nearest_cosine(X, Y), [half, 1.0])
    np.testing.assert_allclose(mean_cosine(X, Y), [half / 2, (half + 1) / 2])


def test_centring_removes_a_common_direction():
    generator = np.random.default_rng(0)
    pool = generator.normal(size=(200, 5))
    common = np.full(5, 100.0)
    x, y = generator.normal(size=(50, 5)), generator.normal(size=(50, 5))
    assert paired_cosine(x + common, y + common).min() > 0.99
    shifted = paired_cosine(centre(x + common, pool + common), centre(y + common, pool + common))
    np.testing.assert_allclose(shifted, paired_cosine(centre(x, pool), centre(y, pool)), atol=1e-9)


@pytest.mark.parametrize("against", ["own", "nearest", "mean"])
def test_metric_is_the_mean_over_the_drawn_rows(against):
    features = FeatureSet(X, Y, np.array([[2.0, 1.0], [0.0, 1.0], [4.0, 5.0]]))
    statistic = ImageCosine(against).statistic(features)
    singles = [statistic(np.array([row])) for row in (0, 1)]
    assert statistic(np.array([0, 1, 1])) == pytest.approx((singles[0] + 2 * singles[1]) / 3)


def test_errors():
    with pytest.raises(DataError, match="row 0 is zero"):
        paired_cosine(X * 0, Y)
    with pytest.raises(DataError, match="needs a reference picture for every prompt"):
        ImageCosine().statistic(FeatureSet(X, None, Y))
