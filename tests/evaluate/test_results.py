import csv
import json
import math

import pytest

from flowgrain.errors import DataError
from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable, read_results, write_results

NAN, INF = float("nan"), float("inf")


def result(arm, value=1.5, low=1.0, high=2.0, better=False, warning=None):
    return MetricResult("FID", arm, "whole", value, low, high, 0.95, 40, 8, "net", better, warning, {"seed": "0"})


@pytest.fixture
def table():
    results = (result("a"), result("b", INF, NAN, NAN, None, "few | pictures"))
    differences = (MetricDifference("FID", "whole", "a", "b", -0.5, -0.75, -0.25, 0.95, 8, False),)
    return MetricTable(results, differences)


def test_json_comes_back_as_it_was_and_is_plain_json(tmp_path, table):
    write_results(tmp_path, table)

    def refuse(constant):
        raise ValueError(constant)

    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert content["results"][1]["value"] == "inf" and content["results"][1]["low"] == "nan"
    found = read_results(tmp_path)
    assert found.results[0] == table.results[0] and found.differences == table.differences
    assert math.isinf(found.results[1].value) and math.isnan(found.results[1].low)
    assert found.results[1].higher_is_better is None
    assert read_results(tmp_path / "metrics.json").results[0] == table.results[0]


def test_csv_has_a_row_for_every_value_and_difference(tmp_path, table):
    write_results(tmp_path, table)
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["arm"], row["against"]) for row in rows] == [
        ("value", "a", ""),
        ("value", "b", ""),
        ("difference", "b", "a"),
    ]
    assert float(rows[2]["value"]) == -0.5 and rows[2]["ahead"] == "b"
    assert rows[0]["details"] == "seed: 0"


def test_markdown_holds_values_differences_and_warnings(tmp_path, table):
    write_results(tmp_path, table)
    text = (tmp_path / "metrics.md").read_text()
    assert "| FID, whole (lower is better) | 40 | 1.5 [1, 2] | inf [nan, nan] |" in text
    assert "| FID, whole (lower is better) | b - a | -0.5 [-0.75, -0.25] | b |" in text
    assert "- FID, whole (b): few | pictures" in text


def test_an_empty_table_is_a_table(tmp_path):
    write_results(tmp_path, MetricTable())
    assert read_results(tmp_path) == MetricTable()


@pytest.mark.parametrize(
    ("low", "high", "better", "ahead"),
    [
        (0.1, 0.3, True, "b"),
        (0.1, 0.3, False, "a"),
        (-0.3, -0.1, False, "b"),
        (-0.1, 0.3, True, None),
        (0.1, 0.3, None, None),
        (NAN, NAN, True, None),
    ],
)
def test_who_is_ahead(low, high, better, ahead):
    value = (low + high) / 2
    assert MetricDifference("x", "whole", "a", "b", value, low, high, 0.95, 8, better).ahead == ahead


def test_errors_name_file_and_field(tmp_path, table):
    with pytest.raises(DataError, match=r"metrics\.json: no metric results"):
        read_results(tmp_path / "metrics.json")
    path = tmp_path / "metrics.json"
    path.write_text('{"results": []}')
    with pytest.raises(DataError, match="format 1"):
        read_results(path)
    write_results(tmp_path, table)
    content = json.loads(path.read_text())
    content["results"][0]["n"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"results\.0\.n"):
        read_results(path)
