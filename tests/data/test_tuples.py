"""The update planner: laws of the plan, weights against Eq. 6 written out, gradients, sharding."""

import dataclasses
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.config import Layered, build_config
from flowgrain.data.records import Update
from flowgrain.data.tuples import (
    GranularityShares,
    GranularityWeights,
    SliceTable,
    TupleConfig,
    co_occurrence,
    plan_epoch,
    plan_hash,
    shard,
)
from flowgrain.errors import ConfigError, DataError

GRANULARITY_OF_LEVEL = np.array([0, 1, 2, 2], np.int8)
"""Level codes of the tests: macro, halfbody, head, eyes."""


def make_table(roots: list[list[int]], buckets: np.ndarray | None = None) -> SliceTable:
    """A table from the level codes of each root's slices."""
    level = np.array([code for levels in roots for code in levels], np.int64)
    root = np.repeat(np.arange(len(roots)), [len(levels) for levels in roots])
    buckets = np.arange(len(level)) % 3 if buckets is None else buckets
    return SliceTable(root, GRANULARITY_OF_LEVEL[level], level, buckets)


@st.composite
def tables(draw) -> SliceTable:
    roots = draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=25))
    slices = sum(len(levels) for levels in roots)
    buckets = draw(st.lists(st.integers(0, 4), min_size=slices, max_size=slices))
    return make_table(roots, np.array(buckets))


configs = st.builds(
    TupleConfig,
    batch_size=st.sampled_from([1, 2, 4, 8, 16]),
    micro_batch=st.sampled_from([None, 1, 2, 3]),
    reduction=st.sampled_from(["root", "level", "slice", "literal"]),
    homogeneous=st.booleans(),
)


def slices_of(update: Update) -> list[int]:
    return [int(row) for batch in update.micro_batches for row in batch.slices]


def weights_of(update: Update) -> dict[int, float]:
    weights: dict[int, float] = defaultdict(float)
    for batch in update.micro_batches:
        for row, weight in zip(batch.slices, batch.weights, strict=True):
            weights[int(row)] += float(weight)
    return dict(weights)


def objective(table: SliceTable, rows: list[int], reduction: str, losses, lambdas=(1.0, 1.0, 1.0)):
    """The window's loss written as nested means (spec c.2), in the reading order of the formula."""
    scaled = {row: lambdas[table.granularity[row]] * losses[row] for row in rows}

    def mean_over_levels(part: list[int]):
        levels = sorted({int(table.level[row]) for row in part})
        means = []
        for level in levels:
            own = [scaled[row] for row in part if table.level[row] == level]
            means.append(sum(own) / len(own))
        return sum(means) / len(levels)

    if reduction == "slice":
        return sum(scaled.values()) / len(rows)
    if reduction == "level":
        return mean_over_levels(rows)
    roots = sorted({int(table.root[row]) for row in rows})
    return sum(mean_over_levels([row for row in rows if table.root[row] == root]) for root in roots) / len(roots)


@given(tables(), configs, st.integers(0, 5))
def test_every_slice_once_and_roots_stay_together(table, config, epoch):
    updates = plan_epoch(table, config, seed=7, epoch=epoch)
    assert Counter(row for update in updates for row in slices_of(update)) == Counter(range(len(table)))
    assert co_occurrence(updates, table) == 1.0
    roots = len(np.unique(table.root))
    assert len(updates) == -(-roots // config.batch_size)
    assert [update.index for update in updates] == list(range(len(updates)))
    assert {update.epoch for update in updates} == {epoch}
    for update in updates:
        assert update.roots == len(np.unique(table.root[slices_of(update)]))
    assert all(update.roots == config.batch_size for update in updates[:-1])


@given(tables(), configs)
def test_micro_batches_have_one_shape_and_a_limit(table, config):
    limit = config.micro_batch or config.batch_size
    for update in plan_epoch(table, config, 0, 0):
        for batch in update.micro_batches:
            assert 1 <= len(batch.slices) <= limit
            assert len(batch.weights) == len(batch.slices)
            assert len(set(table.bucket[batch.slices].tolist())) == 1
        full = Counter(int(table.bucket[row]) for row in slices_of(update))
        assert len(update.micro_batches) == sum(-(-count // limit) for count in full.values())


@given(tables(), configs.filter(lambda config: config.reduction != "literal"))
def test_weights_sum_to_one(table, config):
    for update in plan_epoch(table, config, 0, 0):
        assert abs(sum(weights_of(update).values()) - 1) < 1e-12


@given(tables(), configs.filter(lambda config: config.reduction == "literal"))
def test_literal_weights_are_batch_means_summed(table, config):
    for update in plan_epoch(table, config, 0, 0):
        for batch in update.micro_batches:
            assert np.array_equal(batch.weights, np.full(len(batch.slices), 1 / len(batch.slices)))


@given(tables(), configs.filter(lambda config: config.reduction != "literal"), st.integers(0, 2**32 - 1))
def test_weights_are_those_of_the_formula(table, config, seed):
    losses = np.random.default_rng(seed).normal(size=len(table))
    lambdas = (0.5, 2.0, 3.0)
    factors = GranularityWeights(macro=0.5, meso=2.0, micro=3.0)
    for update in plan_epoch(table, config.model_copy(update={"lambdas": factors}), 0, 0):
        accumulated = sum(weight * losses[row] for row, weight in weights_of(update).items())
        expected = objective(table, slices_of(update), config.reduction, losses, lambdas)
        assert accumulated == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
    st.integers(1, 20),
    st.integers(1, 8),
    st.sampled_from(["level", "slice"]),
)
def test_reductions_agree_when_roots_have_the_same_levels(levels, roots, batch_size, other):
    table = make_table([levels] * roots)
    plans = [
        plan_epoch(table, TupleConfig(batch_size=batch_size, reduction=reduction), 0, 0)
        for reduction in ("root", other)
    ]
    for first, second in zip(*plans, strict=True):
        assert weights_of(first) == pytest.approx(weights_of(second), rel=1e-12)


def test_reductions_differ_when_they_do_not():
    """One root of one macro slice, one of a macro and two heads: by hand."""
    table = make_table([[0], [0, 2, 2]])
    expected = {
        "root": [1 / 2, 1 / 4, 1 / 8, 1 / 8],
        "level": [1 / 4, 1 / 4, 1 / 4, 1 / 4],
        "slice": [1 / 4, 1 / 4, 1 / 4, 1 / 4],
    }
    for reduction, weights in expected.items():
        [update] = plan_epoch(table, TupleConfig(reduction=reduction), 0, 0)
        assert [weights_of(update)[row] for row in range(4)] == pytest.approx(weights)
    table = make_table([[0], [0, 2], [0]])
    [update] = plan_epoch(table, TupleConfig(reduction="level"), 0, 0)
    assert [weights_of(update)[row] for row in range(4)] == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    return torch.nn.Sequential(*layers).double()


def accumulated_gradient(updates: list[Update], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Gradient after one backward pass a micro-batch, as the trainer does it."""
    model = small_model()
    for update in updates:
        for batch in update.micro_batches:
            rows = torch.from_numpy(batch.slices)
            errors = ((model(inputs[rows]) - targets[rows]) ** 2).mean(dim=1)
            (torch.from_numpy(batch.weights) * errors).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(max_examples=25, deadline=None)
@given(
    tables(),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([1, 2, 3, None]),
    st.sampled_from(["root", "level", "slice"]),
    st.integers(1, 6),
)
def test_accumulated_gradient_is_that_of_the_whole_window(table, batch_size, micro_batch, reduction, shapes):
    """ARB orthogonality: any assignment of slices to buckets and any micro-batch gives the gradient of Eq. 6."""
    generator = torch.Generator().manual_seed(len(table))
    inputs = torch.randn(len(table), 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(len(table), 3, generator=generator, dtype=torch.float64)
    table = dataclasses.replace(table, bucket=np.random.default_rng(shapes).integers(0, shapes, len(table)))
    config = TupleConfig(batch_size=batch_size, micro_batch=micro_batch, reduction=reduction)
    for update in plan_epoch(table, config, 3, 1):
        model = small_model()
        losses = ((model(inputs) - targets) ** 2).mean(dim=1)
        objective(table, sorted(slices_of(update)), reduction, losses).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        got = accumulated_gradient([update], inputs, targets)
        assert torch.linalg.vector_norm(got - expected) <= 1e-12 * max(1.0, float(torch.linalg.vector_norm(expected)))


@given(tables(), st.sampled_from([1, 2, 8]), st.integers(2, 5))
def test_windows_do_not_depend_on_buckets_or_micro_batch(table, batch_size, shapes):
    """Which slices meet, and their weights, are the same for every bucket list: results cannot differ."""
    base = plan_epoch(table, TupleConfig(batch_size=batch_size), 0, 0)
    other = dataclasses.replace(table, bucket=np.arange(len(table)) % shapes)
    again = plan_epoch(other, TupleConfig(batch_size=batch_size, micro_batch=1), 0, 0)
    assert [weights_of(update) for update in base] == [weights_of(update) for update in again]


@given(tables(), st.sampled_from([1, 2, 4, 8]))
def test_homogeneous_windows(table, batch_size):
    """Windows of mixed level sets number at most what the pooled remainders need."""
    signature = {root: frozenset(table.level[table.root == root].tolist()) for root in np.unique(table.root).tolist()}
    remainder = sum(count % batch_size for count in Counter(signature.values()).values())
    mixed = 0
    for update in plan_epoch(table, TupleConfig(batch_size=batch_size), 0, 0):
        mixed += len({signature[int(table.root[row])] for row in slices_of(update)}) > 1
    assert mixed <= -(-remainder // batch_size)


def test_mixed_windows_without_homogeneous():
    table = make_table([[0], [0, 2]] * 32)

    def sizes(homogeneous: bool) -> set[int]:
        return {u.slices for u in plan_epoch(table, TupleConfig(homogeneous=homogeneous), 0, 0)}

    assert sizes(True) == {8, 16}
    assert sizes(False) - {8, 16}


@given(tables(), st.sampled_from([1, 2, 4, 8]))
def test_slice_grouping(table, batch_size):
    updates = plan_epoch(table, TupleConfig(grouping="slice", batch_size=batch_size), 0, 0)
    assert Counter(row for update in updates for row in slices_of(update)) == Counter(range(len(table)))
    assert all(update.slices == batch_size for update in updates[:-1])
    for update in updates:
        assert list(weights_of(update).values()) == pytest.approx([1 / update.slices] * update.slices)


def test_slice_grouping_breaks_co_occurrence():
    table = make_table([[0, 1, 2]] * 50)
    assert co_occurrence(plan_epoch(table, TupleConfig(grouping="slice"), 0, 0), table) < 0.2


def test_co_occurrence_by_hand():
    table = make_table([[0, 1], [0, 1], [0]])
    [whole] = plan_epoch(table, TupleConfig(), 0, 0)
    assert co_occurrence([whole], table) == 1.0
    singles = plan_epoch(table, TupleConfig(grouping="slice", batch_size=1), 0, 0)
    assert co_occurrence(singles, table) == 0.0
    assert co_occurrence([], table) == 0.0
    tuples = plan_epoch(table, TupleConfig(batch_size=1), 0, 0)
    assert co_occurrence([u for u in tuples if 0 in slices_of(u)], table) == 0.5
    assert co_occurrence([], make_table([[0], [0]])) == 1.0


@given(tables(), st.integers(0, 2**31), st.integers(0, 100))
def test_plan_is_a_function_of_table_seed_and_epoch(table, seed, epoch):
    relabelled = dataclasses.replace(table, root=table.root * 5 + 3, level=table.level + 10, bucket=table.bucket * 7)
    plans = [plan_hash(plan_epoch(t, TupleConfig(batch_size=2), seed, epoch)) for t in (table, table, relabelled)]
    assert plans[0] == plans[1] == plans[2]


def test_seed_and_epoch_change_the_plan():
    table = make_table([[0, 1, 2]] * 40)
    hashes = {plan_hash(plan_epoch(table, TupleConfig(), seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(hashes) == 9


def test_windows_differ_between_epochs():
    """Roots meet other roots in the next epoch: windows are not just reordered."""
    table = make_table([[0, 1, 2]] * 40)

    def windows(epoch: int) -> set[frozenset[int]]:
        return {frozenset(slices_of(update)) for update in plan_epoch(table, TupleConfig(batch_size=4), 0, epoch)}

    assert not windows(0) & windows(1)


def test_plan_hash_sees_weights_and_order_but_not_the_cut_into_micro_batches():
    table = make_table([[0, 2], [0, 2, 2]] * 9, np.zeros(45, np.int64))
    configs = [
        TupleConfig(batch_size=3),
        TupleConfig(batch_size=3, reduction="slice"),
    ]
    plans = [plan_epoch(table, config, 0, 0) for config in configs]
    hashes = [plan_hash(plan) for plan in [*plans, plans[0][::-1], plans[0][:-1]]]
    assert len(set(hashes)) == len(hashes)
    cut = plan_epoch(table, TupleConfig(batch_size=3, micro_batch=2), 0, 0)
    assert max(len(batch.slices) for update in cut for batch in update.micro_batches) == 2
    assert plan_hash(cut) == hashes[0]


def test_plan_hash_is_the_same_on_every_machine():
    """A resumed run compares this number: a change of planner, weights or NumPy's permutations must be deliberate."""
    table = make_table([[0, 1, 2], [0, 2], [0]] * 4)
    assert plan_hash(plan_epoch(table, TupleConfig(batch_size=4), 1, 2)) == "7a7b211572ff629476a7c4844e5b66c9"


def test_last_window_and_drop_last():
    table = make_table([[0, 1]] * 10)
    updates = plan_epoch(table, TupleConfig(batch_size=4), 0, 0)
    assert [update.roots for update in updates] == [4, 4, 2]
    assert set(weights_of(updates[-1]).values()) == {0.25}
    dropped = plan_epoch(table, TupleConfig(batch_size=4, drop_last=True), 0, 0)
    assert plan_hash(dropped) == plan_hash(updates[:-1])
    assert len(plan_epoch(table, TupleConfig(batch_size=5, drop_last=True), 0, 0)) == 2
    with pytest.raises(DataError, match="10 units, batch_size 16"):
        plan_epoch(table, TupleConfig(batch_size=16, drop_last=True), 0, 0)


def test_empty_table():
    empty = np.empty(0, np.int64)
    with pytest.raises(DataError, match="no slices"):
        plan_epoch(SliceTable(empty, empty, empty, empty), TupleConfig(), 0, 0)


def test_table_checks_its_columns():
    column = np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="one length"):
        SliceTable(column, column, column, column[:1])
    with pytest.raises(ValueError, match="0 to 2"):
        SliceTable(column, column + 3, column, column)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"lambdas": {"micro": 0}}, "lambdas.micro"),
        ({"lambdas": {"nano": 1}}, "valid keys here: macro, meso, micro"),
        ({"grouping": "slice", "reduction": "literal"}, "needs grouping 'root'"),
    ],
)
def test_config_errors(values, words):
    with pytest.raises(ConfigError, match=words):
        build_config(TupleConfig, Layered(values, {}))


@given(tables(), configs, st.integers(1, 6))
def test_shards_sum_to_the_update(table, config, world):
    for update in plan_epoch(table, config, 0, 0):
        parts = [shard(update, rank, world) for rank in range(world)]
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert {(part.epoch, part.index, part.roots) for part in parts} == {(update.epoch, update.index, update.roots)}
        total: dict[int, float] = defaultdict(float)
        weighted = []
        for part in parts:
            for batch in part.micro_batches:
                assert len(set(table.bucket[batch.slices].tolist())) == 1
                for row, weight in zip(batch.slices.tolist(), batch.weights.tolist(), strict=True):
                    total[row] += weight
                    weighted += [row] if weight else []
        assert total == weights_of(update)
        assert Counter(weighted) == Counter(slices_of(update))
        assert max(part.slices for part in parts) <= 2 * -(-update.slices // world)


def test_one_process_runs_the_update_as_it_is():
    update = plan_epoch(make_table([[0, 1, 2]] * 8), TupleConfig(), 0, 0)[0]
    assert shard(update, 0, 1) is update


def test_one_large_micro_batch_is_shared():
    [update] = plan_epoch(make_table([[0]] * 8, np.zeros(8, np.int64)), TupleConfig(), 0, 0)
    assert len(update.micro_batches) == 1
    assert [shard(update, rank, 2).slices for rank in range(2)] == [4, 4]


def test_rank_with_nothing():
    [update] = plan_epoch(make_table([[0]]), TupleConfig(batch_size=1), 0, 0)
    parts = [shard(update, rank, 3) for rank in range(3)]
    assert [part.slices for part in parts] == [1, 0, 0]
    assert [len(part.micro_batches) for part in parts] == [1, 1, 1]
    assert parts[1].micro_batches[0].weights.tolist() == [0.0]


def test_rank_out_of_range():
    [update] = plan_epoch(make_table([[0]]), TupleConfig(), 0, 0)
    with pytest.raises(ValueError, match="rank 2 of world 2"):
        shard(update, 2, 2)


def test_sharded_gradient_is_the_updates():
    table = make_table([[0, 1, 2, 2], [0, 2], [0]] * 3)
    inputs = torch.randn(len(table), 5, dtype=torch.float64)
    targets = torch.randn(len(table), 3, dtype=torch.float64)
    for update in plan_epoch(table, TupleConfig(batch_size=4, micro_batch=3), 0, 0):
        parts = [shard(update, rank, 2) for rank in range(2)]
        expected = accumulated_gradient([update], inputs, targets)
        assert torch.allclose(accumulated_gradient(parts, inputs, targets), expected, rtol=1e-12, atol=1e-14)


@given(tables(), st.sampled_from([1, 2, 8]), st.integers(0, 3))
def test_shuffled_tuples_keep_levels_weights_and_windows(table, batch_size, epoch):
    """The control changes whose slices meet and nothing else: the same level and weight columns in every update."""
    own, control = (
        plan_epoch(table, TupleConfig(grouping=grouping, batch_size=batch_size, reduction=reduction), 0, epoch)
        for grouping, reduction in (("root", "root"), ("shuffled", "root"))
    )
    assert sorted(row for update in control for row in slices_of(update)) == list(range(len(table)))
    for first, second in zip(own, control, strict=True):
        assert first.roots == second.roots
        parts = [
            sorted((int(table.level[row]), round(weight, 12)) for row, weight in weights_of(update).items())
            for update in (first, second)
        ]
        assert parts[0] == parts[1]


def test_shuffled_tuples_are_dealt_anew_each_epoch():
    table = make_table([[0, 2, 3]] * 200)
    config = TupleConfig(grouping="shuffled", batch_size=1)
    for epoch in range(3):
        assert co_occurrence(plan_epoch(table, config, 0, epoch), table) < 0.03
    assert plan_hash(plan_epoch(table, config, 0, 0)) != plan_hash(plan_epoch(table, config, 0, 1))
    assert plan_hash(plan_epoch(table, config, 0, 0)) == plan_hash(plan_epoch(table, config, 0, 0))


@given(tables(), st.sampled_from(["root", "slice", "shuffled"]), st.floats(0.05, 1.0), st.integers(0, 5))
def test_shares_visit_a_part_of_each_granularity(table, grouping, part, epoch):
    config = TupleConfig(grouping=grouping, batch_size=3, share=GranularityShares(meso=part, micro=part / 2))
    updates = plan_epoch(table, config, 1, epoch)
    rows = [row for update in updates for row in slices_of(update)]
    assert len(set(rows)) == len(rows)
    for granularity, share in enumerate((1.0, part, part / 2)):
        there = int((table.granularity == granularity).sum())
        expected = 0 if not there else min(there, max(round(share * there), 1))
        assert sum(table.granularity[row] == granularity for row in rows) == expected
    for update in updates:
        assert sum(weights_of(update).values()) == pytest.approx(1.0)


def test_shares_go_round_so_that_every_slice_is_visited_as_often():
    table = make_table([[0, 2]] * 40)
    config = TupleConfig(share=GranularityShares(micro=0.25))
    counts = Counter(row for epoch in range(8) for u in plan_epoch(table, config, 0, epoch) for row in slices_of(u))
    assert {counts[row] for row in range(80) if table.granularity[row] == 2} == {2}
    assert {counts[row] for row in range(80) if table.granularity[row] == 0} == {8}


def test_a_share_of_one_changes_nothing():
    table = make_table([[0, 1, 2], [0, 3], [0]])
    assert plan_hash(plan_epoch(table, TupleConfig(), 0, 1)) == plan_hash(
        plan_epoch(table, TupleConfig(share=GranularityShares(macro=1.0)), 0, 1)
    )
