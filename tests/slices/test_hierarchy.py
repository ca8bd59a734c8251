"""Which boxes survive: inside a level, between levels, and who contains whom."""

from hypothesis import given
from hypothesis import strategies as st

from flowgrain.slices.detectors import Detection
from flowgrain.slices.framing import iou
from flowgrain.slices.hierarchy import Candidate, Selection, choose, drop_near_region, parent_of, suppress

REGION = (0.0, 0.0, 100.0, 100.0)
ANY = Selection(min_score=0.0, max_instances=10, expand=1.0, square=False)

candidates = st.lists(
    st.tuples(st.integers(0, 3), *[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
        lambda v: candidate(v[0], (v[1], v[2], v[1] + v[3], v[2] + v[4]))
    ),
    max_size=8,
    unique_by=lambda item: (item.level, item.box),
)


def candidate(level, box, score=1.0):
    box = tuple(map(float, box))
    return Candidate(level, box, Detection(box, f"l{level}", score))


def detection(box, score, label="x"):
    return Detection(tuple(map(float, box)), label, float(score))


def test_choice_takes_the_best_drops_doubles_and_says_why():
    found = [
        detection((0, 0, 40, 40), 0.5),
        detection((1, 1, 41, 41), 0.9),
        detection((60, 60, 90, 90), 0.4),
        detection((0, 60, 20, 90), 0.1),
        detection((80, 0, 140, 20), 0.8),
    ]
    kept, rejected = choose(found, REGION, 1, Selection(0.2, 2, 1.0, False))
    assert [item.box for item in kept] == [(1.0, 1.0, 41.0, 41.0), (60.0, 60.0, 90.0, 90.0)]
    assert {item.code for item in rejected} == {"duplicate", "min_score", "outside"}
    kept, rejected = choose(found, REGION, 1, Selection(0.0, 1, 1.0, False))
    assert [item.code for item in rejected if item.detection.score == 0.4] == ["max_instances"]


def test_half_inside_is_enough_and_the_box_is_clipped():
    kept, _ = choose([detection((80, 0, 120, 20), 1)], REGION, 1, ANY)
    assert kept[0].box == (80.0, 0.0, 100.0, 20.0)


def test_equal_scores_do_not_depend_on_the_order_of_the_detector():
    found = [detection((0, 0, 10, 10), 1), detection((50, 0, 60, 10), 1), detection((0, 50, 10, 60), 1)]
    assert choose(found, REGION, 1, ANY)[0] == choose(found[::-1], REGION, 1, ANY)[0]


def test_exactly_the_threshold_is_kept():
    coarse, fine = candidate(1, (0, 0, 10, 10)), candidate(2, (0, 0, 10, 8))
    assert iou(coarse.box, fine.box) == 0.8
    assert suppress([coarse, fine], lambda a, b: 0.8)[0] == [coarse, fine]
    kept, rejected = suppress([coarse, fine], lambda a, b: 0.79)
    assert kept == [fine]
    assert rejected[0].code == "suppressed" and "0.800" in rejected[0].reason


def test_a_suppressed_box_suppresses_nothing():
    chain = [candidate(1, (0, 0, 10, 10)), candidate(2, (0, 0, 10, 8)), candidate(3, (0, 0, 10, 6.5))]
    kept, _ = suppress(chain, lambda a, b: 0.7)
    assert kept == [chain[0], chain[2]]


def test_the_coarsest_takes_part_on_request_only():
    pair = [candidate(0, (0, 0, 10, 10)), candidate(1, (0, 0, 10, 10))]
    assert suppress(pair, lambda a, b: 0.7)[0] == pair
    assert suppress(pair, lambda a, b: 0.7, suppress_coarsest=True)[0] == [pair[1]]


@given(candidates, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_suppression_has_the_one_solution_of_its_definition(items, theta):
    kept, rejected = suppress(items, lambda a, b: theta, suppress_coarsest=True)
    assert len(kept) + len(rejected) == len(items)
    for item in items:
        beaten = any(other.level > item.level and iou(other.box, item.box) > theta for other in kept)
        assert (item in kept) == (not beaten)
    if theta == 1.0:
        assert kept == items


def test_near_duplicates_of_the_region_lose_the_finer_box():
    items = [candidate(0, REGION), candidate(1, (0, 0, 100, 95)), candidate(1, (0, 0, 50, 50))]
    kept, rejected = drop_near_region(items, REGION, 0.7)
    assert kept == [items[0], items[2]]
    assert rejected[0].code == "near_macro"


def test_the_parent_is_the_nearest_level_that_holds_half():
    macro, meso, other = candidate(0, REGION), candidate(1, (0, 0, 60, 60)), candidate(1, (50, 0, 100, 60))
    inside, outside = candidate(2, (10, 10, 30, 30)), candidate(2, (70, 70, 90, 90))
    assert parent_of(inside, [macro, meso, other]) is meso
    assert parent_of(outside, [macro, meso, other]) is macro
    assert parent_of(candidate(2, (40, 0, 60, 20)), [macro, meso, other]) is meso
    assert parent_of(macro, []) is None
