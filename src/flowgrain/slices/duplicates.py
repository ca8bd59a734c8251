"""Pictures that look the same: perceptual hashes that differ in few of their 64 bits.

The search is exact and needs no list of all pairs. Hashes are cut into two bands more than bits may differ; then two
near hashes agree in at least two whole bands (pigeonhole), so sorting by each pair of bands brings them together.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Int, UInt64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

HASH_BITS = 64
NEAR_BITS = 4
"""Hashes this near are taken for the same motif."""
_MOST_EDGES = 1 << 22
"""Pairs that are held before they are merged into groups."""


@dataclass(frozen=True)
class NearGroup:
    """Pictures of which each is near to another one of the group."""

    size: int
    """Number of owners."""
    members: tuple[int, ...]
    """The first few, by their place among the hashes; one an owner."""


@dataclass(frozen=True)
class NearGroups:
    """All groups counted, the largest listed."""

    groups: tuple[NearGroup, ...]
    """The largest first, ties in the order of their first members."""
    count: int
    """Number of groups."""
    pictures: int
    """Number of pictures (owners) in groups, each counted once a group."""

    @property
    def surplus(self) -> int:
        """Pictures that would be left out if one of each group stayed."""
        return self.pictures - self.count


def is_near(a: int, b: int, most_bits: int = NEAR_BITS) -> bool:
    """Whether two hashes differ in at most ``most_bits`` bits."""
    return (a ^ b).bit_count() <= most_bits


def near_groups(
    hashes: UInt64[np.ndarray, " n"],
    owners: Int[np.ndarray, " n"] | None = None,
    *,
    most_bits: int = NEAR_BITS,
    most_groups: int = 200,
    most_members: int = 8,
) -> NearGroups:
    """Groups of near hashes of different owners (of different pictures, where several hashes are one picture's).

    Two hashes are in one group where a chain of near ones leads from one to the other. Memory is a few arrays of n;
    what comes out is bounded by ``most_groups`` and ``most_members``.
    """
    distinct, which = np.unique(hashes, return_inverse=True)
    labels = near_labels(distinct, most_bits)[which]
    own = np.arange(len(hashes)) if owners is None else owners
    order = np.lexsort((np.arange(len(hashes)), own, labels))
    label, owner = labels[order], own[order]
    first = np.ones(len(order), dtype=bool)  # of each owner in each group its first hash
    first[1:] = (label[1:] != label[:-1]) | (owner[1:] != owner[:-1])
    order, label = order[first], label[first]
    starts = np.flatnonzero(np.r_[True, label[1:] != label[:-1]]) if len(label) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.r_[starts, len(label)])
    found = np.flatnonzero(sizes > 1)
    heads = np.minimum.reduceat(order, starts) if len(starts) else order
    largest = found[np.lexsort((heads[found], -sizes[found]))][:most_groups]
    groups = tuple(
        NearGroup(int(sizes[g]), tuple(np.sort(order[starts[g] : starts[g] + sizes[g]])[:most_members].tolist()))
        for g in largest
    )
    return NearGroups(groups, len(found), int(sizes[found].sum()))


def near_labels(hashes: UInt64[np.ndarray, " n"], most_bits: int = NEAR_BITS) -> Int[np.ndarray, " n"]:
    """A number for each of n different hashes, the same for those in one group."""
    edges = _Edges(len(hashes))
    bands = _bands(most_bits + 2)
    for a, b in combinations(bands, 2):
        masked = hashes & np.uint64(a | b)
        order = np.argsort(masked, kind="stable")
        _join_runs(hashes[order], masked[order], order, most_bits, edges)
    return edges.labels()


class _Edges:
    """Pairs that belong together, merged into groups before they become too many."""

    def __init__(self, nodes: int):
        self._nodes = nodes
        self._labels = np.arange(nodes)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        self._pairs.append((first, second))
        self._held += len(first)
        if self._held >= _MOST_EDGES:
            self._merge()

    def labels(self) -> np.ndarray:
        self._merge()
        return self._labels

    def _merge(self) -> None:
        if not self._held:
            return
        # the earlier groups are edges too: from each node to the number of its group, of which there are no more
        first = np.concatenate([self._labels[a] for a, _ in self._pairs])
        second = np.concatenate([self._labels[b] for _, b in self._pairs])
        graph = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(self._nodes, self._nodes))
        _, joined = connected_components(graph, directed=False)
        self._labels = joined[self._labels]
        self._pairs, self._held = [], 0


def _bands(number: int) -> list[int]:
    """Masks of neighbouring bits that share out all 64 as evenly as possible."""
    edges = [HASH_BITS * index // number for index in range(number + 1)]
    return [((1 << high) - 1) ^ ((1 << low) - 1) for low, high in pairwise(edges)]


def _join_runs(hashes: np.ndarray, keys: np.ndarray, names: np.ndarray, most_bits: int, edges: _Edges) -> None:
    """Compare each hash with all that follow it in its run of equal keys, one step further at a time."""
    left = np.arange(len(hashes))
    step = 1
    while len(left):
        left = left[left + step < len(hashes)]
        left = left[keys[left] == keys[left + step]]
        near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= most_bits]
        if len(near):
            edges.add(names[near], names[near + step])
        step += 1
