"""Algorithm 2 read literally, against the windows that replace it (spec c.1.3)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.data.literal import LiteralEpoch, group_order, literal_epoch
from flowgrain.data.tuples import SliceTable, TupleConfig, co_occurrence, plan_epoch


def simulated(seed: int, roots: int = 300) -> SliceTable:
    """The set of spec c.1.3: K = 1, 2, 3 with probabilities .2, .3, .5 and nine buckets."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3], roots, p=[0.2, 0.3, 0.5])
    level = np.concatenate([np.arange(size) for size in sizes])
    return SliceTable(np.repeat(np.arange(roots), sizes), level.astype(np.int8), level, rng.integers(0, 9, len(level)))


def stepped(epoch: LiteralEpoch) -> list[set[int]]:
    return [{int(row) for batch in update.micro_batches for row in batch.slices} for update in epoch.updates]


def simulated_co_occurrence(batch_size: int, split: bool = False) -> float:
    values = []
    for seed in range(4):
        table = simulated(seed)
        epoch = literal_epoch(table, group_order(table, seed, 0), batch_size, split)
        values.append(co_occurrence(epoch.updates, table))
    return float(np.mean(values))


@pytest.mark.parametrize(("batch_size", "low", "high"), [(2, 0.12, 0.26), (4, 0.09, 0.2), (8, 0.09, 0.2)])
def test_tuples_fall_apart_as_soon_as_a_batch_holds_two_slices(batch_size, low, high):
    assert low < simulated_co_occurrence(batch_size) < high


@pytest.mark.parametrize(("batch_size", "high"), [(2, 0.15), (4, 0.08), (8, 0.06)])
def test_worse_when_a_batch_has_one_granularity(batch_size, high):
    assert 0 < simulated_co_occurrence(batch_size, split=True) < high


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 16])
def test_windows_keep_every_tuple(batch_size):
    table = simulated(0)
    assert co_occurrence(plan_epoch(table, TupleConfig(batch_size=batch_size), 0, 0), table) == 1.0


def test_gradients_are_left_over():
    """K_target of the first batch lets boundaries drift: some epochs end with gradients that were never stepped."""
    left = []
    for seed in range(8):
        table = simulated(seed)
        left.append(len(literal_epoch(table, group_order(table, seed, 0), 8).leftover))
    assert max(left) > 0


@given(st.integers(0, 2**31), st.integers(1, 60))
def test_one_slice_a_batch_keeps_tuples(seed, roots):
    table = simulated(seed, roots)
    epoch = literal_epoch(table, group_order(table, seed, 0), 1)
    assert co_occurrence(epoch.updates, table) == 1.0
    assert len(epoch.leftover) == 0


@given(st.integers(0, 2**31), st.integers(1, 60))
def test_step_boundaries_equal_the_windows_at_batch_one(seed, roots):
    """Streamed in the planner's order of roots, Algorithm 2 at B = 1, n = 1 steps exactly where the windows do."""
    table = simulated(seed, roots)
    plan = plan_epoch(table, TupleConfig(batch_size=1), seed, 0)
    windows = [np.concatenate([batch.slices for batch in update.micro_batches]) for update in plan]
    epoch = literal_epoch(table, np.concatenate(windows), 1)
    assert stepped(epoch) == [set(window.tolist()) for window in windows]
    assert [len(update.micro_batches) for update in epoch.updates] == [len(window) for window in windows]


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_every_slice_is_run_once(seed, roots, batch_size, split):
    table = simulated(seed, roots)
    epoch = literal_epoch(table, group_order(table, seed, 0), batch_size, split)
    run = [row for rows in stepped(epoch) for row in rows] + epoch.leftover.tolist()
    assert sorted(run) == list(range(len(table)))
    for update in epoch.updates:
        for batch in update.micro_batches:
            assert len(batch.slices) <= batch_size
            assert len(set(table.bucket[batch.slices].tolist())) == 1
            assert len(set(table.granularity[batch.slices].tolist())) == 1 or not split


def test_boundaries_by_hand():
    """Two roots of two slices in crossed buckets at B = 2: the first batch mixes roots, K_target = 2 holds both."""
    table = SliceTable(
        np.array([0, 0, 1, 1, 2]),
        np.array([0, 2, 0, 2, 0], np.int8),
        np.array([0, 1, 0, 1, 0]),
        np.array([0, 1, 0, 1, 0]),
    )
    epoch = literal_epoch(table, np.arange(5), 2)
    assert [batch.slices.tolist() for batch in epoch.updates[0].micro_batches] == [[0, 2], [1, 3]]
    assert [batch.weights.tolist() for batch in epoch.updates[0].micro_batches] == [[0.5, 0.5], [0.5, 0.5]]
    assert epoch.updates[0].roots == 2
    assert stepped(epoch) == [{0, 1, 2, 3}, {4}]
    held = literal_epoch(table, np.array([0, 1, 2, 4, 3]), 2)
    assert stepped(held) == [{0, 1, 2, 3}, {4}]
    drifted = literal_epoch(table, np.array([4, 0, 1, 2, 3]), 2)
    assert stepped(drifted) == [{0, 4}, {1, 2, 3}]


def test_group_order_keeps_groups_and_shuffles_within():
    table = simulated(0)
    order = group_order(table, 0, 0)
    assert sorted(order.tolist()) == list(range(len(table)))
    roots = table.root[order]
    assert np.count_nonzero(roots[1:] != roots[:-1]) == 299
    assert order.tolist() != group_order(table, 0, 1).tolist()
    assert any(np.diff(order[roots == root]).min(initial=1) < 0 for root in range(300))
