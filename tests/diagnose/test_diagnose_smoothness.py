"""Smoothness of the target of a run's latents: closed form of one latent, no picture meets itself, same again."""

import json

import numpy as np
import pytest

from flowgrain.diagnose import smoothness
from flowgrain.diagnose.sections import NotMeasurable
from flowgrain.report.diagnose_smoothness import finding, sections
from flowgrain.report.page import Page


@pytest.fixture(scope="module")
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoothness, "POINTS", 3)
        patch.setattr(smoothness, "DRAWS", 3)
        yield


@pytest.fixture(scope="module")
def measured(opened, small_config, few):
    result = smoothness.measure_smoothness(opened, small_config, lambda *_: None)
    return json.loads(json.dumps(result.as_json(), allow_nan=False))


def test_one_latent_has_the_norm_of_its_own_field(measured):
    """Rectified flow: 1 / t."""
    for levels in measured["curves"].values():
        for level in levels:
            first = level["counts"][0]
            assert first["count"] == 1 and first["neighbours"] == pytest.approx(1)
            assert first["mean"] == pytest.approx(1 / level["t"], rel=1e-4)
    assert [row["norm"] for row in measured["identity_norm"]] == pytest.approx([1 / 0.5, 1 / 0.97], rel=1e-4)


def test_counts_are_powers_of_two_up_to_the_latents(measured):
    assert measured["points_from"] == "held-out whole pictures"
    assert [row["count"] for row in measured["curves"]["all slices"][0]["counts"]] == [1, 2, 4, 8, 16]
    assert [row["count"] for row in measured["curves"]["whole pictures"][0]["counts"]] == [1, 2, 4, 8]
    for levels in measured["curves"].values():
        for row in levels[0]["counts"]:
            assert row["low"] <= row["mean"] <= row["high"] and 1 <= row["neighbours"] <= row["count"] * 1.0001


def test_result_is_the_same_again(measured, opened, small_config, few):
    again = smoothness.measure_smoothness(opened, small_config, lambda *_: None).as_json()
    assert json.loads(json.dumps(again)) == measured


def test_training_pictures_stand_in_and_never_meet_themselves(open_short, small_config, few, monkeypatch):
    opened = open_short()
    object.__setattr__(opened, "held_out", None)
    asked = []
    original = smoothness.smoothness_by_count

    def watched(data, held_out, *rest):
        asked.append((data, held_out))
        return original(data, held_out, *rest)

    monkeypatch.setattr(smoothness, "smoothness_by_count", watched)
    found = smoothness.measure_smoothness(opened, small_config, lambda *_: None).as_json()
    assert found["points_from"] == "training pictures left out"
    for data, points in asked:
        nearest = ((data[:, None] - points[None]) ** 2).sum(dim=2).min().item()
        assert nearest > 0


def test_too_few_roots_are_not_measured(open_short, small_config, few):
    opened = open_short()
    roots = sorted({item.root for item in opened.train.dataset.slices})[:3]
    kept = tuple(item for item in opened.train.dataset.slices if item.root in roots)
    object.__setattr__(opened.train.dataset, "slices", kept)
    with pytest.raises(NotMeasurable, match="at least 4"):
        smoothness.measure_smoothness(opened, small_config, lambda *_: None)


def test_page_and_finding(measured):
    page = Page("run", "test", sections(measured)).render()
    assert "Smoothness of the target" in page and "None" not in page
    for level in measured["curves"]["all slices"]:
        level["counts"][-1] |= {"mean": 1.0, "low": 0.5, "high": 2.0}
        level["counts"][2] |= {"mean": 1.0, "low": 0.5, "high": 2.0}
    assert "not told apart" in finding(measured)[0] and "smoother at" not in finding(measured)[0]


def test_interval_of_draws_is_that_of_the_logarithm():
    ends = smoothness._ends([1.0, 4.0])
    assert ends["mean"] == pytest.approx(2)
    assert ends["high"] / 2 == pytest.approx(2 / ends["low"])
    assert np.log(ends["high"] / 2) == pytest.approx(12.706 * np.log(4) / 2, rel=1e-3)
