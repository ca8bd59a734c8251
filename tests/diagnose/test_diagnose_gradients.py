"""Gradients of the levels at checkpoints: parts sum to updates, kinds of batches are exact algebra."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from flowgrain.data.records import MicroBatch
from flowgrain.diagnose.gradients import level_products, measure_gradients, planned_updates, pooled_cosines
from flowgrain.diagnose.gradients_batches import (
    batch_kinds,
    choose_slices,
    measure_batches,
    mixtures,
    slice_gram,
    slice_moments,
)
from flowgrain.geometry.gradients import InteractionLog, Interactions
from flowgrain.geometry.noise_scale import root_correlation
from flowgrain.report.diagnose_gradients import finding, sections
from flowgrain.report.page import Page
from flowgrain.train.step import accumulate


@pytest.fixture(scope="module")
def double_opened(open_short):
    """The run in float64 at its last checkpoint."""
    opened = open_short()
    for component in opened.family.components().values():
        component.double()
    for _, parameter in opened.adapter.parameters():
        parameter.data = parameter.data.double()
    opened.load(opened.checkpoints[-1])
    return opened


@pytest.fixture(scope="module")
def measured(opened, small_config):
    result = measure_gradients(opened, small_config, lambda *_: None)
    return json.loads(json.dumps(result.as_json(), allow_nan=False))


def gradient_of(opened, batches):
    parameters = opened.objective.parameters()
    accumulate(opened.objective, batches, opened.autocast)
    whole = torch.cat([parameter.grad.flatten() for _, parameter in parameters])
    for _, parameter in parameters:
        parameter.grad = None
    return whole


def test_level_gradients_sum_to_the_updates_gradient(double_opened):
    for update in planned_updates(double_opened, 1, 2):
        products, _ = level_products(double_opened, [update])[0]
        builder = double_opened.train.builder
        whole = gradient_of(double_opened, (builder.build(m, update.epoch) for m in update.micro_batches))
        assert products.levels == ("macro", "meso", "micro")
        assert products.whole().gram.sum() == pytest.approx(whole.square().sum().item(), rel=1e-6)
        assert all(parameter.grad is None for _, parameter in double_opened.objective.parameters())


def test_products_of_slices_are_those_of_their_gradients(double_opened):
    rows = [0, 1, 5]
    gram, sketched = slice_gram(double_opened, rows, 3)
    builder = double_opened.train.builder
    lone = [gradient_of(double_opened, [builder.build(MicroBatch(np.array([i]), np.ones(1)), 3)]) for i in rows]
    expected = torch.stack(lone) @ torch.stack(lone).T
    assert not sketched
    np.testing.assert_allclose(gram, expected.numpy(), rtol=1e-5)


def test_sketches_keep_inner_products(double_opened, open_short):
    rows = list(range(4))
    exact, _ = slice_gram(double_opened, rows, 1)
    small = open_short(memory_mib=0)  # not a setting that a user can choose: everything is too large
    small.load(small.checkpoints[-1])
    gram, sketched = slice_gram(small, rows, 1)
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert sketched
    assert np.abs(gram - exact).max() < 0.02 * scale.max()


def test_updates_are_of_an_epoch_that_the_run_has_not_seen(measured, opened):
    seen = json.loads((opened.checkpoints[-1].path / "state.json").read_text())["progress"]["epoch"]
    assert measured["epoch"] == seen + 1 and measured["updates"] == 2 and measured["unit"] == "root"


def test_result_is_the_same_again(measured, opened, small_config):
    again = measure_gradients(opened, small_config, lambda *_: None).as_json()
    assert json.loads(json.dumps(again)) == measured


def test_every_checkpoint_has_all_pairs_and_gram_is_consistent(measured, opened):
    assert [point["update"] for point in measured["points"]] == [2, 4]
    for point in measured["points"]:
        gram = np.array(point["gram"])
        for i, j in combinations(range(3), 2):
            pair = f"{point['levels'][i]}-{point['levels'][j]}"
            assert point["interaction"][pair]["mean"] == pytest.approx(gram[i, j])
        cross = point["cross_share"]["mean"]
        assert cross == pytest.approx((gram.sum() - gram.trace()) / gram.sum())
        assert 0 <= point["conflict_rate"]["low"] <= point["conflict_rate"]["high"] <= 1


def test_page_says_nothing_that_json_does_not_hold(measured):
    page = Page("run", "test", sections(measured)).render()
    assert "nan" not in page.lower().replace("financ", "") and "None" not in page
    assert all("update 4" in line for line in finding(measured))


def repeated(roots, per_root, width, seed, shared=1.0, own=1.0):
    draw = np.random.default_rng(seed)
    vectors = np.repeat(draw.normal(size=(roots, width)) * shared, per_root, axis=0)
    vectors = vectors + own * draw.normal(size=vectors.shape) + 0.3
    return vectors, np.repeat(np.arange(roots), per_root), np.tile(np.arange(per_root) % 3, roots)


def test_equal_slices_of_a_root_are_worth_one():
    vectors, roots, levels = repeated(8, 3, 40, 0, own=0.0)
    found = batch_kinds(vectors @ vectors.T, roots, levels, ())
    assert found.rho == pytest.approx(1)
    assert found.tuples.value == pytest.approx(3)
    assert found.tuples.low <= 3 <= found.tuples.high


def test_design_effect_is_that_of_the_gradients_themselves():
    vectors, roots, levels = repeated(7, 3, 50, 1, shared=0.5)
    found = batch_kinds(vectors @ vectors.T, roots, levels, ())
    own = root_correlation({str(r): list(torch.from_numpy(vectors[roots == r])) for r in range(7)})
    assert found.tuples.value == pytest.approx(own.design_effect, rel=1e-9)
    assert found.rho == pytest.approx(own.rho, rel=1e-9)


def test_levels_with_means_of_their_own_make_tuples_and_balance_better():
    draw = np.random.default_rng(2)
    roots, levels = np.repeat(np.arange(10), 3), np.tile(np.arange(3), 10)
    vectors = 0.1 * draw.normal(size=(30, 60)) + 3 * draw.normal(size=(3, 60))[levels]
    found = batch_kinds(vectors @ vectors.T, roots, levels, ())
    assert found.tuples.high < 0.2 and found.balanced.high < 0.2
    assert 0.5 < found.content.value < 1.5


def test_moments_of_equal_gradients():
    vectors = np.ones((6, 5))
    signal, trace = slice_moments(vectors @ vectors.T, np.array([0, 0, 1, 1, 2, 2]))
    assert signal == pytest.approx(5) and trace == pytest.approx(0, abs=1e-12)


def test_moments_are_unbiased_over_all_samples_of_roots():
    """The mean over all choices of 3 of 5 roots, whole, is what all pairs of different roots say."""
    vectors, roots, _ = repeated(5, 2, 8, 3)
    gram = vectors @ vectors.T
    squares = [
        slice_moments(gram[np.ix_(keep, keep)], roots[keep])[0]
        for keep in (np.isin(roots, chosen) for chosen in combinations(range(5), 3))
    ]
    assert np.mean(squares) == pytest.approx(slice_moments(gram, roots)[0])


def test_company_counts_all_batches(opened):
    slices = opened.train.dataset.slices[:7]
    met = []
    for batch in combinations(range(7), 3):
        met += [
            any(slices[i].root == slices[j].root and slices[i].granularity != slices[j].granularity for j in batch)
            for i in batch
        ]
    found = mixtures(slices, (3,))[0]
    assert found.with_company == pytest.approx(np.mean(met))


def test_pool_takes_levels_in_turn_and_roots_with_several_slices(opened):
    slices = opened.train.dataset.slices
    chosen = choose_slices(slices, 0)
    assert len(chosen) == 8
    for root, members in chosen.items():
        assert [slices[i].granularity for i in members] == [0, 1, 2]
        assert {slices[i].root for i in members} == {root}
    assert choose_slices([item for item in slices if item.granularity == 0], 0) == {}


def test_kinds_of_batches_are_measured_at_both_ends(measured):
    assert [point["batches"] is None for point in measured["points"]] == [False, False]
    found = measured["points"][-1]["batches"]
    assert found["roots"] == 8 and found["slices"] == 24
    assert [row["slices"] for row in found["mixtures"]] == [8, 16]
    assert found["tuples"]["low"] < found["tuples"]["value"] < found["tuples"]["high"]


def test_too_few_roots_tell_no_kinds(opened, monkeypatch):
    monkeypatch.setattr("flowgrain.diagnose.gradients_batches.ROOTS", 2)
    assert measure_batches(opened, 1) is None


def test_pooled_cosine_of_constant_products_has_no_width():
    log = InteractionLog(["macro", "micro"])
    for _ in range(5):
        log.add(Interactions(("macro", "micro"), np.array([[4.0, -1.0], [-1.0, 1.0]])))
    found = pooled_cosines(log, np.random.default_rng(0), 200)["macro", "micro"]
    assert (found.value, found.undefined) == (-0.5, 0.0)
    assert found.low == pytest.approx(-0.5) and found.high == pytest.approx(-0.5)


def test_pooled_cosine_without_a_positive_square_cannot_be_told():
    log = InteractionLog(["macro", "micro"])
    for sign in (1, -1, -1, -1):
        log.add(Interactions(("macro", "micro"), np.array([[4.0 * sign, 1.0], [1.0, 1.0]])))
    found = pooled_cosines(log, np.random.default_rng(0), 200)["macro", "micro"]
    assert np.isnan([found.value, found.low, found.high]).all() and found.undefined > 0.5
