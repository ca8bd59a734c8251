"""Algorithm 2 of Semantic Granularity Alignment, read literally: a simulation of its step boundaries.

Nothing trains with this. It shows what the printed loop does to co-occurrence once a batch holds more than one
slice, and that at one slice a batch the windows of ``tuples.py`` step exactly where it steps (spec c.1, c.2).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowgrain.data.records import MicroBatch, Update
from flowgrain.data.tuples import SliceTable
from flowgrain.rng import numpy_generator


@dataclass(frozen=True)
class LiteralEpoch:
    """The optimizer steps of one epoch of Algorithm 2."""

    updates: tuple[Update, ...]
    leftover: np.ndarray
    """Slices whose gradients were accumulated but never stepped when the epoch ended."""


def group_order(table: SliceTable, seed: int, epoch: int) -> np.ndarray:
    """Row numbers with roots shuffled, slices of a root contiguous and shuffled among themselves (line 2)."""
    rng = numpy_generator(seed, epoch, "literal")
    _, root = np.unique(table.root, return_inverse=True)
    place = rng.permutation(int(root.max()) + 1)
    return np.lexsort((rng.random(len(table)), place[root]))


def literal_epoch(
    table: SliceTable, order: np.ndarray, batch_size: int, split_granularity: bool = False, epoch: int = 0
) -> LiteralEpoch:
    """Steps of Algorithm 2 over slices streamed in ``order`` through first-in-first-out bucket queues.

    A queue of ``batch_size`` slices becomes a batch; partial queues follow at the end (line 3). The first batch
    after a step sets K_target to the group size of its first slice (lines 7, 8), and K_target batches later the
    optimizer steps (line 24). ``split_granularity`` gives each granularity queues of its own.
    """
    _, inverse, counts = np.unique(table.root, return_inverse=True, return_counts=True)
    group_size = counts[inverse]
    updates: list[Update] = []
    pending: list[np.ndarray] = []
    target = 0
    for batch in _batches(table, order, batch_size, split_granularity):
        if not pending:
            target = int(group_size[batch[0]])
        pending.append(batch)
        if len(pending) >= target:
            updates.append(_update(table, pending, epoch, len(updates)))
            pending = []
    return LiteralEpoch(tuple(updates), np.concatenate([*pending, np.empty(0, np.int64)]))


def _batches(table: SliceTable, order: np.ndarray, batch_size: int, split_granularity: bool) -> Iterator[np.ndarray]:
    queues: dict[tuple[int, int], list[int]] = {}
    for row in order.tolist():
        key = (int(table.bucket[row]), int(table.granularity[row]) if split_granularity else -1)
        queue = queues.setdefault(key, [])
        queue.append(row)
        if len(queue) == batch_size:
            yield np.array(queue, np.int64)
            queue.clear()
    for queue in queues.values():
        if queue:
            yield np.array(queue, np.int64)


def _update(table: SliceTable, batches: list[np.ndarray], epoch: int, index: int) -> Update:
    """One step: the sum of batch means, without the 1/K of Eq. 6 (line 22)."""
    roots = len(np.unique(table.root[np.concatenate(batches)]))
    micro_batches = tuple(MicroBatch(batch, np.full(len(batch), 1 / len(batch))) for batch in batches)
    return Update(epoch, index, roots, micro_batches)
