import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from test_figures import ODD, luminance, svg

from flowgrain.report.canvas import DARK, LIGHT, Style, compact, ink_on
from flowgrain.report.figures import shortened, wrapped
from flowgrain.report.rank_figures import (
    ErrorCurve,
    ForestRow,
    HeatCell,
    RankBar,
    error_curves,
    forest,
    heat_map,
    ordinal,
    rank_bars,
)

LONG = "a very long name of a variant that nobody would ever read on a telephone"


def draw_all():
    cells = [[HeatCell(0.25), None], [HeatCell(1.0, strong=True), HeatCell(0.0)]]
    curve = ErrorCurve(ODD, [1.0, 1.5], [0.3, 0.4], [0.2, None], [0.4, None], Style(0), 0)
    return [
        rank_bars(ODD, [RankBar(ODD, (0.5, 0.5)), RankBar(LONG, (0.5, 0.5))]),
        rank_bars("many", [RankBar(str(i), (0.125,) * 8) for i in range(8)]),
        heat_map("rates", [ODD, LONG], ["a", LONG], cells),
        heat_map("wins", ["a", "b"], ["a", "b"], cells, balanced=True),
        heat_map("nothing", ["a"], ["b"], [[HeatCell(0.0)]]),
        forest(
            "strengths", [ForestRow(ODD, 0.4, 0.1, 0.7, Style(0)), ForestRow("b", -0.4, None, None, Style(None))], "x"
        ),
        error_curves("rates", [curve, curve], "training", "%"),
    ]


@pytest.fixture(scope="module")
def rank_drawings():
    return draw_all()


def test_drawings_are_valid_svg_for_both_themes(rank_drawings):
    for drawing in rank_drawings:
        for uri, theme in ((drawing.light, LIGHT), (drawing.dark, DARK)):
            text = svg(uri)
            assert ElementTree.fromstring(text).tag.endswith("svg")
            assert theme.paper in text and "NaN" not in text and "nan" not in text


def test_the_same_data_give_the_same_bytes(rank_drawings):
    assert rank_drawings == draw_all()


def test_a_panel_with_few_columns_is_no_wider_than_others(rank_drawings):
    assert {drawing.width for drawing in rank_drawings if drawing is not rank_drawings[2]} == {360}


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("count", [2, 4, 7])
def test_shades_differ_in_lightness_and_carry_readable_numbers(theme, count):
    shades = theme.shades(count)
    levels = [luminance(shade) for shade in shades]
    assert levels == sorted(levels, reverse=theme is DARK)
    assert all(abs(a - b) > 0.01 for a, b in pairwise(levels))
    for shade in (*shades, *(theme.shade_of(part / 10, balanced=True) for part in range(11))):
        high, low = sorted((luminance(shade), luminance(ink_on(shade))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_compacting_keeps_what_is_drawn():
    text = '<svg>\n <!-- note -- -->\n <path d="M 1.234567 2\nL 3 4.5 \n" transform="scale(0.015625)"/>\n <g/>\n</svg>'
    assert compact(text) == '<svg><path d="M 1.23 2 L 3 4.5 " transform="scale(0.015625)"/><g/></svg>'


def test_ordinals():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th",
    ]  # fmt: skip


def test_labels_are_cut_to_two_lines():
    lines = wrapped(LONG).split("\n")
    assert len(lines) == 2 and all(len(line) <= 26 and line.endswith("…") for line in lines)
    assert wrapped("short") == "short" and shortened("x" * 26) == "x" * 26
