import numpy as np
import pytest

from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap, cluster_rows, influence_replicates, mean_interval, replicate
from flowgrain.evaluate.frechet import frechet_distance


def test_interval_of_a_mean_has_the_closed_form_width():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = mean_interval(values, [str(i) for i in range(400)], Bootstrap(resamples=4000))
    half = 1.959964 * values.std() / np.sqrt(400)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * half, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.06 * half)


def test_coverage_is_near_the_level():
    generator = np.random.default_rng(1)
    names = [str(i) for i in range(40)]
    bootstrap = Bootstrap(resamples=200, level=0.9)
    held = 0
    for _ in range(200):
        _, low, high = mean_interval(generator.normal(loc=3, size=40), names, bootstrap)
        held += low <= 3 <= high
    # 0.90 less a little for n = 40; binomial standard deviation 0.021
    assert 0.81 <= held / 200 <= 0.97


@pytest.mark.parametrize("prompts", [4, 8])
def test_coverage_of_few_prompts_is_near_the_level_too(prompts):
    # a plain percentile interval holds the mean in 0.80 and 0.90 of cases
    generator = np.random.default_rng(7)
    names = [str(i) for i in range(prompts)]
    bootstrap = Bootstrap(resamples=200)
    held = 0
    for _ in range(300):
        _, low, high = mean_interval(generator.normal(size=prompts), names, bootstrap)
        held += low <= 0 <= high
    assert 0.91 <= held / 300 <= 0.99  # binomial standard deviation 0.013


def test_spread_for_few_clusters_has_the_published_factor():
    replicates = np.linspace(-1, 1, 1001)
    bootstrap = Bootstrap(resamples=100)
    low, high = bootstrap.interval(0.0, replicates)
    for clusters, factor in ((8, 1.2898), (40, 1.0451), (2, 9.1682)):  # sqrt(c / (c - 1)) t_{c-1} / z
        assert bootstrap.interval(0.0, replicates, clusters) == pytest.approx((factor * low, factor * high), rel=1e-3)


def test_clusters_widen_the_interval_when_pictures_of_a_prompt_agree():
    by_prompt = np.random.default_rng(2).normal(size=50)
    values = np.repeat(by_prompt, 4)
    bootstrap = Bootstrap(resamples=2000)
    _, low, high = mean_interval(values, [str(i // 4) for i in range(200)], bootstrap)
    _, naive_low, naive_high = mean_interval(values, [str(i) for i in range(200)], bootstrap)
    assert (high - low) / (naive_high - naive_low) == pytest.approx(2.0, rel=0.1)  # sqrt(4)


def test_cluster_draws_do_not_depend_on_the_order_of_rows():
    values = np.arange(6.0)
    names = ["a", "b", "c", "a", "b", "c"]
    order = [3, 4, 5, 0, 1, 2]
    bootstrap = Bootstrap(resamples=100)
    first = replicate(lambda rows: float(values[rows].sum()), names, bootstrap)
    shuffled = values[order]
    second = replicate(lambda rows: float(shuffled[rows].sum()), [names[i] for i in order], bootstrap)
    np.testing.assert_allclose(first, second)


def test_same_seed_same_interval_other_seed_other_draws():
    values = np.random.default_rng(3).normal(size=30)
    names = [str(i) for i in range(30)]
    assert mean_interval(values, names, Bootstrap(seed=5)) == mean_interval(values, names, Bootstrap(seed=5))
    assert mean_interval(values, names, Bootstrap(seed=5)) != mean_interval(values, names, Bootstrap(seed=6))


def test_interval_holds_the_estimate_of_a_statistic_that_repeats_bias_upwards():
    # the plain percentile interval of a Frechet distance lies wholly above the estimate here
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(30, 40)), generator.normal(size=(30, 40))
    bootstrap = Bootstrap(resamples=200)
    replicates = replicate(lambda rows: frechet_distance(x[rows], y), [str(i) for i in range(30)], bootstrap)
    estimate = frechet_distance(x, y)
    assert np.quantile(replicates, 0.025) > estimate
    low, high = bootstrap.interval(estimate, replicates)
    assert low < estimate < high


def test_influences_of_a_mean_replicate_like_its_bootstrap():
    values = np.random.default_rng(6).normal(size=50)
    names = [f"{i:02d}" for i in range(50)]
    bootstrap = Bootstrap(resamples=300)
    left_out = (values.sum() - values) / 49
    found = influence_replicates(values.mean(), left_out, bootstrap)
    plain = replicate(lambda rows: float(values[rows].mean()), names, bootstrap)
    np.testing.assert_allclose(found, plain, rtol=1e-9, atol=1e-12)


def test_replicates_draw_all_rows_of_a_cluster_as_often_as_it_is_drawn():
    names = ["b", "a", "b", "c", "b", "a"]
    bootstrap = Bootstrap(resamples=100)
    seen = []
    replicate(lambda rows: float(len(seen.append(np.sort(rows)) or rows)), names, bootstrap)
    members = list(cluster_rows(names).values())
    for draw, rows in zip(bootstrap.draws(3), seen, strict=True):
        np.testing.assert_array_equal(rows, np.sort(np.concatenate([members[cluster] for cluster in draw])))


def test_an_interval_leaves_out_what_is_not_finite_and_says_where_nothing_is_left():
    bootstrap = Bootstrap(resamples=100)
    some = np.concatenate([np.linspace(0, 2, 98), [np.nan, np.inf]])
    assert bootstrap.interval(1.0, some) == bootstrap.interval(1.0, some[:98])
    for estimate, replicates in ((1.0, np.full(100, np.nan)), (np.inf, np.zeros(100)), (np.nan, np.zeros(100))):
        assert np.isnan(bootstrap.interval(estimate, replicates)).all()


def test_cluster_rows_are_sorted_and_complete():
    rows = cluster_rows(["b", "a", "b"])
    assert list(rows) == ["a", "b"]
    assert [list(r) for r in rows.values()] == [[1], [0, 2]]


def test_errors():
    with pytest.raises(DataError, match="at least 2 prompts"):
        mean_interval(np.ones(3), ["one"] * 3, Bootstrap())
    with pytest.raises(ConfigError, match="resamples 10"):
        Bootstrap(resamples=10)
    with pytest.raises(ConfigError, match=r"level 95\.0"):
        Bootstrap(level=95.0)
