"""Geometry of slices: the numbers of the specification, and laws against brute force."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowgrain.data.buckets import best_aspect_match
from flowgrain.slices.framing import (
    Limits,
    clip_box,
    cover_factor,
    decide,
    expand_box,
    focus,
    framing_crop,
    iou,
    share_inside,
    snap_box,
)

TARGETS = ((1280, 1280), (1152, 1408), (1408, 1152), (1024, 1600), (1600, 1024), (960, 1664), (1664, 960))
LIMITS = Limits(max_upscale=2.0, max_downscale=1.1, min_side=1)

cells = st.integers(0, 12)
boxes = st.tuples(cells, cells, st.integers(1, 12), st.integers(1, 12)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
real_boxes = st.tuples(*[st.floats(-50, 150)] * 2, *[st.floats(0.5, 120)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def cells_of(box):
    x0, y0, x1, y1 = (int(side) for side in box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 8), 0.8),
        ((0, 0, 10, 10), (5, 5, 15, 15), 1 / 7),
        ((0, 0, 100, 100), (20, 20, 60, 60), 0.16),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_iou_numbers(a, b, expected):
    assert iou(tuple(map(float, a)), tuple(map(float, b))) == pytest.approx(expected, abs=1e-12)


@given(boxes, boxes)
def test_iou_and_share_count_pixels(a, b):
    ours, theirs = cells_of(a), cells_of(b)
    assert iou(a, b) == len(ours & theirs) / len(ours | theirs)
    assert share_inside(a, b) == len(ours & theirs) / len(ours)


@given(boxes, boxes)
def test_clip_is_the_intersection_of_pixels(box, region):
    clipped = clip_box(box, region)
    assert cells_of(clipped) == cells_of(box) & cells_of(region)
    assert region[0] <= clipped[0] <= clipped[2] <= region[2]


def test_expanding_gives_the_head_square_of_waifuc():
    box = clip_box(expand_box((100.0, 50.0, 180.0, 150.0), 1.5, square=True), (0.0, 0.0, 300.0, 400.0))
    assert box == (65.0, 25.0, 215.0, 175.0)


@given(real_boxes, st.tuples(st.integers(1, 100), st.integers(1, 100)))
def test_snapped_boxes_are_whole_non_empty_and_inside(box, size):
    region = (0.0, 0.0, float(size[0]), float(size[1]))
    snapped = snap_box(clip_box(box, region), region)
    assert all(side == int(side) for side in snapped)
    assert 0 <= snapped[0] < snapped[2] <= size[0]
    assert 0 <= snapped[1] < snapped[3] <= size[1]


@pytest.mark.parametrize(
    ("size", "target", "rho", "action"),
    [
        ((900, 1000), (1152, 1408), 1.408, "upscale"),
        ((400, 420), (1280, 1280), 3.2, "discard"),
        ((3000, 1700), (1664, 960), 1 / 1.77083, "downscale"),
        ((1300, 1290), (1280, 1280), 1 / 1.00781, "native"),
        ((1500, 1480), (1280, 1280), 1 / 1.15625, "downscale"),
    ],
)
def test_numbers_of_the_specification(size, target, rho, action):
    assert best_aspect_match(*size, TARGETS) == target
    box = (0.0, 0.0, float(size[0]), float(size[1]))
    assert cover_factor(box, target) == pytest.approx(rho, rel=1e-5)
    assert decide(box, target, LIMITS, upscaler_limit=2.0).action == action


@pytest.mark.parametrize(
    ("side", "limits", "upscaler", "action", "code"),
    [
        (64, LIMITS, 2.0, "upscale", ""),
        (63, LIMITS, 2.0, "discard", "max_upscale"),
        (100, LIMITS, 1.28, "upscale", ""),
        (100, LIMITS, 1.25, "discard", "lanczos_max"),
        (128, LIMITS, 1.0, "native", ""),
        (160, Limits(2.0, 1.25, 1), 1.0, "native", ""),
        (161, Limits(2.0, 1.25, 1), 1.0, "downscale", ""),
        (128, Limits(2.0, 1.1, 129), 1.0, "discard", "min_side"),
    ],
)
def test_a_box_at_a_limit_is_kept(side, limits, upscaler, action, code):
    decision = decide((0.0, 0.0, float(side), float(side)), (128, 128), limits, upscaler)
    assert (decision.action, decision.code) == (action, code)


def test_focus_is_the_score_weighted_mean_of_the_finer_boxes_inside():
    box = (0.0, 0.0, 100.0, 100.0)
    finer = [((0.0, 0.0, 20.0, 20.0), 0.75), ((80.0, 40.0, 100.0, 60.0), 0.25), ((90.0, 0.0, 190.0, 10.0), 1.0)]
    assert focus(box, finer) == (0.75 * 10 + 0.25 * 90, 0.75 * 10 + 0.25 * 50)
    assert focus(box, []) == (50.0, 50.0)
    assert focus(box, [((0.0, 0.0, 20.0, 20.0), 0.0)]) == (10.0, 10.0)


@given(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(64, 900), st.integers(64, 900)),
    st.tuples(st.floats(-100, 1000), st.floats(-100, 1000)),
    st.sampled_from([(64, 64), (96, 64), (64, 128)]),
)
def test_the_window_is_inside_has_the_bucket_aspect_and_is_nearest_to_the_point(corner, point, target):
    box = (float(corner[0]), float(corner[1]), float(corner[0] + corner[2]), float(corner[1] + corner[3]))
    decision = decide(box, target, Limits(10.0, 1.1, 1), 10.0)
    window = framing_crop(box, target, decision, point)
    assert box[0] <= window[0] < window[2] <= box[2]
    assert box[1] <= window[1] < window[3] <= box[3]
    assert window[2] - window[0] == pytest.approx(target[0] / decision.scale, rel=1e-9)
    assert window[3] - window[1] == pytest.approx(target[1] / decision.scale, rel=1e-9)
    if decision.action == "native":
        assert all(side == int(side) for side in window)
        starts = range(int(box[0]), int(box[2]) - target[0] + 1)
        wanted = math.floor(point[0] - target[0] / 2 + 0.5)
        assert abs(window[0] - wanted) == min(abs(start - wanted) for start in starts)
