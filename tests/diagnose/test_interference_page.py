"""The page of data interference: every kind of run gives a page, and sentences stay within their intervals."""

import copy
import json
import math

import pytest

from flowgrain.diagnose.fields import measure_interference
from flowgrain.report import diagnose_interference
from flowgrain.report.canvas import LIGHT
from flowgrain.report.diagnose_figures import short_number
from flowgrain.report.diagnose_values import VISIBLE, estimate, matrix, telling_level
from flowgrain.report.page import Details, FigureRow, Page, Table, flat


def measure(opened):
    values = measure_interference(opened, opened.config, lambda _what, _done, _total: None).as_json()
    return json.loads(json.dumps(values, allow_nan=False))  # as the file gives it back


@pytest.fixture(scope="module")
def values(open_short):
    return measure(open_short(queries=4))


def rendered(values):
    return Page("t", "s", diagnose_interference.sections(values)).render()


def blocks(values, kind):
    return [
        block
        for section in diagnose_interference.sections(values)
        for block in flat(section.blocks)
        if isinstance(block, kind)
    ]


def with_correlation(values, mean, low, high):
    """The numbers with other cross terms of the newest state."""
    changed = copy.deepcopy(values)
    (grouping,) = [found for found in changed["groupings"] if found["name"] == "level"]
    for cell in grouping["cells"]:
        if cell["point"] == changed["points"][-1] and cell["captions"] == "empty":
            cell["correlation"] = {"mean": mean, "low": low, "high": high}
    return changed


def test_every_figure_says_how_to_read_it_and_what_it_shows(values):
    html = rendered(values)
    assert html.count("<figure") == html.count("</figure")
    for row in blocks(values, FigureRow):
        assert len(row.reading) > 80
        assert all(len(figure.alt) > 40 for figure in row.figures)
    assert "faint" in html.lower() and "heuristic" in html.lower()


def test_a_verdict_needs_an_interval_that_excludes_0(values):
    def verdict(mean, low, high):
        return diagnose_interference.finding(with_correlation(values, mean, low, high))[1]

    assert "constructive in the paper's words" in verdict(0.02, 0.01, 0.03)
    assert "destructive in the paper's words" in verdict(-0.02, -0.03, -0.01)
    assert "neither synergy nor conflict is supported" in verdict(0.02, -0.01, 0.05)
    assert "a model without error would have −" in verdict(0.02, 0.01, 0.03)


def test_numbers_in_cells_need_an_interval_that_excludes_0():
    def one(mean, low, high):
        return {"mean": [[mean]], "low": [[low]], "high": [[high]]}

    assert matrix(one(0.2, 0.1, 0.3), 0.4)[0][0].value == pytest.approx(0.5)
    assert matrix(one(0.2, 0.1, 0.3), 0.4)[0][0].supported
    assert not matrix(one(0.2, -0.1, 0.3), 0.4)[0][0].supported
    assert not matrix(one(0.2, None, None), 0.4)[0][0].supported
    assert not matrix(one(VISIBLE / 2, 1e-4, 1e-2), 1.0)[0][0].supported
    assert matrix(one(None, None, None), 1.0)[0][0].value is None


def test_colours_are_centred_at_0_and_apart_in_lightness_from_both_ends():
    from flowgrain.report.canvas import luminance

    low, middle, high = (luminance(LIGHT.shade_of(part, balanced=True)) for part in (0.0, 0.5, 1.0))
    assert middle > 0.9 and low < 0.3 and high < 0.3


def test_short_numbers_and_intervals_are_written_without_false_zeros():
    assert [short_number(value) for value in (0.451, -0.07, 1.0, -1.0, 0.001)] == [".45", "−.07", "1", "−1", ".00"]
    assert estimate({"mean": 0.00243, "low": 0.00002, "high": 0.00509}, sign=True) == "+0.00243 (+0.00002 to +0.00509)"
    assert estimate({"mean": 0.5, "low": 0.4, "high": 0.6}) == "0.50 (0.40 to 0.60)"
    assert estimate({"mean": None, "low": None, "high": None}) == "–"
    assert "no interval" in estimate({"mean": 0.5, "low": None, "high": None})


def test_levels_without_cross_weight_are_faint_and_not_spoken_of(values):
    (grouping,) = [found for found in values["groupings"] if found["name"] == "level"]
    columns = diagnose_interference.map_columns(grouping)
    assert [column.faint for column in columns] == [True, False]
    assert telling_level(values, grouping) == 0.97
    where = diagnose_interference.finding(values)[0]
    assert "at t = 0.97" in where and "at t = 0.5 each noised picture belongs to one of them" in where
    changes = next(table for table in blocks(values, Table) if table.title == "What training changed.")
    assert [row[2] == "no weight" for row in changes.rows] == [True, False] * 2


def test_a_run_whose_levels_have_shapes_of_their_own_gives_a_page(open_short, run_of_sizes):
    values = measure(open_short(run=run_of_sizes, queries=4))
    html = rendered(values)
    assert "67" in html and "of the latents have one shape with two or more of the groups" in html
    assert "never meet" in html  # buckets


def test_a_run_without_groups_says_so(values):
    empty = {**values, "groupings": [], "absent": {"semantic levels": "all slices are macro"}}
    assert "all slices are macro" in rendered(empty)
    assert diagnose_interference.finding(empty) == [
        "Interference of the data: this run's slices fall into no groups that meet."
    ]


def test_a_single_state_shows_no_change(values):
    alone = copy.deepcopy(values)
    alone["points"], alone["updates"] = alone["points"][:1], alone["updates"][:1]
    for grouping in alone["groupings"]:
        grouping["changes"] = []
        grouping["cells"] = [
            cell for cell in grouping["cells"] if cell["point"] in (alone["points"][0], alone["perfect"])
        ]
    assert "there is no change to show" in rendered(alone)
    assert not any("Training" in line for line in diagnose_interference.finding(alone))


def test_hidden_parts_open_on_a_click(values):
    summaries = [
        block.summary
        for section in diagnose_interference.sections(values)
        for block in section.blocks
        if isinstance(block, Details)
    ]
    assert summaries == [
        "The same with each slice's own caption (heuristic)",
        "How this was measured",
        "Heat maps of the other partitions",
    ]
    assert all(math.isfinite(row["neglected"]) for row in values["concentration"])
