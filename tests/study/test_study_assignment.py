"""Balance laws of the assignment, for any number of items, variants and participants."""

from collections import Counter
from math import gcd, lcm

from hypothesis import given
from hypothesis import strategies as st

from flowgrain.evaluate.study.assignment import Assigner, Design, williams_row


@st.composite
def designs(draw, most_items=12, most_variants=8):
    """Designs with a few data sets and prompts."""
    strata = tuple(draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=most_items)))
    own = draw(st.integers(1, len(strata)))
    variants = draw(st.integers(2, most_variants))
    degraded = tuple(draw(st.lists(st.integers(0, variants - 1), max_size=3)))
    return Design(str(draw(st.integers(0, 2**32))), strata, variants, own, degraded, draw(st.integers(0, own // 2)))


def own_items(design, participants):
    assigner = Assigner(design)
    return [[p for p in assigner.sitting(n) if p.kind == "item"] for n in range(participants)]


def cells(placements):
    """How often each variant stood at each place."""
    return Counter((variant, place) for p in placements for place, variant in enumerate(p.places))


def spread_of(counter, design):
    every = [counter[v, place] for v in range(design.variants) for place in range(design.variants)]
    return max(every) - min(every)


@given(designs(), st.integers(0, 40))
def test_a_participant_sees_every_variant_at_every_place_equally_often(design, participant):
    own = [p for p in Assigner(design).sitting(participant) if p.kind == "item"]
    assert len({p.index for p in own}) == len(own) == design.per_participant
    assert all(sorted(p.places) == list(range(design.variants)) for p in own)
    assert spread_of(cells(own), design) <= 1


@given(designs(), st.integers(1, 40))
def test_so_does_the_study_after_any_number_of_participants(design, participants):
    own = own_items(design, participants)
    assert spread_of(cells(p for sitting in own for p in sitting), design) <= 1


@given(designs(), st.integers(1, 40))
def test_items_are_given_equally_often_after_any_number_of_participants(design, participants):
    times = Counter(p.index for sitting in own_items(design, participants) for p in sitting)
    every = [times[item] for item in range(len(design.strata))]
    assert max(every) - min(every) <= 1
    assert sum(every) == participants * design.per_participant


@given(designs(most_items=6, most_variants=6))
def test_each_item_is_balanced_exactly_after_the_stated_number_of_participants(design):
    own = own_items(design, design.balanced_after)
    for item in range(len(design.strata)):
        counts = cells(p for sitting in own for p in sitting if p.index == item)
        assert spread_of(counts, design) == 0 and counts


@given(designs(most_items=8, most_variants=7))
def test_each_variant_stands_beside_each_other_equally_often(design):
    own = own_items(design, design.period * (1 + design.variants % 2))
    beside = Counter(pair for sitting in own for p in sitting for pair in zip(p.places, p.places[1:], strict=False))
    pairs = [beside[a, b] for a in range(design.variants) for b in range(design.variants) if a != b]
    assert min(pairs) == max(pairs) > 0


def test_the_williams_square_of_four_is_the_published_one():
    assert [williams_row(4, row) for row in range(4)] == [(0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1)]
    assert williams_row(3, 1, mirrored=True) == (0, 2, 1)


@given(designs(), st.integers(0, 40))
def test_a_sitting_is_a_function_of_seed_and_participant(design, participant):
    assert Assigner(design).sitting(participant) == Assigner(design).sitting(participant)


def test_what_was_sealed_stays_what_is_computed():
    """The digest of a study that is out there: if this test fails, studies under way would change their assignment."""
    design = Design("seed", tuple((i % 2, i % 5) for i in range(10)), 4, 6, (1, 3), 2)
    assert Assigner(design).digest(20) == "e069c6db545e9af808b58328309fdbd5f074b4e77dc36d35dc6ebaf030b40ec0"


def test_seeds_and_participants_differ():
    design = Design("a", tuple((0, i) for i in range(20)), 4, 20, (0,), 1)
    other = Design("b", design.strata, 4, 20, (0,), 1)
    sittings = [Assigner(d).sitting(p) for d in (design, other) for p in (0, 1)]
    assert len(set(sittings)) == 4


@given(designs(), st.integers(0, 30))
def test_checks_and_repeats_stand_where_they_work(design, participant):
    sitting = Assigner(design).sitting(participant)
    assert sitting[0].kind == "practice" and sitting[1].kind == "item"
    kinds = Counter(p.kind for p in sitting)
    assert (kinds["practice"], kinds["item"]) == (1, design.per_participant)
    assert (kinds["check"], kinds["repeat"]) == (len(design.degraded), design.repeated)
    assert sorted(p.index for p in sitting if p.kind == "check") == list(range(len(design.degraded)))
    first = {p.index: n for n, p in enumerate(sitting) if p.kind == "item"}
    for n, p in enumerate(sitting):
        if p.kind == "repeat":
            own = [q for q in sitting if q.kind == "item"]
            between = sum(q.kind == "item" for q in sitting[first[p.index] + 1 : n])
            assert between >= len(own) // 4 and n > first[p.index]
            before = sitting[first[p.index]].places
            assert all(a != b for a, b in zip(before, p.places, strict=True))


@given(designs(), st.integers(1, 5))
def test_the_degraded_picture_is_at_every_place_equally_often(design, rounds):
    placements = [Assigner(design).sitting(n) for n in range(rounds * design.variants)]
    for check, worst in enumerate(design.degraded):
        places = Counter(
            p.places.index(worst) for sitting in placements for p in sitting if p.kind == "check" and p.index == check
        )
        assert set(places.values()) == {rounds} and len(places) == design.variants


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_equal_data_sets_are_spread_evenly_over_participants(datasets, each, data):
    strata = tuple((d, 10 * d + i) for d in range(datasets) for i in range(each))
    own = data.draw(st.integers(1, len(strata)))
    design = Design("s", strata, 3, own, (), 0)
    for sitting in own_items(design, lcm(len(strata), own) // own):
        seen = Counter(strata[p.index][0] for p in sitting)
        every = [seen[d] for d in range(datasets)]
        assert max(every) - min(every) <= 1


@given(designs())
def test_the_periods_are_what_the_docstring_says(design):
    n, k = len(design.strata), design.variants
    assert design.period * design.per_participant == lcm(n, design.per_participant, k)
    assert design.balanced_after == design.period * gcd(n, k) * (2 if k % 2 else 1)
