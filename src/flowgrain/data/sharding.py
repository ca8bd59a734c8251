"""The part of an update that each process runs."""

import numpy as np

from flowgrain.data.records import MicroBatch, Update


def shard(update: Update, rank: int, world: int) -> Update:
    """The part of an update that process ``rank`` of ``world`` runs, with the weights of the whole.

    Micro-batches larger than an even share are cut, then dealt largest first to the process with fewest slices.
    Every process gets the same number: those short of it repeat a slice with weight 0, since collective operations
    must meet. The sum of gradients over processes is the gradient of the update.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0 to world - 1, got rank {rank} of world {world}")
    if world == 1:
        return update
    total = sum(len(batch.slices) for batch in update.micro_batches)
    share = -(-total // world)
    pieces = [
        MicroBatch(batch.slices[start : start + share], batch.weights[start : start + share])
        for batch in update.micro_batches
        for start in range(0, len(batch.slices), share)
    ]
    parts: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for index in sorted(range(len(pieces)), key=lambda i: -len(pieces[i].slices)):
        poorest = loads.index(min(loads))
        parts[poorest].append(index)
        loads[poorest] += len(pieces[index].slices)
    own = tuple(pieces[index] for index in sorted(parts[rank]))
    idle = MicroBatch((own[0] if own else pieces[0]).slices[:1], np.zeros(1))
    padding = max(len(part) for part in parts) - len(own)
    return Update(update.epoch, update.index, update.roots, own + (idle,) * padding)
