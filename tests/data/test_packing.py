"""Packing, slice weights and sharding: laws that hold for every grouping, reduction and packing."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.config import Layered, build_config
from flowgrain.data import windows as windows_module
from flowgrain.data.records import Update
from flowgrain.data.tuples import (
    GranularityWeights,
    SliceTable,
    TupleConfig,
    co_occurrence,
    fill,
    plan_epoch,
    plan_hash,
    shard,
)
from flowgrain.errors import ConfigError, DataError


@st.composite
def tables(draw) -> SliceTable:
    """Up to 30 roots of 1 to 6 slices at 4 levels, in up to 6 buckets."""
    levels = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=30))
    level = np.array([code for own in levels for code in own], np.int64)
    root = np.repeat(np.arange(len(levels)), [len(own) for own in levels])
    bucket = np.random.default_rng(draw(st.integers(0, 2**31))).integers(0, draw(st.integers(1, 6)), len(level))
    return SliceTable(root, np.minimum(level, 2).astype(np.int8), level, bucket)


configs = st.builds(
    TupleConfig,
    grouping=st.just("root"),
    batch_size=st.sampled_from([1, 2, 4, 8, 16]),
    micro_batch=st.sampled_from([None, 1, 3]),
    reduction=st.sampled_from(["root", "level", "slice", "literal"]),
    packing=st.sampled_from(["random", "fill"]),
    homogeneous=st.booleans(),
) | st.builds(
    TupleConfig,
    grouping=st.just("slice"),
    batch_size=st.sampled_from([1, 4, 16]),
    micro_batch=st.sampled_from([None, 1, 3]),
    reduction=st.sampled_from(["root", "level", "slice"]),
    packing=st.sampled_from(["random", "fill"]),
)


def photos(roots: int, seed: int = 0) -> SliceTable:
    """Three levels, nine shapes each, of uneven frequency; K = 2 or 3."""
    rng = np.random.default_rng(seed)
    level = np.tile([0, 1, 2], roots)
    bucket = rng.choice(9, 3 * roots, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.04, 0.03, 0.03])
    kept = (level < 2) | (rng.random(3 * roots) < 0.7)
    root = np.repeat(np.arange(roots), 3)
    return SliceTable(root[kept], level[kept].astype(np.int8), level[kept], bucket[kept])


def rows_of(update: Update) -> list[int]:
    return [int(row) for batch in update.micro_batches for row in batch.slices]


def weighted(updates: list[Update]) -> list[tuple[int, float]]:
    """(slice, weight) of all that is not padding, sorted."""
    pairs = [(b.slices, b.weights) for update in updates for b in update.micro_batches]
    return sorted(
        (int(row), float(weight))
        for rows, weights in pairs
        for row, weight in zip(rows, weights, strict=True)
        if weight != 0
    )


def roots_meeting(updates: list[Update], table: SliceTable) -> set[frozenset[int]]:
    return {frozenset(table.root[rows_of(update)].tolist()) for update in updates}


@settings(max_examples=300, deadline=None)
@given(tables(), configs, st.integers(0, 3))
def test_nothing_is_dropped_and_nothing_leaks(table, config, epoch):
    """Each slice is in exactly one micro-batch of the epoch, in the units, windows and shapes that were asked for."""
    updates = plan_epoch(table, config, 7, epoch)
    assert Counter(row for update in updates for row in rows_of(update)) == Counter(range(len(table)))
    units = len(np.unique(table.root)) if config.grouping == "root" else len(table)
    assert len(updates) == -(-units // config.batch_size)
    assert [update.index for update in updates] == list(range(len(updates)))
    assert all(update.roots == config.batch_size for update in updates[:-1])
    assert sum(update.roots for update in updates) == units
    for update in updates:
        for batch in update.micro_batches:
            assert 1 <= len(batch.slices) <= (config.micro_batch or config.batch_size)
            assert len(set(table.bucket[batch.slices].tolist())) == 1
    if config.grouping == "root":
        assert co_occurrence(updates, table) == 1.0


@settings(deadline=None)
@given(tables(), configs, st.integers(0, 3), st.integers(0, 2**31))
def test_an_epoch_depends_on_no_other(table, config, epoch, seed):
    """Planned alone, twice, after others or under other codes: the same."""
    alone = plan_hash(plan_epoch(table, config, seed, epoch))
    others = [plan_hash(plan_epoch(table, config, seed, other)) for other in range(epoch + 2)]
    assert others[epoch] == alone
    relabelled = dataclasses.replace(table, root=table.root * 5 + 3, level=table.level + 10, bucket=table.bucket * 7)
    assert plan_hash(plan_epoch(relabelled, config, seed, epoch)) == alone


@settings(deadline=None)
@given(tables(), configs)
def test_weights_sum_to_one_or_to_the_micro_batches(table, config):
    for update in plan_epoch(table, config, 0, 0):
        total = sum(weight for _, weight in weighted([update]))
        assert total == pytest.approx(len(update.micro_batches) if config.reduction == "literal" else 1, abs=1e-12)


@settings(deadline=None)
@given(tables(), configs, st.integers(0, 2**31))
def test_slice_weights_multiply(table, config, seed):
    """The column changes neither windows nor normalisation: each weight is its factor times what it was."""
    factor = np.random.default_rng(seed).uniform(0.1, 4.0, len(table))
    config = config.model_copy(update={"lambdas": GranularityWeights(macro=0.5, meso=2.0, micro=3.0)})
    plain = plan_epoch(table, config, 1, 2)
    ones = plan_epoch(dataclasses.replace(table, weight=np.ones(len(table))), config, 1, 2)
    assert plan_hash(ones) == plan_hash(plain)
    scaled = weighted(plan_epoch(dataclasses.replace(table, weight=factor), config, 1, 2))
    expected = [(row, weight * factor[row]) for row, weight in weighted(plain)]
    assert [row for row, _ in scaled] == [row for row, _ in expected]
    assert [weight for _, weight in scaled] == pytest.approx([weight for _, weight in expected], rel=1e-14)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_slice_weights_are_positive_and_finite(bad):
    column = np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="positive and finite"):
        SliceTable(column, column, column, column, np.array([1.0, bad]))
    with pytest.raises(ValueError, match="one length"):
        SliceTable(column, column, column, column, np.ones(3))


@settings(max_examples=200, deadline=None)
@given(tables(), configs, st.integers(1, 40))
def test_any_number_of_processes_runs_the_update(table, config, world):
    """The ranks' slices and weights are the update's, plus padding of weight 0: with ranks that have nothing too."""
    for update in plan_epoch(table, config, 0, 0)[:3]:
        parts = [shard(update, rank, world) for rank in range(world)]
        assert weighted(parts) == weighted([update])
        assert len({len(part.micro_batches) for part in parts}) == 1
        for part in parts:
            for batch in part.micro_batches:
                assert len(set(table.bucket[batch.slices].tolist())) == 1
                assert batch.weights.all() or (len(batch.slices) == 1 and batch.weights[0] == 0)
        slices = len(rows_of(update))
        assert sum(not part.slices for part in parts) >= max(world - slices, 0)


@settings(deadline=None)
@given(tables(), st.sampled_from([1, 2, 4, 8]))
def test_fill_keeps_homogeneous_windows(table, batch_size):
    """Full windows of one level set as with random packing: as many roots of each set are pooled."""
    levels = {root: frozenset(table.level[table.root == root].tolist()) for root in np.unique(table.root).tolist()}
    remainder = sum(count % batch_size for count in Counter(levels.values()).values())
    mixed = sum(
        len({levels[int(table.root[row])] for row in rows_of(update)}) > 1
        for update in plan_epoch(table, TupleConfig(batch_size=batch_size, packing="fill"), 0, 0)
    )
    assert mixed <= -(-remainder // batch_size)


def test_fill_by_hand():
    """Four roots of two shapes in windows of two: like shapes meet, each window is one full micro-batch."""
    table = SliceTable(np.arange(4), np.zeros(4, np.int8), np.zeros(4, np.int64), np.array([0, 1, 0, 1]))
    for epoch in range(10):
        updates = plan_epoch(table, TupleConfig(batch_size=2, packing="fill"), 0, epoch)
        assert roots_meeting(updates, table) == {frozenset({0, 2}), frozenset({1, 3})}
        assert fill(updates, 2) == 1.0
    assert {fill(plan_epoch(table, TupleConfig(batch_size=2), 0, epoch), 2) for epoch in range(20)} == {0.5, 1.0}


def test_fill_measure():
    table = SliceTable(np.arange(6), np.zeros(6, np.int8), np.zeros(6, np.int64), np.array([0, 0, 0, 0, 0, 1]))
    [update] = plan_epoch(table, TupleConfig(batch_size=6, micro_batch=2), 0, 0)
    assert len(update.micro_batches) == 4
    assert fill([update], 2) == 6 / 8
    assert fill([shard(update, rank, 4) for rank in range(4)], 2) == 6 / 8
    with pytest.raises(ValueError, match="got 0 and 2"):
        fill([], 2)


@pytest.mark.parametrize("grouping", ["root", "slice"])
@pytest.mark.parametrize("homogeneous", [True, False])
def test_fill_packs_better_than_chance(grouping, homogeneous):
    table = photos(2000)
    shares = {}
    for packing in ("random", "fill"):
        config = TupleConfig(grouping=grouping, homogeneous=homogeneous, packing=packing)
        shares[packing] = fill(plan_epoch(table, config, 0, 0), 8)
    assert shares["fill"] > 1.5 * shares["random"]


def test_fill_is_drawn_anew_each_epoch():
    """Windows and their order change; within chunks of the shuffle, so that even unlike roots meet others."""
    table = photos(400)
    config = TupleConfig(packing="fill", batch_size=4)
    first, second = (plan_epoch(table, config, 0, epoch) for epoch in (0, 1))
    assert len(roots_meeting(first, table) & roots_meeting(second, table)) < 0.1 * len(first)
    shapes = [table.bucket[table.root == min(table.root[rows_of(update)])][0] for update in first[:-1]]
    assert np.mean(np.diff(shapes) == 0) < 0.5


def test_fill_leaves_no_shape_for_last():
    """The short window, which drop_last skips, holds the rarest shape no more often than others do."""
    table = SliceTable(np.arange(41), np.zeros(41, np.int8), np.zeros(41, np.int64), np.arange(41) % 7)
    config = TupleConfig(batch_size=8, packing="fill")
    last = Counter(rows_of(plan_epoch(table, config, 0, epoch)[-1])[0] for epoch in range(400))
    assert len(last) == 41
    assert max(last.values()) < 30


def test_chunks_bound_who_meets(monkeypatch):
    """Smaller chunks mix more: with chunks of one window, packing changes nothing but the order in a window."""
    table = photos(200)
    plain = plan_epoch(table, TupleConfig(), 0, 0)
    monkeypatch.setattr(windows_module, "CHUNK_WINDOWS", 1)
    packed = plan_epoch(table, TupleConfig(packing="fill"), 0, 0)
    assert roots_meeting(packed, table) == roots_meeting(plain, table)


def test_drop_last_with_fill():
    table = photos(30)
    config = TupleConfig(batch_size=8, packing="fill", drop_last=True)
    kept = plan_epoch(table, config, 0, 0)
    whole = plan_epoch(table, config.model_copy(update={"drop_last": False}), 0, 0)
    assert plan_hash(kept) == plan_hash(whole[:-1])
    with pytest.raises(DataError, match="30 units, batch_size 31"):
        plan_epoch(table, config.model_copy(update={"batch_size": 31}), 0, 0)


def test_unknown_packing():
    with pytest.raises(ConfigError, match="packing"):
        build_config(TupleConfig, Layered({"packing": "dense"}, {}))
