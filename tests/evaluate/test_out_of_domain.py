import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate import out_of_domain as module
from flowgrain.evaluate.base import FeatureSet
from flowgrain.evaluate.out_of_domain import OutOfDomainRate, out_of_domain, references_needed


def by_definition(generated, pool, alpha, k):
    """Sorting all distances."""
    own = cdist(pool, pool)
    np.fill_diagonal(own, np.inf)
    own = np.sort(np.sort(own, axis=1)[:, k - 1])
    rank = int(np.ceil(round((len(pool) + 1) * (1 - alpha), 9)))
    return np.sort(cdist(generated, pool), axis=1)[:, k - 1] > own[rank - 1]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 30),
    m=st.integers(20, 60),
    k=st.integers(1, 4),
    alpha=st.sampled_from([0.05, 0.1, 0.25, 0.5]),
    block=st.sampled_from([1, 7, 1024]),
)
def test_it_is_the_definition_in_blocks(seed, n, m, k, alpha, block):
    generator = np.random.default_rng(seed)
    generated = (generator.normal(size=(n, 5)) * 1.5 + 40).astype(np.float32)
    pool = (generator.normal(size=(m, 5)) + 40).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = out_of_domain(generated, pool, alpha, k)
    np.testing.assert_array_equal(found, by_definition(generated.astype(float), pool.astype(float), alpha, k))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("alpha", "references"), [(0.05, 19), (0.1, 30), (0.2, 57)])
@pytest.mark.parametrize("law", ["normal", "heavy tails", "clusters"])
def test_exchangeable_pictures_are_rejected_at_most_as_often_as_promised(law, alpha, references, k):
    generator = np.random.default_rng(7)
    rates = []
    for _ in range(400):
        if law == "normal":
            points = generator.normal(size=(references + 10, 6))
        elif law == "heavy tails":
            points = generator.standard_t(2, size=(references + 10, 3))
        else:
            points = generator.normal(size=(references + 10, 4)) * 0.1 + 5 * generator.integers(
                0, 3, (references + 10, 1)
            )
        rates.append(out_of_domain(points[references:], points[:references], alpha, k).mean())
    mean, error = np.mean(rates), np.std(rates) / np.sqrt(len(rates))
    assert mean <= alpha + 3 * error
    assert mean > alpha / 4  # and the promise is not kept by rejecting nothing


def test_far_pictures_are_out_and_copies_are_in():
    generator = np.random.default_rng(0)
    pool = generator.normal(size=(50, 8)) + 1000  # far from the origin: differences lose digits there
    assert out_of_domain(pool + 50, pool).all()
    assert not out_of_domain(pool, pool).any()
    twins = np.repeat(pool, 2, axis=0)  # all own distances are 0
    assert not out_of_domain(pool, twins).any()
    assert out_of_domain(pool + 1e-3, twins).all()


def test_the_distance_does_not_depend_on_where_the_origin_lies():
    generator = np.random.default_rng(1)
    generated, pool = generator.normal(size=(40, 6)) * 1.3, generator.normal(size=(40, 6))
    np.testing.assert_array_equal(out_of_domain(generated, pool), out_of_domain(generated + 1e4, pool + 1e4))


def test_the_metric_is_the_share_of_the_drawn_rows():
    generator = np.random.default_rng(0)
    pool = generator.normal(size=(40, 4))
    generated = np.concatenate([pool[:3], pool[:1] + 100])
    metric = OutOfDomainRate(alpha=0.1)
    statistic = metric.statistic(FeatureSet(generated, None, pool))
    assert statistic(np.arange(4)) == 0.25
    assert statistic(np.array([3, 3, 0])) == pytest.approx(2 / 3)
    assert metric.name("CLIP") == "CLIP out-of-domain rate (alpha 0.1)" and not metric.higher_is_better
    assert OutOfDomainRate(0.05, k=3).title == "out-of-domain rate (alpha 0.05, k = 3)"


@pytest.mark.parametrize(
    ("alpha", "k", "needed"), [(0.05, 1, 19), (0.1, 1, 9), (0.5, 1, 2), (0.5, 5, 6), (0.03, 2, 33)]
)
def test_the_fewest_references_are_known(alpha, k, needed):
    generator = np.random.default_rng(0)
    assert references_needed(alpha, k) == needed
    pool = generator.normal(size=(needed, 3))
    assert out_of_domain(pool + 100, pool, alpha, k).all()
    with pytest.raises(DataError, match=f"{needed - 1} references, at least {needed} are needed"):
        out_of_domain(pool, pool[1:], alpha, k)


def test_options_out_of_range_are_refused():
    for alpha in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="alpha"):
            OutOfDomainRate(alpha)
    with pytest.raises(ConfigError, match="k 0: must be at least 1"):
        OutOfDomainRate(k=0)
    with pytest.raises(DataError, match="generated: feature row 1 is not finite"):
        out_of_domain(np.array([[0.0], [np.nan]]), np.zeros((30, 1)))
