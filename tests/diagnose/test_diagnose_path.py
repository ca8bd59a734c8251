"""The path of a run: plane, losses on it, distances, regimes; closed forms and equality with validation."""

import json
import math

import numpy as np
import pytest
import torch

from flowgrain.diagnose.oscillation import checkpoint_oscillation, logged_oscillation
from flowgrain.diagnose.path import measure_path
from flowgrain.diagnose.path_plane import (
    PathVectors,
    flat_parameters,
    grid_axes,
    measure_plane,
    set_parameters,
    standard_error,
    start_state,
)
from flowgrain.diagnose.path_probe import LEVELS, Probe
from flowgrain.diagnose.regimes import dora_change, weight_change
from flowgrain.geometry.landscape import Plane
from flowgrain.report.diagnose_path import finding, sections
from flowgrain.report.page import Page


@pytest.fixture(scope="module")
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowgrain.diagnose.path_plane.GRID", 3)
        yield


@pytest.fixture(scope="module")
def measured(opened, small_config, small_grid):
    return json.loads(json.dumps(measure_path(opened, small_config, lambda *_: None).as_json(), allow_nan=False))


def test_probe_measures_what_validation_does(opened):
    probe = Probe(opened)
    assert probe.held_out and len(probe.slices) == 9
    with opened.at(opened.points[-1]):
        found, validated = probe.losses(), opened.held_out.validator.measure(opened.autocast)
    for level in probe.named_levels:
        own = found[probe.rows_of(level)].mean(dim=0)
        expected = [validated["by_level"][level][place] for place in LEVELS]
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-5)


def test_plane_of_three_points_reproduces_their_losses(opened, small_grid):
    """Start and two checkpoints lie in their plane, so that the losses at their places are their own."""
    found = measure_plane(opened, Probe(opened), lambda *_: None)
    assert found.updates == (0, 2, 4)
    assert max(found.distance) < 1e-5 * found.extent
    np.testing.assert_allclose(found.plane_loss, found.own_loss, rtol=1e-5)
    assert sum(found.plane.explained) == pytest.approx(1)
    assert sum(found.random_walk) == pytest.approx(1)  # three points explain themselves, whatever they are


def test_loss_at_the_start_is_that_without_adapter(opened, measured):
    """B = 0: the fresh adapter predicts what the model without it does."""
    plane = measured["plane"]
    assert plane["own_loss"][0] == pytest.approx(measured["points"][0]["loss"]["all"], rel=1e-5)
    for place, update in ((1, 2), (2, 4)):
        point = next(point for point in measured["points"] if point["update"] == update)
        assert plane["own_loss"][place] == pytest.approx(point["loss"]["all"], rel=1e-5)
    assert plane["last_loss"] == pytest.approx(measured["points"][-1]["loss"], rel=1e-5)


def test_start_is_that_of_training(open_short):
    opened = open_short()
    fresh = [parameter.detach().clone() for _, parameter in opened.adapter.parameters()]
    opened.load(opened.checkpoints[-1])
    found = start_state(opened)
    assert found is not None and all(map(torch.equal, found, fresh))


def test_vectors_are_the_checkpoints_each_time(opened):
    vectors = PathVectors(opened)
    first, again = list(vectors()), list(vectors())
    assert all(map(torch.equal, first, again)) and len(first) == 3
    set_parameters(opened, first[1])
    with opened.at(opened.points[-1]):  # loaded anew after a change by hand
        assert torch.equal(flat_parameters(opened), first[2])


def test_result_is_the_same_again(measured, opened, small_config, small_grid):
    again = measure_path(opened, small_config, lambda *_: None).as_json()
    assert json.loads(json.dumps(again)) == measured


def test_distances_grow_from_nothing(measured):
    points = measured["points"]
    assert points[0]["prediction_distance"] == points[0]["weight_change"] == 0
    assert 0 < points[1]["weight_change"] and 0 < points[1]["prediction_distance"]
    for point in points:
        change = point["change"]["all"]["mean"]
        assert change == pytest.approx(point["loss"]["all"] - points[0]["loss"]["all"], abs=1e-5)
    assert len(measured["regimes"]["regime"]) == len(points)


def test_weight_change_is_that_of_the_product(opened):
    with opened.at(opened.points[-1]):
        found = weight_change(opened)
        state = dict(opened.adapter.parameters())
        scale = opened.recipe.adapter.alpha / opened.recipe.adapter.rank
        squares = [
            (scale * state[name.replace("lora_A", "lora_B")] @ value).double().square().sum().item()
            for name, value in state.items()
            if "lora_A" in name
        ]
    assert found.change == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    assert found.kind == "lora" and 0 < found.relative < 1


def test_dora_change_is_that_of_the_rescaled_rows():
    draw = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(shape, generator=draw).double() for shape in ((6, 5), (2, 5), (6, 2)))
    magnitude = torch.rand(6, generator=draw).double() + 0.5
    moved = weight + 0.7 * up @ down
    expected = (magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight).norm().item()
    assert dora_change(weight, down, up, magnitude, 0.7) == pytest.approx(expected, rel=1e-10)
    untouched = dora_change(weight, down, torch.zeros(6, 2), weight.norm(dim=1), 0.7)
    assert untouched == pytest.approx(0, abs=1e-7)


def test_standard_error_of_independent_slices_and_of_copies():
    rows = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
    plain = rows.std(unbiased=True).item() / math.sqrt(3)
    assert standard_error(rows, ["a", "b", "c"]) == pytest.approx(plain)
    assert standard_error(rows.repeat_interleave(2, dim=0), ["a", "a", "b", "b", "c", "c"]) == pytest.approx(plain)
    assert math.isnan(standard_error(rows, ["a", "a", "a"]))


def test_a_straight_path_still_gets_a_grid_with_room():
    coordinates = np.array([[-4.0, 0.0], [-2.0, 0.01], [0.0, 0.0]])
    plane = Plane(torch.zeros(3), torch.eye(3)[:2], coordinates, np.array([0.99, 0.01]))
    x, y = grid_axes(plane)
    assert x[0] < -4 and x[-1] > 0
    assert y[-1] - y[0] == pytest.approx((x[-1] - x[0]) / 2)


def test_oscillation_between_checkpoints_of_a_straight_and_a_returning_run():
    straight = [torch.tensor([k, 2.0 * k]) for k in range(4)]
    found = checkpoint_oscillation(lambda: straight, range(4), 0)
    assert found["mean_cosine"] == pytest.approx(1) and found["straightness"] == pytest.approx(1)
    returning = [torch.tensor([k % 2, 0.0]) for k in range(5)]
    found = checkpoint_oscillation(lambda: returning, range(5), 0)
    assert found["mean_cosine"] == pytest.approx(-1) and found["straightness"] == pytest.approx(0)


def test_log_gives_full_windows_of_the_last_writing():
    def line(update, cosine, updates=16):
        names = ("straightness", "random_straightness", "variance_ratio", "high_frequency_share")
        return {
            "kind": "interference",
            "update": update,
            "oscillation": {"updates": updates, "mean_cosine": cosine, **dict.fromkeys(names, 0.5)},
        }

    log = [line(8, 0.1, updates=8), line(16, 0.2), {"kind": "update", "update": 17}, line(16, 0.3), line(24, 0.4)]
    rows = logged_oscillation(log)
    assert [(row["update"], row["mean_cosine"]) for row in rows] == [(16, 0.3), (24, 0.4)]
    assert logged_oscillation([{"kind": "interference", "update": 4}]) == []


def test_page_shows_the_plane_and_says_what_was_not_logged(measured):
    page = Page("run", "test", sections(measured)).render()
    assert "random walk of 3 points" in page and "was not logged" in page and "None" not in page
    assert "by our rule" in " ".join(finding(measured)).lower()


def test_finding_claims_no_gain_that_the_interval_does_not_support(measured):
    measured["points"][-1]["change"]["all"] = {"mean": -0.1, "low": -0.3, "high": 0.1}
    assert "does not tell from none" in finding(measured)[0]
