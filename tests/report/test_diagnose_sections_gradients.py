"""Sentences on gradients, batches and smoothness stay within their intervals; figures draw what they are given."""

import base64

import pytest

from flowgrain.report.canvas import Style
from flowgrain.report.diagnose_gradients import finding, noise_scale
from flowgrain.report.diagnose_gradients_batches import batch_blocks, batch_finding
from flowgrain.report.diagnose_gradients_figures import IntervalCurve, curve_figure
from flowgrain.report.diagnose_path_figures import colour_limit, plane_figure, regime_figure
from flowgrain.report.diagnose_smoothness import finding as smoothness_finding
from flowgrain.report.page import Paragraph


def svg(drawing):
    return base64.b64decode(drawing.light.partition(",")[2]).decode()


def factor(value, low, high):
    return {"value": value, "low": low, "high": high}


def batches(tuples):
    scale = factor(50.0, 25.0, None)
    rows = [
        {"slices": n, "all_levels": 0.9, "with_company": 0.1, "progress_alone": 0.2, "progress_tuples": 0.3}
        for n in (8, 16)
    ]
    return {
        "slices": 30, "roots": 10, "slices_per_root": 3.0, "noise_scale_slices": scale, "noise_scale_roots": scale,
        "tuples": tuples, "content": factor(1.2, 1.1, 1.3), "balanced": factor(0.9, 0.8, 1.0), "mixtures": rows,
    }  # fmt: skip


def point(cosines, tuples=None):
    pairs = {pair: {**factor(*ends), "undefined": 0.0} for pair, ends in cosines.items()}
    return {"point": "update 9", "cosine_unbiased": pairs, "batches": tuples and batches(tuples)}


def test_pairs_are_sorted_by_what_their_intervals_support():
    cosines = {"macro-meso": (0.5, 0.2, 0.8), "macro-micro": (-0.5, -0.9, -0.1), "meso-micro": (0.3, -0.1, 0.7)}
    (line,) = finding({"points": [point(cosines)]})
    same, against, neither = line.split(";")
    assert "same way: macro-meso" in same and "each other: macro-micro" in against and "meso-micro" in neither


def test_a_cosine_without_interval_supports_nothing():
    (line,) = finding({"points": [point({"macro-micro": (0.9, None, None)})]})
    assert "pull" not in line and "macro-micro (no interval)" in line


def test_one_level_has_no_pairs():
    assert "no pairs" in finding({"points": [point({})]})[0]


@pytest.mark.parametrize(
    ("tuples", "said"),
    [
        (factor(1.2, 0.9, 1.5), "no difference"),
        (factor(0.5, 0.4, 0.6), "less noisy"),
        (factor(1.5, 1.2, 1.8), "noisier"),
        (factor(1.5, None, None), "no difference"),
    ],
)
def test_tuples_are_called_better_or_worse_only_beyond_one(tuples, said):
    assert said in batch_finding(point({}, tuples))[0]


def test_no_batches_are_said_to_be_none():
    blocks = batch_blocks({"points": [point({})]})
    assert len(blocks) == 1 and isinstance(blocks[0], Paragraph)


def test_noise_scales_without_an_end():
    assert noise_scale(12.3, 5.0, 40.0) == "12.3 (5 to 40)"
    assert noise_scale(12.3, 5.0, None) == "12.3 (5 to unbounded)"
    assert noise_scale(None, 5.0, None) == "unbounded (at least 5)"


def level(t, *ends):
    counts = [{"count": 4**k, "mean": m, "low": a, "high": b, "neighbours": 1.0} for k, (a, m, b) in enumerate(ends)]
    return {"t": t, "counts": counts}


def test_smoother_and_steeper_need_intervals_apart():
    one = (1.0, 1.0, 1.0)
    levels = [
        level(0.5, one, (4, 5, 6), (1, 2, 3)),
        level(0.7, one, (1, 2, 3), (4, 5, 6)),
        level(0.9, one, (1, 2, 3), (2, 3, 4)),
    ]
    (line,) = smoothness_finding({"curves": {"all slices": levels}})
    assert "smoother at t = 0.5;" in line and "steeper at t = 0.7;" in line and "not told apart at t = 0.9" in line


def test_missing_values_are_left_out_of_curves():
    y = [0.1, None, 0.3]
    curve = IntervalCurve("one", [1, 2, 4], y, [0.0, None, None], [0.2, None, 0.4], Style(0))
    for drawing in (curve_figure("t", [curve], "x", "y"), curve_figure("t", [curve], "x", "y", log_x=True, log_y=True)):
        assert "nan" not in svg(drawing).lower()


def test_constant_values_have_a_logarithmic_axis_with_room():
    curve = IntervalCurve("one", [1, 2, 4], [2.0, 2.0, 2.0], [2.0] * 3, [2.0] * 3, Style(0))
    assert "mathdefault" not in svg(curve_figure("t", [curve], "x", "y", lines=((2.0, "one"),), log_x=True, log_y=True))


PLANE = {
    "x": [-1.0, 0.0, 1.0], "y": [-1.0, 0.0, 1.0], "coordinates": [[-1.0, 0.2], [0.0, 0.0]], "updates": [0, 7],
    "loss": {"all": [[0.5, 0.4, 0.5], [0.4, 0.3, 0.4], [0.5, 0.4, 0.5]], "macro": [[0.3] * 3] * 3},
    "standard_error": [[0.02] * 3] * 3, "last_loss": {"all": 0.3, "macro": 0.3},
}  # fmt: skip


def test_planes_share_their_colours_about_the_last_checkpoint():
    limit = colour_limit(PLANE)
    assert limit == pytest.approx(0.2)
    assert plane_figure("all", PLANE, "all", limit) == plane_figure("all", PLANE, "all", limit)
    assert svg(plane_figure("macro", PLANE, "macro", limit)) != svg(plane_figure("all", PLANE, "all", limit))


def test_a_flat_landscape_is_drawn():
    flat = {**PLANE, "loss": {"all": [[0.3] * 3] * 3}, "last_loss": {"all": 0.3}}
    assert colour_limit(flat) == 1.0
    assert "<svg" in svg(plane_figure("flat", flat, "all", 1.0))


def test_regimes_are_ringed_where_there_are_any():
    points = [{"prediction_distance": d, "loss": {"all": 0.4 - d, "macro": 0.4}} for d in (0.0, 0.1)]
    without = svg(regime_figure(points, ["macro"], None))
    ringed = svg(regime_figure(points, ["macro"], ["underfit", "goal"]))
    assert len(ringed) > len(without)
