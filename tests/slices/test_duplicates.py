"""Near-duplicates are found exactly, whatever the hashes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.slices import duplicates
from flowgrain.slices.duplicates import NearGroup, is_near, near_groups, near_labels

BITS = st.integers(0, 63)


@st.composite
def hashes(draw):
    """Few motifs, each with copies that differ in a few bits: many pairs near the limit."""
    motifs = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    copies = draw(st.lists(st.tuples(st.sampled_from(motifs), st.lists(BITS, max_size=7)), max_size=40))
    return [*motifs, *(motif ^ sum(1 << bit for bit in set(bits)) for motif, bits in copies)]


def components(values, most_bits):
    """Brute force: every pair compared, groups by flooding."""
    left, found = set(range(len(values))), []
    while left:
        group, rim = set(), {min(left)}
        while rim:
            group |= rim
            rim = {b for b in left - group for a in rim if is_near(values[a], values[b], most_bits)}
        found.append(frozenset(group))
        left -= group
    return found


@given(hashes(), st.integers(0, 6), st.integers(1, 50))
@settings(deadline=None, max_examples=150)
def test_groups_equal_brute_force(values, most_bits, held):
    array = np.array(values, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_MOST_EDGES", held)  # merge often: it must not matter
        found = near_groups(array, most_bits=most_bits, most_members=100)
        distinct = np.unique(array)
        labels = near_labels(distinct, most_bits)
    expected = [group for group in components(values, most_bits) if len(group) > 1]
    assert {frozenset(group.members) for group in found.groups} == set(expected)
    assert (found.count, found.pictures) == (len(expected), sum(map(len, expected)))
    assert [group.size for group in found.groups] == sorted(map(len, expected), reverse=True)
    one = components(distinct.tolist(), most_bits)
    assert len(set(labels.tolist())) == len(one)
    assert all(len({labels[index] for index in group}) == 1 for group in one)


@given(hashes(), st.lists(st.integers(0, 3), min_size=50, max_size=50))
@settings(deadline=None, max_examples=60)
def test_pictures_of_one_owner_are_no_duplicates_of_each_other(values, numbers):
    owners = np.array(numbers[: len(values)])
    found = near_groups(np.array(values, dtype=np.uint64), owners, most_members=100)
    expected = {}
    for group in components(values, 4):
        first = {}
        for place in sorted(group):
            first.setdefault(owners[place], place)
        if len(first) > 1:
            expected[frozenset(first.values())] = len(first)
    assert {frozenset(group.members): group.size for group in found.groups} == expected
    assert found.surplus == sum(size - 1 for size in expected.values())


def test_output_is_bounded_and_counts_are_whole():
    values = np.repeat(np.arange(50, dtype=np.uint64) << np.uint64(32), np.arange(50) % 7 + 2)
    spread = (np.arange(50, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))[
        np.repeat(np.arange(50), np.arange(50) % 7 + 2)
    ]
    found = near_groups(values ^ spread, most_groups=3, most_members=2)
    assert (found.count, found.pictures) == (50, len(values))
    assert [group.size for group in found.groups] == [8, 8, 8] and all(len(g.members) == 2 for g in found.groups)


@pytest.mark.parametrize("values", [[], [7], [7, 7]])
def test_few_pictures(values):
    found = near_groups(np.array(values, dtype=np.uint64))
    assert found.groups == ((NearGroup(2, (0, 1)),) if len(values) == 2 else ())


def test_the_limit_counts_bits():
    base = 0x0123456789ABCDEF
    for bits, groups in ((4, 1), (5, 0)):
        other = base ^ int("1" * bits, 2) << 13
        assert near_groups(np.array([base, other], dtype=np.uint64)).count == groups
